"""The time of ``kling-expand bulk --dry-run`` for many photos, and the speed at which photos are hashed.

    python -m benchmarks.bulk --json

dry run   the wall time of the command in a new process, for `--photos` photos of `--megabytes`. The zeros
          that pad each photo take no space on the disk
hashing   the speed at which photos of random bytes are loaded one after another, which checks and hashes
          them. It is divided by the speed of ``sha256sum`` on the same files, and the two take turns
"""

import asyncio
import os
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from benchmarks.import_time import environment
from benchmarks.reporting import finish, interleaved, medians, options, picture, rounded, table
from kling_expand.api.photo import load_photo

SMALL = picture()
HASHED = 20  # photos
END = 12  # bytes of the last chunk of a PNG


def write_photos(folder: Path, number: int, weight: int) -> None:
    """Write photos as sparse files, each with a private chunk of *weight* zeros before its end."""
    check = zlib.crc32(bytes(weight), zlib.crc32(b"ruSt"))
    head = SMALL[:-END] + struct.pack(">I", weight) + b"ruSt"
    tail = struct.pack(">I", check) + SMALL[-END:]
    for place in range(number):
        with (folder / f"{place:05}.png").open("wb") as file:
            file.write(head)
            file.seek(weight, os.SEEK_CUR)
            file.write(tail)


def dry_run(folder: Path) -> dict[str, float]:
    """Return the seconds of a dry run of all photos in *folder*."""
    words = ["-m", "kling_expand", "bulk", str(folder), "--right", "0.5", "--dry-run"]
    return _timed(lambda: _run([sys.executable, *words]))


def _run(command: list[str]) -> None:
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
    )


def _timed(work: Callable[[], object]) -> dict[str, float]:
    begin = time.perf_counter()
    work()
    return {"seconds": time.perf_counter() - begin}


async def _load(files: list[Path]) -> None:
    for file in files:
        await load_photo(file)


def measure(photos: int, weight: int, runs: int) -> dict[str, float]:
    """Return the medians over the runs."""
    with tempfile.TemporaryDirectory(prefix="bulk-") as name:
        many, few = Path(name, "many"), Path(name, "few")
        many.mkdir()
        few.mkdir()
        write_photos(many, photos, weight)
        files = [few / f"{place}.png" for place in range(HASHED)]
        for file in files:
            file.write_bytes(picture(weight=weight))
        candidates: dict[str, Callable[[], dict[str, float]]] = {
            "dry run": lambda: dry_run(many),
            "load_photo": lambda: _timed(lambda: asyncio.run(_load(files))),
            "sha256sum": lambda: _timed(lambda: _run(["sha256sum", *map(str, files)])),
        }
        found = {name: medians(rows)["seconds"] for name, rows in interleaved(candidates, runs).items()}
    speeds = {name: rounded(HASHED * weight / 1e6 / found[name]) for name in ("load_photo", "sha256sum")}
    return {
        "dry run (s)": found["dry run"],
        **{f"{name} (MB/s)": speed for name, speed in speeds.items()},
        "hashing ratio": rounded(speeds["load_photo"] / speeds["sha256sum"]),
    }


def main() -> None:
    """Measure and print the results."""
    given = options(str(__doc__).splitlines()[0], photos=2000, megabytes=5.0, runs=5)
    found = measure(given.photos, int(given.megabytes * 1e6), given.runs)
    table([{"bulk": name, "found": value} for name, value in found.items()])
    print("goals: a dry run of at most 3 s, and at least 0.8 times the speed of sha256sum")
    finish(found, as_json=given.json)


if __name__ == "__main__":
    main()
