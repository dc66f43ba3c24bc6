"""A library of photos through ``kling-expand bulk --fit``, which is interrupted and run again.

    python -m benchmarks.library [--photos 400] [--kills 5] [--seed 1] [--json]

The library has photos of many kinds in nested folders: duplicate names and contents, HEIC, JPEGs that EXIF
rotates, wide-gamut color profiles, and five bad files. The command is interrupted at random moments, two
times in three by SIGKILL. It is then run from three directories, after some pictures were deleted, after the
journal was deleted, and after both. The service's account, the files and their digests must agree after each
step, or the exit code is 1.
"""

import argparse
import asyncio
import hashlib
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageCms

from benchmarks.reporting import finish
from kling_expand.emulator import Emulator

ORIENTATION = 0x0112
FOLDERS = ("", "2023", "2024/May", "2024/June [raw]", "DCIM/100", "DCIM/101")


def picture(number: int) -> Image.Image:
    """Return a small picture whose content depends on *number*."""
    width, height = 300 + 7 * (number % 9), 300 + 5 * (number % 7)
    image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    image.paste((number % 256, number * 7 % 256, number * 31 % 256), (10, 10, 150, 150))
    return image


def write_photo(path: Path, number: int) -> Path:
    """Write a photo of the kind that *number* chooses, and return its path."""
    image, kind = picture(number), number % 8
    if kind == 0:
        import pillow_heif

        pillow_heif.register_heif_opener()
        path = path.with_suffix(".HEIC")
        image.save(path, format="HEIF")
    elif kind == 1:
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        image.save(path.with_suffix(".JPG"), exif=exif)
        path = path.with_suffix(".JPG")
    elif kind == 2:
        path = path.with_suffix(".png")
        image.save(path, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes())
    elif kind == 3:
        path = path.with_suffix(".webp")
        image.save(path)
    else:
        image.save(path)
    return path


def make_library(root: Path, photos: int) -> tuple[list[Path], int]:
    """Write *photos* good photos and five bad files; return the good ones and how many tasks they need."""
    good: list[Path] = []
    contents: set[str] = set()
    for number in range(photos):
        folder = root / FOLDERS[number % len(FOLDERS)]
        folder.mkdir(parents=True, exist_ok=True)
        # Names repeat from folder to folder, and each twentieth photo is a copy of an earlier one.
        path = folder / f"IMG_{number // len(FOLDERS):04}.jpg"
        if number % 20 == 19:
            path.write_bytes(good[number - 15].read_bytes())
            good.append(path.rename(path.with_name(f"copy-{number}{good[number - 15].suffix}")))
        else:
            good.append(write_photo(path, number))
        contents.add(hashlib.sha256(good[-1].read_bytes()).hexdigest())
    whole = good[4].read_bytes()
    bad = {
        "cut.jpg": whole[:-200],
        "empty.jpg": b"",
        "text.jpg": b"no picture",
        "cut.heic": good[0].read_bytes()[:99],
    }
    for name, content in bad.items():
        (root / name).write_bytes(content)
    Image.new("RGB", (40, 40)).save(root / "small.png")
    (root / "notes.txt").write_text("left out")
    return good, len(contents)


def relative(path: Path, folder: Path) -> str:
    """Return *path* relative to *folder*."""
    return os.path.relpath(path, folder)


class Run:
    """The command with its environment, started from any directory."""

    def __init__(self, emulator: Emulator, base: Path) -> None:
        names = {"KLING_API_KEY": emulator.api_key, "KLING_BASE_URL": emulator.url}
        self._environ = {**os.environ, **names, "PYTHONPATH": str(Path(__file__).parents[1])}
        self._base = base

    async def start(self, folder: str) -> asyncio.subprocess.Process:
        """Start the command in *folder*, with paths relative to it."""
        where = self._base / folder
        where.mkdir(exist_ok=True)
        photos, out = (relative(self._base / name, where) for name in ("photos", "out"))
        words = ["bulk", photos, "--fit", "--right", "0.5", "-o", out, "--max-in-flight", "20"]
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "kling_expand", *words),
            cwd=where,
            env=self._environ,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )

    async def complete(self, folder: str = "") -> tuple[int | None, str]:
        """Run the command to its end, and return its exit code and its stderr."""
        process = await self.start(folder)
        _, said = await process.communicate()
        return process.returncode, said.decode()

    async def interrupted(self, rng: random.Random, folder: str, *, longest: float) -> None:
        """Run the command and stop it at a random moment, with SIGINT or SIGKILL."""
        process = await self.start(folder)
        number = rng.choice((signal.SIGINT, signal.SIGKILL, signal.SIGKILL))
        try:
            async with asyncio.timeout(rng.uniform(0.5, longest)):
                await process.communicate()
        except TimeoutError:
            process.send_signal(number)
            await process.wait()
            print(f"  stopped by {signal.Signals(number).name}", flush=True)


