"""Every image source becomes a photo that can be sent repeatedly, or raises `ImageError`."""

import base64
import contextlib
import hashlib
import io
import os
import pickle
import struct
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from kling_expand import Dialect, ExpandRequest, Ratios
from kling_expand.api.photo import MAX_BYTES, ORIENTATION, SLICE, Photo, check_request, load_photo
from kling_expand.errors import GeometryError, ImageError, InvalidRequest

PHOTOS = sorted((Path(__file__).parents[2] / "examples" / "photos").glob("*.jpg"))
CONTENTS = {path: path.read_bytes() for path in PHOTOS}


async def sent(photo: Photo) -> bytes:
    return b"".join([piece async for piece in photo.slices()])


async def sent_until_refused(stream: AsyncIterator[bytes]) -> tuple[int, ImageError | None]:
    """Return how many bytes were read before an `ImageError`, and the error, if there was one."""
    received = 0
    try:
        async for piece in stream:
            received += len(piece)
    except ImageError as error:
        return received, error
    return received, None


async def reason(source: Any) -> str:
    with pytest.raises(ImageError) as caught:
        await load_photo(source)
    assert caught.value.field == "image"
    assert len(str(caught.value)) < 600
    return str(caught.value)


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    return Image.frombytes("L", (width, height), Random(1).randbytes(width * height)).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def png_of(size: int) -> bytes:
    """Return a PNG of exactly *size* bytes, which is padded with a private chunk."""
    picture = encoded(Image.new("L", (300, 300)))
    data = bytes(size - len(picture) - 12)
    chunk = struct.pack(">I", len(data)) + b"teSt" + data + struct.pack(">I", zlib.crc32(b"teSt" + data))
    return picture[:33] + chunk + picture[33:]


SMALL = encoded(Image.new("L", (300, 320)))
LARGE = encoded(noise(700, 500))
assert len(SMALL) < 1000
assert len(LARGE) > SLICE


