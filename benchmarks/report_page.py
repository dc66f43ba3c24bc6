"""The time that ``kling-expand report`` takes for a journal of many large photos.

    python -m benchmarks.report_page --jobs 400 --json

The photos of the examples are enlarged to 12 megapixels, once as they are and once with the noise of a phone
at night, which makes them about 7 MB large. Each job has a picture of 1.3 megapixels. The page is made twice,
each time in a new process: first without an earlier page, then with it.
"""

import asyncio
import os
import resource
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

from PIL import Image, ImageChops

from benchmarks.reporting import finish, options, rounded, table
from kling_expand import Ratios, Task
from kling_expand.api.photo import load_photo
from kling_expand.geometry import TIER
from kling_expand.models import ExpandRequest
from kling_expand.models import Image as ResultImage
from kling_expand.store.base import PreparedRequest, identify
from kling_expand.store.sqlite import SQLiteStore

PHOTOS = Path(__file__).parents[1] / "examples" / "photos"
RIGHT = Ratios(right=0.5)


def enlarged(name: str, pixels: float, noise: float) -> Image.Image:
    """Return a photo of the examples with this many *pixels*, and with *noise* of this deviation."""
    with Image.open(PHOTOS / name) as photo:
        factor = (pixels / (photo.width * photo.height)) ** 0.5
        size = round(photo.width * factor), round(photo.height * factor)
        large = photo.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    if not noise:
        return large
    grain = Image.effect_noise(size, noise).convert("RGB")
    return ImageChops.add(large, grain, scale=1, offset=-128)


def write_photos(folder: Path, megapixels: float, noise: float) -> list[tuple[Path, Path]]:
    """Write the photos and their pictures, and return the paths of both."""
    found = []
    for name in ("chelsea.jpg", "coffee.jpg", "rocket.jpg"):
        photo, picture = folder / name, folder / f"{name}.png"
        enlarged(name, megapixels * 1e6, noise).save(photo, quality=95)
        enlarged(name, min(TIER, megapixels * 1e6), noise).save(picture)
        found.append((photo, picture))
    return found


async def write_journal(folder: Path, files: list[tuple[Path, Path]], jobs: int) -> Path:
    """Write a journal of this many saved *jobs*, each with files of its own, and return its path."""
    async with SQLiteStore(folder / "run.db") as store:
        for number, (photo, picture) in enumerate(islice(cycle(files), jobs)):
            own = [folder / f"{number}-{path.name}" for path in (photo, picture)]
            for path, source in zip(own, (photo, picture), strict=True):
                os.link(source, path)
            prepared = PreparedRequest(
                ExpandRequest(own[0], RIGHT, key=str(number)), await load_photo(own[0]), RIGHT
            )
            identity = identify(store, prepared)
            if identity is None:
                raise RuntimeError("a job of a journal must have an identity, got None")
            job = await store.record_intent(identity, prepared)
            task = Task(str(number), "succeed", images=(ResultImage(0, ""),), final_unit_deduction="8")
            await store.observe(job.external_task_id, task)
            await store.mark_saved(job.external_task_id, own[1:])
    return folder / "run.db"


def report(journal: Path) -> dict[str, float]:
    """Make the page, and return its wall time, CPU time and size."""
    began, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    page = journal.with_name("report.html")
    command = [sys.executable, "-m", "kling_expand", "report", str(journal), "-o", str(page)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "wall time (s)": rounded(time.perf_counter() - began),
        "CPU time (s)": rounded(now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime),
        "page (MB)": rounded(page.stat().st_size / 1e6),
    }


def measure(jobs: int, megapixels: float, noise: float) -> list[dict[str, float]]:
    """Return the costs of a first page, and of a second one after it."""
    with tempfile.TemporaryDirectory(prefix="report-") as name:
        folder = Path(name)
        files = write_photos(folder, megapixels, noise)
        journal = asyncio.run(write_journal(folder, files, jobs))
        size = sum(photo.stat().st_size for photo, _ in files) / len(files) / 1e6
        return [{"photo (MB)": rounded(size)} | report(journal) for _ in range(2)]


def main() -> None:
    """Measure and print the results."""
    given = options("Time of a report about many large photos.", jobs=400, megapixels=12.0, noise=14.0)
    kinds = {"photos": 0.0, "noisy photos": given.noise}
    rows = []
    for kind, noise in kinds.items():
        first, again = measure(given.jobs, given.megapixels, noise)
        rows += [{"page": kind} | first, {"page": f"{kind}, again"} | again]
    table(rows)
    finish({str(row["page"]): row["wall time (s)"] for row in rows}, as_json=given.json)


if __name__ == "__main__":
    main()