class Check:
    """A comparison of the service's account and the files with what the library needs."""

    def __init__(self, emulator: Emulator, base: Path, good: list[Path], tasks: int) -> None:
        self._emulator = emulator
        self._base = base
        self._good = good
        self._tasks = tasks
        self._digests: dict[Path, str] = {}
        self.failures = 0

    def files(self) -> list[Path]:
        """Return the paths of all pictures."""
        return sorted(path for path in (self._base / "out").rglob("*.*g") if not path.name.startswith("."))

    def report(self, step: str, said: tuple[int | None, str]) -> None:
        """Print the numbers after a step, and count the step if any of them is wrong."""
        files = self.files()
        digests = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        replaced = sum(digests.get(path, digest) != digest for path, digest in self._digests.items())
        self._digests |= digests
        folders = [path.parent.relative_to(self._base / "photos") for path in self._good]
        mirrored = [path.parent.relative_to(self._base / "out") for path in files]
        missing = sum(not self._has_result(path) for path in self._good)
        extra = len(files) - len(self._good)
        paid, code = len(self._emulator.account.tasks), said[0]
        wrong = paid != self._tasks or missing or replaced or code != 1 or sorted(folders) != sorted(mirrored)
        self.failures += bool(wrong)
        print(
            f"{step:<28} tasks {paid} of {self._tasks}; {len(files)} files, {missing} missing,",
            f"{extra} extra, {replaced} replaced; exit code {code}{'   WRONG' if wrong else ''}",
            flush=True,
        )
        if wrong:
            print(said[1])

    def _has_result(self, photo: Path) -> bool:
        folder = self._base / "out" / photo.parent.relative_to(self._base / "photos")
        return any(path.name.startswith(f"{photo.stem}-") for path in folder.glob("*.*g"))


async def run(photos: int, kills: int, seed: int) -> int:
    """Run every step, and return how many of them went wrong."""
    rng = random.Random(seed)
    options = {"engine": "flat", "queue_seconds": 0.1, "work_seconds": 1.0, "slots": 20}
    with tempfile.TemporaryDirectory(prefix="library-") as name:
        base = Path(name)
        good, tasks = make_library(base / "photos", photos)
        async with Emulator(**options) as emulator:  # type: ignore[arg-type]  # the types of the settings
            command, check = Run(emulator, base), Check(emulator, base, good, tasks)
            for _ in range(kills):
                folder = rng.choice(("", "elsewhere", "photos"))
                await command.interrupted(rng, folder, longest=2 + photos / 40)
            check.report("after the interruptions", await command.complete())
            for folder in ("elsewhere", "photos"):
                check.report(f"from {folder}", await command.complete(folder))
            for path in rng.sample(check.files(), min(9, photos)):
                path.unlink()
            check.report("with files deleted", await command.complete())
            for path in (base / "out").glob(".kling-expand*"):
                path.unlink()
            check.report("with the journal deleted", await command.complete())
            for path in [*(base / "out").glob(".kling-expand*"), *rng.sample(check.files(), min(9, photos))]:
                path.unlink()
            check.report("journal and files deleted", await command.complete())
            return check.failures


def main() -> None:
    """Run the benchmark with the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--photos", type=int, default=400)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    began_at = time.monotonic()
    failures = asyncio.run(run(arguments.photos, arguments.kills, arguments.seed))
    print(f"{failures} steps went wrong, in {time.monotonic() - began_at:.0f} s")
    finish({"wrong steps": failures}, as_json=arguments.json)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