class ByteNamed:
    """A path-like object that returns bytes, which some file systems need."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> bytes:
        return os.fsencode(self.path)


# Accepted sources


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(
    "wrap",
    [
        bytes,
        bytearray,
        memoryview,
        lambda content: memoryview(content).cast("B"),
        io.BytesIO,
        lambda content: io.BufferedReader(io.BytesIO(content)),
        lambda content: "data:image/png;base64," + base64.b64encode(content).decode(),
        lambda content: "DATA:;Base64," + base64.encodebytes(content).decode().rstrip("=\n"),
    ],
    ids=["bytes", "bytearray", "memoryview", "cast", "file", "buffered", "data", "data-untidy"],
)
async def test_every_kind_of_source_sends_the_same_photo(
    content: bytes, wrap: Callable[[bytes], Any]
) -> None:
    """Every kind of source gives the same size, digest and body, however often it is sent."""
    photo = await load_photo(wrap(content))
    with Image.open(io.BytesIO(content)) as image:
        assert (photo.format, photo.width, photo.height) == ("PNG", *image.size)
    assert (photo.size, photo.digest) == (len(content), hashlib.sha256(content).hexdigest())
    for _ in range(2):
        assert await sent(photo) == base64.b64encode(content)
    assert photo.encoded_length == len(base64.b64encode(content))


@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.name)
@pytest.mark.parametrize("kind", [Path, str, ByteNamed])
async def test_a_file_is_read_when_it_is_sent(path: Path, kind: Callable[[Path], Any]) -> None:
    """A path of any type is accepted. The file is read when it is sent, and is not kept in the photo."""
    photo = await load_photo(kind(path))
    with Image.open(path) as image:
        assert (photo.format, photo.width, photo.height) == ("JPEG", *image.size)
    assert await sent(photo) == base64.b64encode(CONTENTS[path])
    assert len(pickle.dumps(photo)) < 1000


async def test_the_content_decides_the_format(tmp_path: Path) -> None:
    """The content decides the format, not the file name."""
    path = tmp_path / "photo.webp"
    path.write_bytes(SMALL)
    assert (await load_photo(path)).format == "PNG"


@given(st.integers(0, 3 * SLICE + 3))
@settings(max_examples=25, deadline=None)
async def test_slices_of_bytes_join_to_their_base64(extra: int) -> None:
    """The slices of bytes of any length join to their Base64 text."""
    content = png_of(len(SMALL) + 600 + extra)
    photo = await load_photo(content)
    assert await sent(photo) == base64.b64encode(content)
    assert photo.encoded_length == len(await sent(photo))


@given(st.integers(0, 3 * SLICE + 3))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_slices_of_a_file_join_to_its_base64(tmp_path: Path, extra: int) -> None:
    """The slices of a file join to its Base64 text, and each has a bounded size."""
    path = tmp_path / "photo.png"
    path.write_bytes(png_of(len(SMALL) + 600 + extra))
    photo = await load_photo(path)
    pieces = [piece async for piece in photo.slices()]
    assert b"".join(pieces) == base64.b64encode(path.read_bytes())
    assert max(map(len, pieces)) <= SLICE * 4 // 3


async def test_a_partly_sent_body_can_be_sent_again() -> None:
    """After an iteration that stopped early, the next one starts from the beginning."""
    photo = await load_photo(PHOTOS[0])
    stream = photo.slices()
    first = await anext(stream)
    await stream.aclose()
    assert (await sent(photo)).startswith(first)


async def test_a_file_object_is_read_from_its_current_position() -> None:
    """A file object is read from its current position to its end, even if each read returns little."""

    class Dripping(io.BytesIO):
        def read(self, amount: int | None = -1) -> bytes:
            return super().read(min(amount or 1, 1000))

    file = Dripping(b"prefix" + LARGE)
    file.seek(6)
    assert await sent(await load_photo(file)) == base64.b64encode(LARGE)


async def test_a_bytearray_is_copied() -> None:
    """A bytearray that is overwritten after loading is sent with its original content."""
    source = bytearray(SMALL)
    photo = await load_photo(source)
    source[:] = bytes(len(source))
    assert await sent(photo) == base64.b64encode(SMALL)


@pytest.mark.parametrize(
    "url",
    ["https://example.com/dog.png", "HTTP://example.com:8080/a?b=c&d=%20", "http://[::1]/ä.jpg"],
)
async def test_a_url_is_sent_as_it_is(url: str) -> None:
    """A URL is neither fetched nor encoded, and its size is unknown."""
    photo = await load_photo(url)
    assert (photo.url, photo.name, await sent(photo)) == (url, url, url.encode())
    assert photo.encoded_length == len(url.encode())
    assert (photo.width, photo.height, photo.format, photo.size) == (None, None, None, None)
    assert photo.digest == hashlib.sha256(url.encode()).hexdigest()


@pytest.mark.parametrize(
    "url",
    [
        "https://",
        "http:///a.png",
        'https://a.com/"',
        "https://a.com/a b",
        "https://a.com/\\",
        "http://[::1/a",
        "https://a.com/\n",
        "https://a.com/\x00",
        "https://a.com/" + chr(0xD800),
    ],
)
async def test_an_invalid_url_is_refused(url: str) -> None:
    """A URL without a host, or with spaces, quotes or control characters, is refused."""
    assert "must be a well-formed URL" in (await reason(url)).encode(errors="replace").decode()


# PIL images


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "F", "I", "I;16"]
)
async def test_a_pil_image_of_any_mode_is_sent_as_png(mode: str) -> None:
    """A mode that PNG does not support is converted, and the pixels are kept."""
    image = noise(320, 300, "L").convert(mode)
    photo = await load_photo(image)
    assert (photo.format, photo.width, photo.height) == ("PNG", 320, 300)
    with Image.open(io.BytesIO(base64.b64decode(await sent(photo)))) as back:
        expected = image.convert("RGB") if mode not in {"I", "F", "I;16"} else None
        assert expected is None or back.convert("RGB").tobytes() == expected.tobytes()


async def test_a_pil_image_keeps_its_transparency() -> None:
    """An image with premultiplied alpha keeps its transparency as a PNG."""
    image = Image.new("RGBA", (300, 300), (10, 20, 30, 0)).convert("RGBa")
    photo = await load_photo(image)
    with Image.open(io.BytesIO(base64.b64decode(await sent(photo)))) as back:
        assert back.mode == "RGBA"


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
async def test_a_pil_image_read_from_jpeg_stays_jpeg(mode: str) -> None:
    """An image read from JPEG stays JPEG, because its PNG would often exceed 10 MB."""
    with Image.open(io.BytesIO(encoded(noise(400, 300, mode), "JPEG"))) as image:
        photo = await load_photo(image)
    assert (photo.format, photo.width, photo.height) == ("JPEG", 400, 300)


@pytest.mark.parametrize("word", ["JPEG", "MPO"])
async def test_a_jpeg_that_was_converted_in_place_is_still_sent(word: str) -> None:
    """An image that Pillow still calls JPEG is sent, even if JPEG does not support its mode."""
    image = noise(300, 300, "RGBA")
    image.format = word
    assert (await load_photo(image)).format == "JPEG"


async def test_a_pil_image_rotated_upright_is_sent_upright() -> None:
    """An image that was rotated upright is sent with its upright size."""
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(io.BytesIO(encoded(noise(400, 300), "JPEG", exif=exif))) as image:
        photo = await load_photo(ImageOps.exif_transpose(image))
    assert (photo.width, photo.height) == (300, 400)


async def back(source: Any) -> Image.Image:
    """Return the image that is sent for *source*."""
    return Image.open(io.BytesIO(base64.b64decode(await sent(await load_photo(source)))))


def ramp(low: float, high: float, mode: str) -> Image.Image:
    """Return an image with values that increase from *low* on the left to *high* on the right."""
    row = Image.new("F", (512, 1))
    row.putdata([low + (high - low) * column / 511 for column in range(512)])
    wide = row.resize((512, 300), Image.Resampling.NEAREST)
    return wide if mode == "F" else wide.convert("I") if mode == "I" else wide.convert("I").convert(mode)


@pytest.mark.parametrize(
    ("low", "high", "mode", "darkest", "brightest"),
    [
        (0, 65535, "I;16", 0, 255),
        (0, 32768, "I;16", 0, 128),
        (0, 65535, "I;16B", 0, 255),
        (0, 65535, "I", 0, 255),
        (0, 255, "I", 0, 255),
        (0, 100, "I", 0, 100),
        (-1000, 1000, "I", 0, 255),
        (0, 100_000, "I", 0, 255),
        (0, 1, "F", 0, 255),
        (0, 0.5, "F", 0, 128),
        (0, 255, "F", 0, 255),
        (0, 65535, "F", 0, 255),
        (-1, 1, "F", 0, 255),
        (0, 1e9, "F", 0, 255),
    ],
)
async def test_more_than_eight_bits_are_scaled(
    low: float, high: float, mode: str, darkest: int, brightest: int
) -> None:
    """A ramp from dark to bright keeps its order and enough levels, and is not clipped."""
    gray = await back(ramp(low, high, mode))
    assert gray.getextrema() == (darkest, brightest)
    row = list(gray.tobytes()[:512])
    assert row == sorted(row)
    assert len({*row}) >= min(brightest - darkest, 200)
    assert row.count(brightest) < 20


@pytest.mark.parametrize("value", [0.0, 0.25, 1.0, 300.0, -5.0])
async def test_an_image_with_a_single_value_is_sent(value: float) -> None:
    """An image with a single value does not cause a division by zero."""
    assert (await back(Image.new("F", (300, 300), value))).mode == "L"


async def test_infinite_values_are_refused() -> None:
    """An image with infinite values is refused."""
    assert "must contain only finite numbers" in await reason(Image.new("F", (300, 300), float("inf")))


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GRAY_PROFILE = PROFILE[:16] + b"GRAY" + PROFILE[20:]


@pytest.mark.parametrize("turned", [1, 3, 6, 8])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
async def test_a_pillow_image_is_sent_like_its_file(
    turned: int, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An image keeps the size, orientation and profile of its file. A rotated JPEG causes a warning."""
    exif = Image.Exif()
    exif[ORIENTATION] = turned
    path = tmp_path / "photo"
    path.write_bytes(encoded(Image.new("RGB", (400, 300)), kind, exif=exif, icc_profile=PROFILE))
    with Image.open(path) as image:
        for source in (path, image):
            found = await back(source)
            assert (found.size, found.getexif().get(ORIENTATION, 1)) == ((400, 300), turned)
            assert found.info["icc_profile"] == PROFILE
    assert caplog.text.count("is rotated by its EXIF data") == (2 if kind == "JPEG" and turned > 1 else 0)


