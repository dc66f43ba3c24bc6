"""May this task be made? A body of either dialect → one Order, or the documented refusal. Pure.

Source of the rules: the request tables of the two API documents. Nulls of optional fields count as absent and
whole floats as ints, because clients in use send both; unknown fields are ignored.
"""

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from attrs import field, frozen

from kling_expand.emulator.codes import Refusal
from kling_expand.emulator.headers import PictureError, inspect

Ratios = tuple[float, float, float, float]

SIDES = ("up", "down", "left", "right")
LARGEST_AREA = 3 + 1e-3  # the vendor's helper rounds to four decimals and so overshoots 3 a little
IMAGE_BYTES = 10 * 1024 * 1024
SHORTEST_SIDE = 300
ASPECT = 2.5
PROMPT_LENGTH = 2500
MOST_IMAGES = 9
DIRECTION = "(left|right|top|bottom|all)(, ?(left|right|top|bottom|all))*"
_PORT = "[0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]"
_HOST = r"[A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]"
URL = f"[Hh][Tt][Tt][Pp][Ss]?://({_HOST})(:({_PORT}))?([/?#][!-~]*)?"
NOT_BASE64 = "File is not in a valid base64 format"
BAD_PIXELS = "Image pixel is invalid"
_NAMES = {"top": "up", "bottom": "down", "left": "left", "right": "right"}


@frozen
class Order:
    """What was asked for: `image` is raw Base64 or an http(s) URL, ratios are (up, down, left, right)."""

    image: str = field(repr=False)
    ratios: Ratios
    n: int
    prompt: str
    watermark: bool
    callback_url: str
    external_task_id: str


def parse(raw: bytes) -> dict[str, Any]:
    """The body as a JSON object; raises Refusal 1200 for anything else, NaN and Infinity included."""
    try:
        body = json.loads(raw, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Refusal(1200, "Invalid request parameters: the body is not JSON") from None
    if not isinstance(body, dict):
        raise Refusal(1200, "Invalid request parameters: the body is not a JSON object")
    return body


def _no_constant(name: str) -> float:
    raise ValueError(name)


def editing(body: Mapping[str, Any]) -> Order:
    """`POST /v1/images/editing/expand`: four ratios, each required and in [0, 2]."""
    image = _image(body)
    up, down, left, right = (_ratio(body, side) for side in SIDES)
    return _order(body, image, (up, down, left, right), watermark=_watermark(body))


def direction(body: Mapping[str, Any]) -> Order:
    """`POST /v1/images/expand`: sides by name, and new ÷ old length, split evenly over an axis."""
    image = _image(body)
    names = body.get("direction")
    if names is None:
        raise Refusal(1201, "direction can not be null")
    if not isinstance(names, str) or not re.fullmatch(DIRECTION, names):
        raise Refusal(1201, "direction is invalid")
    ratio = _number(body, "expansion_ratio", default=1.5)
    if ratio < 1:
        raise Refusal(1201, "expansion_ratio must not be less than 1")
    return _order(body, image, _sides(names, ratio - 1), watermark=False)


def _sides(names: str, extra: float) -> Ratios:
    named = {name.strip() for name in names.split(",")}
    sides = set(SIDES) if "all" in named else {_NAMES[name] for name in named}
    up, down, left, right = (
        extra / len(sides & axis) if side in sides else 0.0
        for side, axis in zip(SIDES, ({"up", "down"},) * 2 + ({"left", "right"},) * 2, strict=True)
    )
    return up, down, left, right


def _order(body: Mapping[str, Any], image: str, ratios: Ratios, *, watermark: bool) -> Order:
    _area(ratios)
    return Order(
        image,
        ratios,
        _count(body),
        _prompt(body),
        watermark,
        _callback(body),
        _text(body, "external_task_id"),
    )


def _area(ratios: Ratios) -> None:
    up, down, left, right = ratios
    if max(ratios) > 2:
        raise Refusal(1201, "expansion ratio must be between 0 and 2")
    if max(ratios) <= 0:
        raise Refusal(1201, "at least one expansion ratio must be greater than 0")
    if (1 + up + down) * (1 + left + right) > LARGEST_AREA:
        raise Refusal(
            1201, "the total area of the new image must not exceed 3 times that of the original image"
        )


def _image(body: Mapping[str, Any]) -> str:
    image = _text(body, "image")
    if not image:
        raise Refusal(1201, "image can not be null")
    if is_url(image):
        _url("image", image)
    return image


def is_url(image: str) -> bool:
    """Whether an `image` value is an address; anything else must be Base64."""
    return image[:8].lower().startswith(("http://", "https://"))


def _url(name: str, address: str) -> None:
    if not re.fullmatch(URL, address):
        raise Refusal(1201, f"{name} is not a valid URL")


def _ratio(body: Mapping[str, Any], side: str) -> float:
    name = f"{side}_expansion_ratio"
    value = _number(body, name, default=None)
    if not 0 <= value <= 2:
        raise Refusal(1201, f"{name} must be between 0 and 2")
    return value


def _number(body: Mapping[str, Any], name: str, *, default: float | None) -> float:
    value = body.get(name)
    value = default if value is None else value
    if value is None:
        raise Refusal(1201, f"{name} can not be null")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refusal(1201, f"{name} must be a number")
    try:
        return _finite(float(value))
    except (OverflowError, ValueError):
        raise Refusal(1201, f"{name} is out of range") from None


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(value)
    return value


def _count(body: Mapping[str, Any]) -> int:
    value = _number(body, "n", default=1)
    if not value.is_integer() or not 1 <= value <= MOST_IMAGES:
        raise Refusal(1201, f"n must be an integer between 1 and {MOST_IMAGES}")
    return int(value)


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Refusal(1201, f"{name} must be a string")
    return value


def _prompt(body: Mapping[str, Any]) -> str:
    prompt = _text(body, "prompt")
    if len(prompt) > PROMPT_LENGTH:
        raise Refusal(1201, f"prompt can not exceed {PROMPT_LENGTH} characters")
    return prompt


def _callback(body: Mapping[str, Any]) -> str:
    address = _text(body, "callback_url")
    if address:
        _url("callback_url", address)
    return address


def _watermark(body: Mapping[str, Any]) -> bool:
    info = body.get("watermark_info")
    if info is None:
        return False
    enabled = info.get("enabled") if isinstance(info, dict) else "no object"
    if enabled is not None and not isinstance(enabled, bool):
        raise Refusal(1201, "watermark_info.enabled must be a boolean")
    return bool(enabled)


def decode(image: str) -> bytes:
    """Raw Base64 → the bytes of an acceptable picture; raises Refusal 1201 naming the broken rule."""
    try:
        data = base64.b64decode(image, validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(1201, NOT_BASE64) from None
    check_image(data)
    return data


def check_image(data: bytes) -> None:
    """Raise Refusal 1201 unless size, format, sides and aspect are within the documented limits."""
    if len(data) > IMAGE_BYTES:
        raise Refusal(1201, "Image file size must not exceed 10MB")
    try:
        header = inspect(data)
    except PictureError as error:
        raise Refusal(1201, f"Image format is invalid: {error}") from None
    if min(header.width, header.height) < SHORTEST_SIDE:
        raise Refusal(1201, BAD_PIXELS)
    if max(header.width, header.height) > ASPECT * min(header.width, header.height):
        raise Refusal(1201, "Image aspect ratio must be between 1:2.5 and 2.5:1")


DIALECTS: Mapping[str, Callable[[Mapping[str, Any]], Order]] = {"editing": editing, "direction": direction}
