"""Conversion of a task's newer form (`id`, `status`, `outputs`, `billing`) to the older one.

The vendor's newer interfaces and the console's test callback use the newer form. The names `outputs` and
`billing` are documented, but not the contents of these fields.
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from kling_expand.models import AMOUNT, MAX_IMAGES

MAX_OUTPUTS = 100  # the most outputs, and the most charges, that are read per task


_KNOWN_KEYS = {"id", "external_id", "status", "message", "create_time", "update_time", "outputs", "billing"}
_OUTPUT_KEYS = {"type", "index", "url", "watermark_url"}


def is_known(data: Mapping[str, Any]) -> bool:
    """Return whether a task in the newer form has only known fields and no `billing`.

    The fields within `billing` are not documented.
    """
    outputs = data.get("outputs")
    items = outputs[:MAX_OUTPUTS] if isinstance(outputs, list) else []
    plain = all(isinstance(item, dict) and item.keys() <= _OUTPUT_KEYS for item in items)
    return data.keys() <= _KNOWN_KEYS and plain and not data.get("billing")


def older_form(data: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a task in the newer form to the older form, which the codec reads."""
    external_id = data.get("external_id")
    return {
        "task_id": data["id"],
        "task_status": data.get("status"),
        "task_status_msg": data.get("message"),
        "task_info": {"external_task_id": external_id if isinstance(external_id, str) else None},
        "created_at": data.get("create_time"),
        "updated_at": data.get("update_time"),
        "task_result": {"images": _images(data.get("outputs"))},
        **_deductions(data.get("billing")),
    }


def _images(outputs: Any) -> list[dict[str, Any]]:
    """Return the pictures in *outputs*, a field with undocumented contents.

    If an output that may be a picture has no URL, the list is empty, so that the task is polled again. An
    incomplete list would be mistaken for the whole result.
    """
    found = outputs[:MAX_OUTPUTS] if isinstance(outputs, list) else []
    pictures = [item for item in found if _may_be_picture(item)][:MAX_IMAGES]
    if not all(_url(item.get("url")) for item in pictures):
        return []
    indexes = [item.get("index") for item in pictures]
    if not all(type(index) is int and index >= 0 for index in indexes) or len({*indexes}) < len(indexes):
        indexes = list(range(len(pictures)))
    return [
        {"index": index, "url": item["url"], "watermark_url": _url(item.get("watermark_url"))}
        for index, item in zip(indexes, pictures, strict=True)
    ]


def _may_be_picture(item: Any) -> bool:
    kind = item.get("type") if isinstance(item, dict) else "nothing"
    return not isinstance(kind, str) or not kind or kind.lower().startswith("image")


def _url(value: Any) -> str | None:
    return value if isinstance(value, str) and value.startswith(("https://", "http://")) else None


def _deductions(billing: Any) -> dict[str, Any]:
    """Return the sum of the unit charges, and the cash charge if there is exactly one.

    The sum is omitted if one of its amounts is invalid.
    """
    listed = billing[:MAX_OUTPUTS] if isinstance(billing, list) else []
    charges = [item for item in listed if isinstance(item, dict)]
    units = [_amount(item.get("amount")) for item in charges if item.get("charge_type") == "unit"]
    cash = [item for item in charges if item.get("charge_type") == "cash"]
    found: dict[str, Any] = {}
    if units and all(units):
        found["final_unit_deduction"] = str(sum(map(Decimal, filter(None, units))))
    if len(cash) == 1:
        quota, list_price = (_amount(cash[0].get(name)) for name in ("amount", "list_price"))
        found["final_balance_deduction"] = {"quota": quota, "list_price": list_price}
    return found


def _amount(value: Any) -> str | None:
    """Return *value* as a decimal string, or None if it is not a plain amount."""
    text = str(value) if isinstance(value, str | int | float) else ""
    return text if AMOUNT.fullmatch(text) else None