@pytest.mark.parametrize(
    ("mode", "made", "kept"),
    [
        ("RGB", "RGB", True),
        ("RGBA", "RGBA", True),
        ("L", "L", False),
        ("CMYK", "RGB", False),
        ("HSV", "RGB", True),
    ],
)
async def test_a_profile_for_other_channels_is_dropped(mode: str, made: str, *, kept: bool) -> None:
    """A profile for other channels is dropped, because it would change the colors."""
    image = Image.new("RGB", (300, 300)).convert(mode)
    image.info["icc_profile"] = PROFILE[:16] + b"CMYK" + PROFILE[20:] if mode == "CMYK" else PROFILE
    found = await back(image)
    assert (found.mode, "icc_profile" in found.info) == (made, kept)
    gray = Image.new("L", (300, 300))
    gray.info["icc_profile"] = GRAY_PROFILE
    assert (await back(gray)).info["icc_profile"] == GRAY_PROFILE


async def test_a_pillow_image_is_not_changed() -> None:
    """The caller's image has the same mode, pixels and `info` afterwards."""
    image = ramp(0, 65535, "I;16")
    image.info["icc_profile"] = PROFILE
    before = image.tobytes(), image.mode, dict(image.info)
    await load_photo(image)
    assert (image.tobytes(), image.mode, dict(image.info)) == before


