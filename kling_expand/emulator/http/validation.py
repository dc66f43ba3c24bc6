"""May this task be made? A body of either dialect → one Order, or the documented refusal. Pure.

Source of the rules: the request tables of the two API documents. Nulls of optional fields count as absent and
whole floats as ints, because clients in use send both; unknown fields are ignored.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from attrs import field, frozen

from .codes import Refusal
from .fields import check_url, is_url, number, text

Ratios = tuple[float, float, float, float]

SIDES = ("up", "down", "left", "right")
LARGEST_AREA = 3 + 1e-3  # the vendor's helper rounds to four decimals and so overshoots 3 a little
PROMPT_LENGTH = 2500
MOST_IMAGES = 9
DIRECTION = "(left|right|top|bottom|all)(, ?(left|right|top|bottom|all))*"
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
    ratio = number(body, "expansion_ratio", default=1.5)
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
        text(body, "external_task_id"),
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
    image = text(body, "image")
    if not image:
        raise Refusal(1201, "image can not be null")
    if is_url(image):
        check_url("image", image)
    return image


def _ratio(body: Mapping[str, Any], side: str) -> float:
    name = f"{side}_expansion_ratio"
    value = number(body, name, default=None)
    if not 0 <= value <= 2:
        raise Refusal(1201, f"{name} must be between 0 and 2")
    return value


def _count(body: Mapping[str, Any]) -> int:
    value = number(body, "n", default=1)
    if not value.is_integer() or not 1 <= value <= MOST_IMAGES:
        raise Refusal(1201, f"n must be an integer between 1 and {MOST_IMAGES}")
    return int(value)


def _prompt(body: Mapping[str, Any]) -> str:
    prompt = text(body, "prompt")
    if len(prompt) > PROMPT_LENGTH:
        raise Refusal(1201, f"prompt can not exceed {PROMPT_LENGTH} characters")
    return prompt


def _callback(body: Mapping[str, Any]) -> str:
    address = text(body, "callback_url")
    if address:
        check_url("callback_url", address)
    return address


def _watermark(body: Mapping[str, Any]) -> bool:
    info = body.get("watermark_info")
    if info is None:
        return False
    enabled = info.get("enabled") if isinstance(info, dict) else "no object"
    if enabled is not None and not isinstance(enabled, bool):
        raise Refusal(1201, "watermark_info.enabled must be a boolean")
    return bool(enabled)


DIALECTS: Mapping[str, Callable[[Mapping[str, Any]], Order]] = {"editing": editing, "direction": direction}
