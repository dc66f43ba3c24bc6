"""Which JSON goes in and comes out? Schemas of both dialects, neither wider nor narrower."""

from typing import Any

from .codes import CODES
from .fields import URL
from .validation import DIRECTION, MOST_IMAGES, PROMPT_LENGTH, SIDES

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
MILLISECONDS: Schema = {"type": "integer", "minimum": 0, "description": "Unix time in ms"}
TASK_ID: Schema = {"type": "string", "pattern": "^[0-9]{18}$"}
ADDRESS: Schema = {"type": "string", "format": "uri"}


def _object(properties: Schema, *, optional: tuple[str, ...] = ()) -> Schema:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


_COMMON: Schema = {
    "image": {
        "type": "string",
        "minLength": 1,
        "format": "kling-image",
        "description": "An http(s) URL, or raw Base64 without any prefix: PNG or JPEG, at most 10 MB, "
        "each side at least 300 px, aspect between 1:2.5 and 2.5:1",
    },
    "prompt": {"type": ["string", "null"], "maxLength": PROMPT_LENGTH},
    "n": {"type": ["integer", "null"], "minimum": 1, "maximum": MOST_IMAGES, "default": 1},
    "callback_url": {"type": ["string", "null"], "pattern": f"^({URL})?$"},
    "external_task_id": {"type": ["string", "null"], "description": "Unique in the account; empty: none"},
}
_RATIO: Schema = {
    "type": "number",
    "minimum": 0,
    "maximum": 2,
    "description": "In heights (up, down) or widths (left, right) of the original; the new area is at most "
    "3 times the old one, and not all four are 0",
}

EDITING_REQUEST: Schema = _object(
    {f"{side}_expansion_ratio": _RATIO for side in SIDES}
    | _COMMON
    | {
        "watermark_info": {
            "type": ["object", "null"],
            "properties": {"enabled": {"type": ["boolean", "null"]}},
        }
    },
    optional=("prompt", "n", "callback_url", "external_task_id", "watermark_info"),
)
DIRECTION_REQUEST: Schema = _object(
    _COMMON
    | {
        "direction": {"type": "string", "pattern": f"^({DIRECTION})$"},
        "expansion_ratio": {
            "type": ["number", "null"],
            "minimum": 1,
            "maximum": 3,
            "default": 1.5,
            "description": "New length ÷ old length on every touched axis, split evenly over its named "
            "sides; the same limits as for four ratios",
        },
    },
    optional=("prompt", "n", "callback_url", "external_task_id", "expansion_ratio"),
)


def task(*, seed: bool, succeeded: bool) -> Schema:
    """A task in a query or list."""
    image = _object(
        {"index": {"type": "integer", "minimum": 0, "maximum": 8}, "url": ADDRESS, "watermark_url": ADDRESS},
        optional=("watermark_url",),
    )
    result = _object({"images": {"type": "array", "items": image, "minItems": 1, "maxItems": MOST_IMAGES}})
    properties: Schema = created(succeeded=succeeded)["properties"] | {
        "task_status_msg": TEXT,
        "watermark_info": _object({"enabled": {"type": "boolean"}}),
        "task_result": result,
        "final_unit_deduction": {"type": "string", "pattern": "^[0-9]+$"},
    }
    optional = ["task_result", "final_unit_deduction"]
    if not seed:
        properties["final_balance_deduction"] = _object({"quota": TEXT, "list_price": TEXT})
        optional.append("final_balance_deduction")
    return _object(properties, optional=tuple(optional))


def created(*, succeeded: bool) -> Schema:
    """A task in the answer to its create."""
    done = "succeeded" if succeeded else "succeed"
    return _object(
        {
            "task_id": TASK_ID,
            "task_info": _object({"external_task_id": TEXT}),
            "task_status": {"enum": ["submitted", "processing", done, "failed"]},
            "created_at": MILLISECONDS,
            "updated_at": MILLISECONDS,
        }
    )


def answer(data: Schema) -> Schema:
    """The envelope of an answer."""
    return _object(
        {
            "code": {"const": 0},
            "message": {"const": "SUCCEED"},
            "request_id": {"type": "string", "format": "uuid"},
        }
        | {"data": data}
    )


def refusal(status: int) -> Schema:
    """The envelope of the refusals that come under an HTTP status."""
    codes = [code for code, (http, _) in CODES.items() if http == status]
    return _object(
        {"code": {"enum": codes}, "message": TEXT, "request_id": {"type": "string", "format": "uuid"}}
    )
