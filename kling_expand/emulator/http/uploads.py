"""May this image be expanded? Size, format, sides and aspect are read from its bytes; no pixel is decoded."""

import base64
import binascii

from kling_expand.emulator.painting.image_headers import PictureError, inspect

from .codes import Refusal

IMAGE_BYTES = 10 * 1024 * 1024
SHORTEST_SIDE = 300
ASPECT = 2.5
NOT_BASE64 = "File is not in a valid base64 format"
BAD_PIXELS = "Image pixel is invalid"


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
