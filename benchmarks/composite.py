"""The correctness of composites of large photos, and their cost compared with a plain script.

    python -m benchmarks.composite --json

Five photos of at least 12 megapixels are each cut from the middle of a known frame. One has a P3 profile, and
one is rotated by EXIF. The emulator expands each photo to its frame, with the content shifted and scaled
(`misregister`), and `composite` puts the photo back:

  - *identical*: whether the photo's pixels are unchanged inside their box.
  - *seam*: the median step across the seam, as a multiple of the steps around it; at most 1.5.
  - *registration error*: the largest error of the four edges, in pixels of the picture; below 0.5. It is
    measured on an ideal picture, in which the exact position of the photo is known: the frame, scaled down
    and misregistered.

Then a photo of `--megapixels` is put back by `composite` and by a script of six lines with Pillow, each in a
process of its own on one core. CPU time covers everything from reading the files to the finished image. The
peak is the highest resident memory of the process.
"""

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from benchmarks.large_photos import LargePhoto, large_photos, stored, texture
from benchmarks.reporting import finish, interleaved, medians, options, peak_memory, table
from kling_expand import Ratios
from kling_expand.emulator.painting.pictures import misregistered, outpaint
from kling_expand.geometry import Canvas

RATIOS = Ratios(0.1, 0.1, 0.25, 0.25)
MISREGISTER = "1.3,-0.8,1.003"
REACH = 8  # pixels on each side of the seam that count as its surroundings


def seam_ratio(image: Any, box: tuple[int, int, int, int]) -> float:
    """Return the median step across the edges of a box, divided by the median step beside them.

    A step is the difference of brightness between two adjacent lines. An edge of the image is not a seam.
    """
    gray = np.asarray(image.convert("F"), np.float32)
    left, top, right, bottom = box
    lines = []
    for edge, last, across in (
        (top, image.height, gray[:, left:right]),
        (bottom, image.height, gray[:, left:right]),
        (left, image.width, gray[top:bottom].T),
        (right, image.width, gray[top:bottom].T),
    ):
        if 0 < edge < last:
            steps = np.abs(np.diff(across[max(0, edge - REACH) : edge + REACH], axis=0))
            at = min(edge, REACH) - 1
            lines.append((steps[at], np.delete(steps, at, axis=0)))
    seam = np.median(np.concatenate([at for at, _ in lines]))
    around = np.median(np.concatenate([beside.ravel() for _, beside in lines]))
    return float(seam / max(float(around), 0.5))


def middle(frame: Image.Image) -> tuple[Image.Image, Canvas]:
    """Return the part of a frame that `RATIOS` expand to the whole frame, and its canvas."""
    width, height = round(frame.width / 1.5), round(frame.height / 1.2)
    left, top = round(width * RATIOS.left), round(height * RATIOS.up)
    return frame.crop((left, top, left + width, top + height)), RATIOS.canvas(width, height)


def sides_as_stored(orientation: int) -> Ratios:
    """Return the ratios for a photo as it is stored, which may be rotated."""
    return Ratios(RATIOS.left, RATIOS.right, RATIOS.down, RATIOS.up) if orientation == 6 else RATIOS


def checked(photo: LargePhoto, engine: str) -> dict[str, Any]:
    """Expand the middle of a frame with the emulator, put it back, and return the figures."""
    from kling_expand.pictures.composite import composite

    cut, canvas = middle(photo.frame)
    ratios = sides_as_stored(photo.orientation)
    file = stored(cut, "PNG", icc_profile=photo.icc_profile, orientation=photo.orientation)
    sent = stored(cut, "JPEG", icc_profile=photo.icc_profile, orientation=photo.orientation)
    sides = (ratios.up, ratios.down, ratios.left, ratios.right)
    picture = outpaint(sent, sides, seed=1, engine=engine, misregister=MISREGISTER).data
    result = composite(io.BytesIO(file), io.BytesIO(picture), ratios)
    inside = result.crop(canvas.box)
    return {
        "photo": photo.name,
        "megapixels": round(cut.width * cut.height / 1e6, 1),
        "identical": inside.tobytes() == cut.tobytes(),
        "seam": round(seam_ratio(result, canvas.box), 2),
        "registration error": round(registration_error(cut, photo.frame, canvas), 3),
    }


