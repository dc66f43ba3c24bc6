"""Validation of requests: from the bytes of a body to one `CreateRequest`, or the documented refusal.

The rules come from the request tables of the two API documents. Existing clients send null for optional
fields and ints for floats, so both are accepted. Unknown fields are ignored.
"""

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from attrs import field, frozen

from kling_expand.emulator.painting.canvas import Ratios
from kling_expand.emulator.painting.image_headers import PictureError, inspect

from .codes import Refusal

SIDES = ("up", "down", "left", "right")
MAX_AREA = 3 + 1e-3  # the vendor's helper rounds ratios to four decimals, so it can slightly exceed 3
MAX_PROMPT_LENGTH = 2500
MAX_IMAGES = 9
MAX_IMAGE_BYTES = 10 * 1024 * 1024
MIN_SIDE = 300  # pixels
MAX_ASPECT = 2.5
INVALID_PIXELS = "Image pixel is invalid"
DIRECTION_PATTERN = "(left|right|top|bottom|all)(, ?(left|right|top|bottom|all))*"
_PORT = "[0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]"
_HOST = r"[A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]"
URL_PATTERN = f"[Hh][Tt][Tt][Pp][Ss]?://({_HOST})(:({_PORT}))?([/?#][!-~]*)?"
_SIDE_NAMES = {"top": "up", "bottom": "down", "left": "left", "right": "right"}


@frozen
class CreateRequest:
    """A valid create. `image` is raw Base64 or an http(s) URL, and `ratios` are (up, down, left, right)."""

    image: str = field(repr=False)
    ratios: Ratios
    n: int
    prompt: str
    watermark: bool
    callback_url: str
    external_task_id: str


def parse_json(raw: bytes) -> dict[str, Any]:
    """Return a body's JSON object.

    Raises:
        Refusal: if it is anything else (code 1200). NaN and Infinity are not JSON either.
    """
    try:
        body = json.loads(raw, parse_constant=_reject_constant)
    except (ValueError, RecursionError):
        raise Refusal(1200, "Invalid request parameters: the body is not JSON") from None
    if not isinstance(body, dict):
        raise Refusal(1200, "Invalid request parameters: the body is not a JSON object")
    return body


def _reject_constant(name: str) -> float:
    raise ValueError(name)


def parse_create(dialect: str, raw: bytes) -> tuple[CreateRequest, bytes]:
    """Return the request in a body and the bytes of its image, which are empty for a URL.

    Raises:
        Refusal: if a rule is broken. The code is 1200 or 1201, and the message names the rule.
    """
    request = DIALECTS[dialect](parse_json(raw))
    return request, b"" if is_url(request.image) else decode_image(request.image)


def editing(body: Mapping[str, Any]) -> CreateRequest:
    """Return the request of `POST /v1/images/editing/expand`: four required ratios in [0, 2].

    Raises:
        Refusal: if a rule is broken. The code is 1201, and the message names the rule.
    """
    image = _image(body)
    up, down, left, right = (_ratio(body, side) for side in SIDES)
    return _request(body, image, (up, down, left, right), watermark=_watermark(body))


def direction(body: Mapping[str, Any]) -> CreateRequest:
    """Return the request of `POST /v1/images/expand`: named sides, and new length / old length on each axis.

    Raises:
        Refusal: if a rule is broken. The code is 1201, and the message names the rule.
    """
    image = _image(body)
    names = body.get("direction")
    if names is None:
        raise Refusal(1201, "direction can not be null")
    if not isinstance(names, str) or not re.fullmatch(DIRECTION_PATTERN, names):
        raise Refusal(1201, "direction is invalid")
    ratio = _number(body, "expansion_ratio", default=1.5)
    if ratio < 1:
        raise Refusal(1201, "expansion_ratio must not be less than 1")
    return _request(body, image, _split_evenly(names, ratio - 1), watermark=False)


DIALECTS: Mapping[str, Callable[[Mapping[str, Any]], CreateRequest]] = {
    "editing": editing,
    "direction": direction,
}


def is_url(image: str) -> bool:
    """Return whether an `image` value is a URL. Any other value must be Base64."""
    return image[:8].lower().startswith(("http://", "https://"))


