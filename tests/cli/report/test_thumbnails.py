"""Thumbnails: the small pictures on the page."""

import base64
import io
from pathlib import Path

from PIL import Image
from support.sample_pictures import claimed

from kling_expand.cli.report.thumbnails import Thumbnails


def test_thumbnails_of_transparent_and_invalid_pictures(tmp_path: Path) -> None:
    """Transparent pixels become white. A file that is not a picture has no thumbnail."""
    Image.new("RGBA", (400, 300), (0, 0, 0, 0)).save(tmp_path / "a.png")
    small = Thumbnails(100).make(str(tmp_path / "a.png"))
    assert small is not None
    assert (small.width, small.height) == (400, 300)
    with Image.open(io.BytesIO(base64.b64decode(small.uri.partition(",")[2]))) as image:
        assert (image.size, image.getpixel((5, 5))) == ((100, 75), (255, 255, 255))
    (tmp_path / "b.png").write_bytes(b"\x89PNG nonsense")
    (tmp_path / "c.png").write_bytes(claimed(13_000, 13_000))  # too many pixels to hold in several threads
    names = (str(tmp_path / "b.png"), str(tmp_path / "c.png"), "https://x.org/a.png", "gone")
    assert [Thumbnails(9).make(name) for name in names] == [None] * 4
