"""Is a field what it should be? A body's JSON, and the numbers, texts and addresses in it."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from .codes import Refusal

_PORT = "[0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]"
_HOST = r"[A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]"
URL = f"[Hh][Tt][Tt][Pp][Ss]?://({_HOST})(:({_PORT}))?([/?#][!-~]*)?"


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


def is_url(image: str) -> bool:
    """Whether an `image` value is an address; anything else must be Base64."""
    return image[:8].lower().startswith(("http://", "https://"))


def check_url(name: str, address: str) -> None:
    """Raise Refusal 1201 unless a field is an http(s) address."""
    if not re.fullmatch(URL, address):
        raise Refusal(1201, f"{name} is not a valid URL")


def number(body: Mapping[str, Any], name: str, *, default: float | None) -> float:
    """A field that is a finite number; null counts as absent, and is refused where there is no default."""
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


def text(body: Mapping[str, Any], name: str) -> str:
    """A field that is a string; null and absent are empty."""
    value = body.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Refusal(1201, f"{name} must be a string")
    return value