async def test_a_pil_image_is_checked_before_it_is_encoded() -> None:
    """A PIL image that is too small, too narrow or truncated raises `ImageError`."""
    assert "320x200" in await reason(noise(320, 200))
    assert "1:2.5" in await reason(noise(800, 300))
    with Image.open(io.BytesIO(LARGE[:-5000])) as image:
        assert "Pillow cannot encode it" in await reason(image)


# Refused sources


@pytest.mark.parametrize(
    ("size", "passes"),
    [
        ((300, 300), True),
        ((299, 300), False),
        ((300, 299), False),
        ((750, 300), True),
        ((300, 750), True),
        ((751, 300), False),
        ((300, 751), False),
        ((2500, 1000), True),
        ((1000, 2501), False),
    ],
)
async def test_the_limits_of_size_and_shape_are_inclusive(size: tuple[int, int], passes: bool) -> None:  # noqa: FBT001  (a table's column)
    """300 pixels and 2.5:1 are allowed, and one pixel beyond these limits is refused."""
    content = encoded(Image.new("1", size))
    if passes:
        assert ((await load_photo(content)).width, (await load_photo(content)).height) == size
    else:
        assert f"{size[0]}x{size[1]} pixels" in await reason(content)


async def test_a_photo_has_at_most_ten_mebibytes(tmp_path: Path) -> None:
    """10 MiB are allowed, and one byte more is refused, for every kind of source."""
    path = tmp_path / "large.png"
    most = png_of(MAX_BYTES)
    path.write_bytes(most)
    assert (await load_photo(path)).size == (await load_photo(most)).size == MAX_BYTES
    above = most + b"\x00"
    path.write_bytes(above)
    uri = "data:image/png;base64," + base64.b64encode(above).decode()
    for source in (path, above, io.BytesIO(above), io.BytesIO(above * 3), uri):
        assert f"at most 10 MB ({MAX_BYTES} bytes)" in await reason(source)


async def test_reading_stops_beyond_the_size_limit() -> None:
    """Reading stops one byte beyond the limit."""

    class Endless:
        given = 0

        def read(self, amount: int) -> bytes:
            self.given += amount
            return bytes(amount)

    source = Endless()
    assert "at most 10 MB" in await reason(source)
    assert source.given == MAX_BYTES + 1