def registration_error(photo: Image.Image, frame: Image.Image, canvas: Canvas) -> float:
    """Return the largest error of an edge of the photo in a picture whose misregistration is known."""
    from kling_expand.pictures.registration import register

    scale = 1664 / frame.width
    size = 1664, round(frame.height * scale)
    picture = frame.resize(size, Image.Resampling.LANCZOS)
    shift_x, shift_y, zoom = map(float, MISREGISTER.split(","))
    small = canvas.scaled(*size)
    original = photo.resize(
        (small.box[2] - small.box[0], small.box[3] - small.box[1]), Image.Resampling.LANCZOS
    )
    found = register(original, misregistered(picture, shift_x, shift_y, zoom), canvas)
    errors = []
    for index, edge in enumerate(canvas.box):
        length, whole = ((size[0], frame.width), (size[1], frame.height))[index % 2]
        exact = (edge / whole * length - length / 2) * zoom + length / 2 + (shift_x, shift_y)[index % 2]
        errors.append(abs(exact - found.box[index]))
    return max(errors)


# ---------------------------------------------------------------------------- speed and memory


def by_script(photo: str, picture: str) -> Any:
    """Put a photo back as a short script with Pillow would."""
    original = ImageOps.exif_transpose(Image.open(photo))
    canvas = RATIOS.canvas(*original.size)
    result = (
        Image.open(picture).convert("RGB").resize((canvas.width, canvas.height), Image.Resampling.LANCZOS)
    )
    result.paste(original, canvas.box[:2])
    return result


def by_package(photo: str, picture: str) -> Any:
    """Put a photo back with `composite`."""
    from kling_expand.pictures.composite import composite

    return composite(photo, picture, RATIOS)


def measure(way: str, photo: str, picture: str) -> None:
    """Print the CPU time and the peak memory of one way in this process, as JSON."""
    if way == "kling_expand":
        import kling_expand.pictures.composite  # noqa: F401 - the import is not measured
    start = time.process_time()
    result = (by_package if way == "kling_expand" else by_script)(photo, picture)
    seconds = time.process_time() - start
    result.save(os.devnull, "JPEG", quality=92)
    saved = time.process_time() - start
    print(json.dumps({"CPU (s)": seconds, "with JPEG (s)": saved, "peak (MB)": peak_memory() / 1e6}))


def measured(way: str, photo: str, picture: str) -> dict[str, float]:
    """Return the figures of one way in a process of its own."""
    code = f"from benchmarks.composite import measure; measure({way!r}, {photo!r}, {picture!r})"
    environ = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, env=environ, text=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def costs(megapixels: float, runs: int) -> dict[str, dict[str, float]]:
    """Return the medians of both ways for a photo of this many *megapixels*."""
    width = round((megapixels * 1e6 * 1.5) ** 0.5)
    with tempfile.TemporaryDirectory() as folder:
        photo, picture = Path(folder) / "photo.jpg", Path(folder) / "picture.png"
        frame = texture(round(width * 1.5), round(width / 1.5 * 1.2), seed=7)
        cut, _ = middle(frame)
        photo.write_bytes(stored(cut, "JPEG"))
        size = 1664, round(1664 * frame.height / frame.width)
        frame.resize(size, Image.Resampling.LANCZOS).save(picture)
        del frame, cut
        ways = {way: partial(measured, way, str(photo), str(picture)) for way in ("script", "kling_expand")}
        return {way: medians(found) for way, found in interleaved(ways, runs).items()}


def main() -> None:
    """Check five composites, measure the cost of another, and print the results."""
    given = options(str(__doc__).splitlines()[0], runs=5, longer=6000, megapixels=24.0, engine="patchmatch")
    photos = [checked(photo, given.engine) for photo in large_photos(given.longer)]
    table(photos)
    found = costs(given.megapixels, given.runs)
    table([{"way": way, **figures} for way, figures in found.items()])
    ratios = {name: found["kling_expand"][name] / found["script"][name] for name in found["script"]}
    print({name: round(ratio, 2) for name, ratio in ratios.items()})
    finish({"photos": photos, "costs": found, "ratios": ratios}, as_json=given.json)


if __name__ == "__main__":
    main()