def decode_image(image: str) -> bytes:
    """Return the bytes of a raw Base64 image.

    Raises:
        Refusal: if it is not Base64 or breaks a rule of `check_image` (code 1201).
    """
    try:
        data = base64.b64decode(image, validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(1201, "File is not in a valid base64 format") from None
    check_image(data)
    return data


def check_image(data: bytes) -> None:
    """Check size, format, sides and aspect from the header of an image. No pixel is decoded.

    Raises:
        Refusal: if a rule is broken. The code is 1201, and the message names the rule.
    """
    if len(data) > MAX_IMAGE_BYTES:
        raise Refusal(1201, "Image file size must not exceed 10MB")
    try:
        header = inspect(data)
    except PictureError as error:
        raise Refusal(1201, f"Image format is invalid: {error}") from None
    if min(header.width, header.height) < MIN_SIDE:
        raise Refusal(1201, INVALID_PIXELS)
    if max(header.width, header.height) > MAX_ASPECT * min(header.width, header.height):
        raise Refusal(1201, "Image aspect ratio must be between 1:2.5 and 2.5:1")


def _split_evenly(names: str, extra: float) -> Ratios:
    named = {name.strip() for name in names.split(",")}
    sides = set(SIDES) if "all" in named else {_SIDE_NAMES[name] for name in named}
    up, down, left, right = (
        extra / len(sides & axis) if side in sides else 0.0
        for side, axis in zip(SIDES, ({"up", "down"},) * 2 + ({"left", "right"},) * 2, strict=True)
    )
    return up, down, left, right


def _request(body: Mapping[str, Any], image: str, ratios: Ratios, *, watermark: bool) -> CreateRequest:
    _check_area(ratios)
    return CreateRequest(
        image,
        ratios,
        _count(body),
        _prompt(body),
        watermark,
        _callback_url(body),
        _text(body, "external_task_id"),
    )


def _check_area(ratios: Ratios) -> None:
    up, down, left, right = ratios
    if max(ratios) > 2:
        raise Refusal(1201, "expansion ratio must be between 0 and 2")
    if max(ratios) <= 0:
        raise Refusal(1201, "at least one expansion ratio must be greater than 0")
    if (1 + up + down) * (1 + left + right) > MAX_AREA:
        raise Refusal(
            1201, "the total area of the new image must not exceed 3 times that of the original image"
        )


def _image(body: Mapping[str, Any]) -> str:
    image = _text(body, "image")
    if not image:
        raise Refusal(1201, "image can not be null")
    if is_url(image):
        _check_url("image", image)
    return image


def _ratio(body: Mapping[str, Any], side: str) -> float:
    name = f"{side}_expansion_ratio"
    value = _number(body, name, default=None)
    if not 0 <= value <= 2:
        raise Refusal(1201, f"{name} must be between 0 and 2")
    return value


def _count(body: Mapping[str, Any]) -> int:
    value = _number(body, "n", default=1)
    if not value.is_integer() or not 1 <= value <= MAX_IMAGES:
        raise Refusal(1201, f"n must be an integer between 1 and {MAX_IMAGES}")
    return int(value)


def _prompt(body: Mapping[str, Any]) -> str:
    prompt = _text(body, "prompt")
    if len(prompt) > MAX_PROMPT_LENGTH:
        raise Refusal(1201, f"prompt can not exceed {MAX_PROMPT_LENGTH} characters")
    return prompt


def _callback_url(body: Mapping[str, Any]) -> str:
    url = _text(body, "callback_url")
    if url:
        _check_url("callback_url", url)
    return url


def _watermark(body: Mapping[str, Any]) -> bool:
    info = body.get("watermark_info")
    if info is None:
        return False
    enabled = info.get("enabled") if isinstance(info, dict) else "not an object"
    if enabled is not None and not isinstance(enabled, bool):
        raise Refusal(1201, "watermark_info.enabled must be a boolean")
    return bool(enabled)


def _check_url(name: str, url: str) -> None:
    if not re.fullmatch(URL_PATTERN, url):
        raise Refusal(1201, f"{name} is not a valid URL")


def _number(body: Mapping[str, Any], name: str, *, default: float | None) -> float:
    """Return a finite number. Null counts as absent, and is refused if there is no default."""
    value = body.get(name)
    value = default if value is None else value
    if value is None:
        raise Refusal(1201, f"{name} can not be null")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refusal(1201, f"{name} must be a number")
    try:
        number = float(value)
    except OverflowError:  # an int too large for a float
        number = math.inf
    if not math.isfinite(number):
        raise Refusal(1201, f"{name} is out of range")
    return number


def _text(body: Mapping[str, Any], name: str) -> str:
    """Return a string, which is empty for null and absent values."""
    value = body.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Refusal(1201, f"{name} must be a string")
    return value
