"""Hooks for schemathesis: a strategy for pictures, and the refusals that a schema cannot express."""

import base64
from typing import Any

import schemathesis
from hypothesis import strategies as st
from support.raw_client import SIDES, png

# Rules about several fields or calls cannot be expressed in JSON Schema, so a 400 is right for these.
FORESEEN = (
    "the total area of the new image must not exceed 3 times that of the original image",
    "at least one expansion ratio must be greater than 0",
    "expansion ratio must be between 0 and 2",
    "already exists",
    "Task not found by id/external id: ",
    # the format of `image` is our own, so data made without the strategy below are not pictures
    "File is not in a valid base64 format",
    "Image format is invalid: ",
)

schemathesis.openapi.format("kling-image", st.just(base64.b64encode(png()).decode()))


@schemathesis.hook
def map_body(_: schemathesis.HookContext, body: Any) -> Any:
    """Scale valid ratios to fit the area, as nearly every create would be refused otherwise."""
    names = [f"{side}_expansion_ratio" for side in SIDES]
    given: dict[str, Any] = body if isinstance(body, dict) else {}
    ratios = {name: given[name] for name in names if isinstance(given.get(name), int | float)}
    if len(ratios) < len(names) or not all(0 <= ratio <= 2 for ratio in ratios.values()):
        return body
    return given | {name: ratio / 6 for name, ratio in ratios.items()}


@schemathesis.check
def refused_for_a_reason(
    _: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case[Any]
) -> None:
    """Check that valid data are refused only by rules that a schema cannot express."""
    meta = case.meta
    if response.status_code != 400 or meta is None or not meta.generation.mode.is_positive:
        return
    message: Any = response.json()["message"]
    if not any(reason in message for reason in FORESEEN):
        raise AssertionError(f"good data were refused: {message}")
