"""Format and size from the headers of PNG and JPEG files."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sample_pictures import claimed, photo, saved

from kling_expand.emulator.painting.image_headers import Header, PictureError, inspect


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"comment": b"x" * 3000}])
def test_the_header_of_a_jpeg_is_read(options: dict[str, object]) -> None:
    """The format and the size agree with Pillow, whatever precedes the frame."""
    assert Header("jpeg", 61, 37) == inspect(saved(photo(61, 37), "JPEG", **options))


def test_the_header_of_a_png_is_read() -> None:
    """The format and the size agree with Pillow, and trailing bytes are ignored."""
    assert Header("png", 61, 37) == inspect(saved(photo(61, 37)) + b"trailing")


def test_jpeg_markers_may_be_padded() -> None:
    """Fill bytes and bare markers before a segment are allowed."""
    data = saved(photo(61, 37), "JPEG")
    assert Header("jpeg", 61, 37) == inspect(data[:2] + b"\xff\x01\xff\xff" + data[2:])


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_file_cut_off_anywhere_is_refused(kind: str) -> None:
    """No prefix of a picture is accepted."""
    data = saved(photo(24, 16), kind)
    for end in range(len(data) - 1):
        with pytest.raises(PictureError):
            inspect(data[:end])


@given(st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"]))
def test_other_bytes_raise_picture_error(body: bytes, start: bytes) -> None:
    """Bytes of any other kind raise PictureError, and no other exception."""
    with pytest.raises(PictureError):
        inspect(start + body)


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_a_picture_without_pixels_is_refused(size: tuple[int, int]) -> None:
    """A side of zero pixels is refused."""
    with pytest.raises(PictureError, match="pixels"):
        inspect(claimed(*size))
