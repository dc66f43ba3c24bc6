"""Conversion of the package's values to JSON types, also for FastAPI and pydantic.

===============================  =============================================================
a value                          becomes
===============================  =============================================================
a class of this package          an object with its public fields
an exception                     an object with its class, text and public attributes
a tuple, a set                   an array
a `Decimal`                      a number
an enum                          its value
a path, anything else            its text; a photo becomes its name, never its bytes
===============================  =============================================================
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from numbers import Number
from typing import Any

import attrs


class Serializable:
    """A base class for values that can be converted to JSON types.

    ``dict(value)`` equals ``value.to_dict()``, so a FastAPI endpoint can return the value. The class can also
    be used as a type in pydantic models and FastAPI responses.
    """

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the value as a dictionary that `json.dumps` accepts."""
        return {
            each.name: _shown(each, getattr(self, each.name))
            for each in attrs.fields(type(self))  # type: ignore[arg-type] # every subclass is an attrs class
            if not each.name.startswith("_")
        }

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(self.to_dict().items())

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> Any:
        from pydantic_core import core_schema  # imported here, because only pydantic calls this method

        written = core_schema.plain_serializer_function_ser_schema(cls.to_dict)
        return core_schema.is_instance_schema(cls, serialization=written)

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: Any, _handler: Any) -> dict[str, Any]:
        return {"type": "object", "title": cls.__name__}


def to_json(value: Any) -> Any:
    """Return *value* as JSON types: None, bool, int, float, str, list and dict."""
    match value:
        case None | bool():
            return value
        case Enum():
            return to_json(value.value)
        case str():
            return str(value)
        case Number():
            return _number(value)
        case Serializable():
            return value.to_dict()
        case _:
            return _container(value)


def _container(value: Any) -> Any:
    if isinstance(value, BaseException):
        public = {name: each for name, each in vars(value).items() if not name.startswith("_")}
        return {"type": type(value).__name__, "text": str(value), **_mapping(public)}
    value = value._asdict() if hasattr(value, "_asdict") else value
    if isinstance(value, Mapping):
        return _mapping(value)
    if attrs.has(type(value)):
        kept = (each for each in attrs.fields(type(value)) if not each.name.startswith("_"))
        fields = {each.name: _shown(each, getattr(value, each.name)) for each in kept}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, Iterable) and not hasattr(value, "read"):
        return [to_json(each) for each in value]
    return str(value)


def _shown(attribute: "attrs.Attribute[Any]", value: Any) -> Any:
    """Return a field as JSON types. If the field has a `repr` function, as a photo has, return its text."""
    return attribute.repr(value) if callable(attribute.repr) else to_json(value)


def _mapping(value: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(key): to_json(each) for key, each in value.items()}


def _number(value: Any) -> float | int | None:
    if isinstance(value, int):
        return int(value)
    try:
        number = float(value)
    except (TypeError, ValueError):  # such as a complex number or a signaling NaN
        return None
    if not math.isfinite(number):  # JSON has neither infinity nor NaN
        return None
    return number if isinstance(value, float) or not number.is_integer() else int(number)