async def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A missing file is named, and any other unreadable file has an error with its cause."""
    missing = await reason("no-such-dog.png")
    assert "'no-such-dog.png'" in missing
    assert "no such file" in missing
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    assert "no such file" in await reason(tmp_path / "empty" / "dog.png")
    assert "cannot be read" in await reason(tmp_path / "loop")
    assert "must not be empty" in await reason(tmp_path / "empty")
    assert "directory" in await reason(tmp_path)
    assert "pipe" in await reason(str(tmp_path / "pipe"))
    assert "cannot be read" in await reason("a\x00b")
    assert "cannot be read" in await reason("x" * 300)
    assert "no such file" in await reason("")


@pytest.mark.parametrize(
    "url", ["ftp://example.com/dog.png", "file:///dog.png", "s3://bucket/dog.png", "https:/a"]
)
async def test_only_http_urls_are_accepted(url: str) -> None:
    """Only http and https URLs are accepted, because the service fetches no others."""
    assert "must be a file or an http or https URL" in await reason(url)


@pytest.mark.parametrize("content", [SMALL, LARGE, CONTENTS[PHOTOS[0]]], ids=["small", "large", "photo"])
async def test_base64_text_is_not_taken_for_a_path(content: bytes) -> None:
    """Base64 text given as a path raises an error that explains the mistake without repeating the text."""
    text = base64.b64encode(content).decode()
    assert "must not be Base64 text" in await reason(text)
    assert "Base64 text" in await reason(text.encode())


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("data:image/png;base64", "must have the form"),
        ("data:image/png,abc", "must have the form"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png;base64,!!!!", "must hold valid Base64"),
        ("data:image/png;base64,iVBORw0KGgä", "must hold valid Base64"),
        ("data:image/png;base64,A", "must hold valid Base64"),
        ("data:image/png;base64,aGVsbG8=", "must be PNG or JPEG"),
    ],
)
async def test_a_data_uri_is_validated(uri: str, expected: str) -> None:
    """The prefix, the Base64 text and the content of a data: URI are all checked."""
    assert expected in await reason(uri)


class Faulty:
    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome

    def read(self, _amount: int) -> Any:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


class Asynchronous:
    async def read(self, _amount: int) -> bytes:
        raise AssertionError("this is never awaited")


async def test_a_file_that_does_not_give_bytes_is_refused() -> None:
    """A text file, an asynchronous file, and a closed or failing file are refused."""
    closed = io.BytesIO(SMALL)
    closed.close()
    assert "mode 'rb'" in await reason(io.StringIO("text"))
    assert "coroutine" in await reason(Asynchronous())
    assert "closed file" in await reason(closed)
    assert "disk on fire" in await reason(Faulty(OSError("disk on fire")))
    assert "bad zip" in await reason(Faulty(RuntimeError("bad zip")))
    assert "int" in await reason(Faulty(5))
    assert "empty" in await reason(Faulty(None))


@pytest.mark.parametrize(
    "source", [None, 3, 3.5, [1, 2], {"image": 1}, object(), b"", bytearray(), io.BytesIO()]
)
async def test_any_other_source_is_refused(source: object) -> None:
    """Any other source raises `ImageError`. An integer is not used as a file descriptor."""
    assert "image" in await reason(source)


@given(
    st.one_of(
        st.text(max_size=40), st.binary(max_size=200), st.text(max_size=20).map("data:{};base64,".format)
    )
)
@settings(deadline=None)
async def test_any_text_or_bytes_give_a_photo_or_an_image_error(source: str | bytes) -> None:
    """Any text or bytes lead to a photo or an `ImageError`."""
    with contextlib.suppress(ImageError):
        assert isinstance(await load_photo(source), Photo)


@given(st.sampled_from(PHOTOS), st.floats(0, 1, exclude_max=True))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_a_truncated_file_is_refused(tmp_path: Path, photo: Path, part: float) -> None:
    """A photo whose download was cut off is refused before it costs anything."""
    content = CONTENTS[photo]
    path = tmp_path / "cut.jpg"
    path.write_bytes(content[: int(part * len(content))])
    assert "image" in await reason(path)


# Files that change after the check


@pytest.mark.parametrize(
    "change",
    [
        lambda path, content: path.write_bytes(content[:-1]),
        lambda path, content: path.write_bytes(content + b"\x00"),
        lambda path, content: path.write_bytes(content[:900] + b"\x00\x01\x02" + content[903:]),
        lambda path, content: path.write_bytes(content[:-1] + b"\x00"),
        lambda path, _content: path.unlink(),
    ],
    ids=["shorter", "longer", "altered", "last-byte", "gone"],
)
async def test_a_file_that_changed_is_never_sent_completely(
    tmp_path: Path, change: Callable[[Path, bytes], Any]
) -> None:
    """A file that changed after the check raises `ImageError` before the last slice."""
    path = tmp_path / "photo.png"
    path.write_bytes(LARGE)
    photo = await load_photo(path)
    change(path, LARGE)
    received, error = await sent_until_refused(photo.slices())
    assert "changed" in str(error) or "no longer be read" in str(error)
    assert received < photo.encoded_length


async def test_a_file_that_changes_while_it_is_sent_is_noticed(tmp_path: Path) -> None:
    """A change during sending raises `ImageError`, even in bytes that were already sent."""
    path = tmp_path / "photo.png"
    path.write_bytes(LARGE)
    stream = (await load_photo(path)).slices()
    await anext(stream)
    path.write_bytes(LARGE[:-9] + bytes(9))
    _, error = await sent_until_refused(stream)
    assert "changed" in str(error)


async def test_a_file_replaced_by_the_same_bytes_is_sent(tmp_path: Path) -> None:
    """Only the content counts, not the modification time."""
    path = tmp_path / "photo.png"
    path.write_bytes(LARGE)
    photo = await load_photo(path)
    path.unlink()
    path.write_bytes(LARGE)
    assert await sent(photo) == base64.b64encode(LARGE)


# Cost, equality and representation


async def test_equal_photos_compare_equal_and_show_no_content() -> None:
    """Photos are compared by digest, and their `repr` is one line without content."""
    first, second = await load_photo(LARGE), await load_photo(bytearray(LARGE))
    assert first == second
    assert hash(first) == hash(second)
    assert len(repr(first)) < 400


def test_pillow_is_not_imported_and_pybase64_is_used_if_installed(tmp_path: Path) -> None:
    """Loading a photo needs no extra, and `pybase64` is used if it is installed."""
    (tmp_path / "pybase64.py").write_text(
        "import base64\nused = 0\n"
        "def b64encode(data):\n    global used\n    used += 1\n    return base64.b64encode(data)\n"
    )
    program = (
        "import asyncio, sys\nfrom kling_expand.api.photo import load_photo\n"
        "async def main():\n"
        "    photo = await load_photo(sys.argv[1])\n"
        "    body = b''.join([piece async for piece in photo.slices()])\n"
        "    assert len(body) == photo.encoded_length\n"
        "asyncio.run(main())\n"
        "assert 'PIL' not in sys.modules\nimport pybase64\nassert pybase64.used\n"
    )
    roots = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(PHOTOS[0])],
        check=True,
        env={**os.environ, "PYTHONPATH": roots},
    )


def test_a_request_is_checked_without_a_client(tmp_path: Path) -> None:
    """The canvas of a valid request is returned. A broken photo or an unsuitable geometry is refused."""
    portrait = tmp_path / "tall.png"
    Image.new("RGB", (450, 800)).save(portrait)
    canvas = check_request(ExpandRequest(portrait, "1:1"))
    assert canvas is not None
    assert (canvas.width, canvas.height) == (800, 800)
    with pytest.raises(GeometryError, match="use passes=2"):
        check_request(ExpandRequest(portrait, "16:9"))
    wide = check_request(ExpandRequest(portrait.read_bytes(), "16:9"), passes=2)
    assert wide is not None
    assert round(wide.width / wide.height, 2) == 1.78
    assert check_request(ExpandRequest("https://photos.example/a.png", Ratios(up=1))) is None
    with pytest.raises(InvalidRequest, match="must be Towards"):
        check_request(ExpandRequest(portrait, "1:1"), dialect=Dialect.DIRECTION)
    portrait.write_bytes(portrait.read_bytes()[:-30])
    with pytest.raises(ImageError, match="incomplete"):
        check_request(ExpandRequest(portrait, "1:1"))
