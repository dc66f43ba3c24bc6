"""What does a row ask for? Its fields over the command's options: a request that was checked, or a reason."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import urlsplit

import click
from attrs import frozen

from kling_expand.cli.geometry import EXTRAS, OPTIONS, SIDES, WAYS, geometry_of
from kling_expand.errors import InvalidRequest
from kling_expand.geometry import Geometry
from kling_expand.models import ExpandRequest

from .manifest import Entry, Manifest

_TRUE, _FALSE = {"true", "yes", "1"}, {"false", "no", "0"}


@frozen
class Defaults:
    """What counts where a row says nothing: the options of the command."""

    geometry: dict[str, Any]
    prompt: str | None = None
    n: int = 1
    watermark: bool = False


@frozen
class Row:
    """One job to be: `request`, or the `error` that there is none.

    Its results are called `name` if no other row has that name too, and else `name` with `tag`, which
    only depends on what is asked for.
    """

    line: int
    label: str
    name: str = ""
    tag: str = ""
    request: ExpandRequest | None = None
    error: str | None = None


def rows(manifest: Manifest, defaults: Defaults) -> Iterator[Row]:
    """Every row of the manifest, one at a time."""
    return (_row(entry, manifest, defaults) for entry in manifest.entries())


def _row(entry: Entry, manifest: Manifest, defaults: Defaults) -> Row:
    fields = {
        name: value
        for name, value in entry.fields.items()
        if value is not None and value != "" and not name.startswith("_")
    }
    label = manifest.label(entry.line, str(fields.get("image", "no image")))
    if entry.error:
        return Row(entry.line, label, error=entry.error)
    try:
        request = _request(fields, manifest.folder, defaults)
        name = _text(fields, "name") or stem(str(request.image))
    except click.UsageError as error:  # the options' own words, of columns
        return Row(entry.line, label, error=error.format_message().replace("--", ""))
    except InvalidRequest as error:
        return Row(entry.line, label, error=error.message)
    tag = hashlib.sha256(repr(request).encode(errors="surrogateescape")).hexdigest()[:8]
    return Row(entry.line, label, name, tag, request)


def stem(photo: str) -> str:
    """The name of a photo's file or URL, without its ending."""
    return PurePath(urlsplit(photo).path if "://" in photo else photo).stem or "photo"


def _request(fields: dict[str, Any], folder: Path, defaults: Defaults) -> ExpandRequest:
    image = _text(fields, "image")
    if image is None:
        raise InvalidRequest("image", "nothing", "a path or a URL is needed")
    return ExpandRequest(
        image if "://" in image else str(folder / image),
        _geometry(fields, defaults.geometry),
        _text(fields, "prompt") or defaults.prompt,
        n=_read(fields, "n", int, "a whole number is needed", defaults.n),
        watermark=_read(fields, "watermark", _truth, "true or false is needed", defaults.watermark),
        key=_text(fields, "key"),
    )


def _geometry(fields: dict[str, Any], defaults: dict[str, Any]) -> Geometry:
    """A row that says how far, says it alone; only what the options say beside that way still counts."""
    own = {name: _option(fields, name) for name in OPTIONS if name in fields}
    usual = {name: value for name, value in defaults.items() if value is not None}
    ways = own.keys() & set(WAYS)
    if ways:
        usual = {name: value for name, value in usual.items() if ways & set(EXTRAS.get(name, ()))}
    return geometry_of(**(dict.fromkeys(OPTIONS) | usual | own))


def _option(fields: dict[str, Any], name: str) -> Any:
    if name in {*SIDES, "area", "ratio"}:
        return _read(fields, name, float, "a number is needed", None)
    return _text(fields, name)


def _read(fields: dict[str, Any], name: str, kind: Callable[[str], Any], limit: str, default: Any) -> Any:
    text = _text(fields, name)
    if text is None:
        return default
    try:
        return kind(text)
    except ValueError:
        raise InvalidRequest(name, repr(fields[name]), limit) from None


def _text(fields: dict[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str | int | float):
        raise InvalidRequest(name, repr(value), "text or a number is needed")
    return None if value is None else str(value)


def _truth(text: str) -> bool:
    if text.lower() not in _TRUE | _FALSE:
        raise ValueError(text)
    return text.lower() in _TRUE
