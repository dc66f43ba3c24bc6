"""Requests for several shapes of one photo, and named sets of shapes."""

from collections.abc import Iterable
from typing import Unpack

from attrs import evolve

from .errors import InvalidRequest
from .geometry import Geometry, ToAspect
from .models import ExpandRequest, ImageSource, RequestFields, nearest_name

# The shapes that platforms show without cropping. Public guides agreed on these in November 2026, for example
# https://tinker-tools.com/image-tools/social-image-sizes and https://ogpreview.app/guides/og-image-sizes.
SETS: dict[str, tuple[str, ...]] = {
    "instagram": ("1:1", "4:5", "1.91:1", "9:16"),  # square, portrait, landscape; stories and reels
    "youtube": ("16:9", "9:16"),  # thumbnails of videos; shorts
    "og": ("1200x630",),  # the picture of a link (Open Graph)
}


def shapes(
    photo: ImageSource, wanted: Iterable[str | Geometry], **fields: Unpack[RequestFields]
) -> list[ExpandRequest]:
    """Return a request for each *wanted* shape of *photo*, for `KlingClient.map`.

    A shape is an aspect such as ``"16:9"`` or ``"1200x630"``, a geometry, or a name in `SETS`. A repeated
    shape is requested once. *fields* are the other fields of each request. If they include a `key`, the shape
    is appended to it.

    Raises:
        InvalidRequest: if a shape is none of these, or *fields* include an `external_task_id`.
        GeometryError: if an aspect is invalid.
    """
    if fields.get("external_task_id"):
        limit = "must not be given for several shapes, because each shape is a separate task"
        raise InvalidRequest("external_task_id", fields["external_task_id"], limit)
    if isinstance(wanted, str):
        wanted = [wanted]
    found: dict[Geometry, str] = {}
    for shape in wanted:
        names = SETS.get(shape, (shape,)) if isinstance(shape, str) else (shape,)
        for name in names:
            found.setdefault(_geometry(name), str(name))
    requests = [(ExpandRequest(photo, geometry, **fields), name) for geometry, name in found.items()]
    return [evolve(each, key=f"{each.key}-{name}") if each.key else each for each, name in requests]


def _geometry(shape: str | Geometry) -> Geometry:
    if not isinstance(shape, str):
        return shape
    if shape.isalpha():
        limit = f"must be an aspect, a geometry or one of {', '.join(SETS)}"
        raise InvalidRequest("shape", repr(shape), limit, nearest_name(shape, SETS))
    return ToAspect(shape)
