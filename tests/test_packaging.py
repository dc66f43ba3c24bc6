"""The wheel and the source archive: both contain the whole package, which works without the repository."""

import email
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import kling_expand

ROOT = Path(__file__).parent.parent
# Expands a photo on the emulator and prints where the package was imported from.
PROGRAM = """
import asyncio, sys
import kling_expand
from kling_expand import KlingClient, Ratios
from kling_expand.emulator import Emulator

async def main():
    async with Emulator(engine="flat", work_seconds=0.1) as emulator:
        async with KlingClient(api_key=emulator.api_key, base_url=emulator.url, journal="run.db") as kling:
            result = await kling.expand(sys.argv[1], Ratios(right=0.5))
            print(*[path.name for path in await result.save("out/")])

asyncio.run(main())
print(kling_expand.__version__, kling_expand.__file__)
"""


def build(source: Path, kind: str, folder: Path) -> Path:
    """Build a wheel or a source archive of *source* without a network, and return its path."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    ran = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive."""
    return build(ROOT, "sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built from the source archive alone."""
    unpacked = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(archive) as tar:
        tar.extractall(unpacked, filter="data")
    (source,) = unpacked.iterdir()
    return build(source, "wheel", tmp_path_factory.mktemp("wheel"))


def test_the_wheel_contains_the_whole_package(wheel: Path) -> None:
    """The wheel contains every file of the package, including templates and the console, and nothing else."""
    with zipfile.ZipFile(wheel) as zipped:
        names = {name for name in zipped.namelist() if ".dist-info/" not in name}
    package = ROOT / "kling_expand"
    files = {str(path.relative_to(ROOT)) for path in package.rglob("*") if path.is_file()}
    assert names == {name for name in files if "__pycache__" not in name}
    assert "kling_expand/py.typed" in names


def test_the_archive_contains_what_the_tests_need(archive: Path) -> None:
    """The archive contains tests, examples and photos, and no file that git ignores."""
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    needed = (
        "README.md",
        "LICENSE",
        "tests/conftest.py",
        "examples/photos/coffee.jpg",
        "benchmarks/chaos.py",
    )
    assert set(needed) <= names
    assert [name for name in names if re.search(r"(^|/)(\.venv|out|dist|__pycache__)/", name)] == []


def test_the_packaged_readme_links_to_no_local_file(wheel: Path) -> None:
    """On a package index, no picture and no link of the README refers to a file of the repository."""
    with zipfile.ZipFile(wheel) as zipped:
        (name,) = [name for name in zipped.namelist() if name.endswith("METADATA")]
        metadata = email.message_from_bytes(zipped.read(name))
    assert metadata["Version"] == kling_expand.__version__
    assert metadata["Description-Content-Type"] == "text/markdown"
    text = str(metadata.get_payload())
    assert "# kling_expand" in text
    assert "*Picture: " in text
    assert re.findall(r"\]\((?!https?:|#)[^)]*\)", text) == []


# Removes the modules, calls and signals of POSIX before the program above runs.
NO_POSIX = """
import asyncio, concurrent.futures.process, multiprocessing, os, pathlib, signal
import socket, subprocess, sys, tempfile
import aiohttp.web, numpy, PIL.Image

for name in ("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"):
    sys.modules[name] = None
for name in dir(os):
    if name.startswith(("get", "set")) and name.endswith(("uid", "gid", "sid")) or name in {
        "fork", "register_at_fork", "killpg", "fchmod", "chown", "O_NOFOLLOW", "O_NONBLOCK", "O_DIRECTORY",
    }:
        delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGSTOP", "SIGCONT", "SIGUSR1", "SIGALRM", "SIGQUIT", "SIGPIPE"):
    delattr(signal, name)

def refuse(*_):
    raise NotImplementedError

asyncio.SelectorEventLoop.add_signal_handler = asyncio.SelectorEventLoop.remove_signal_handler = refuse

def unlink(path, missing_ok=False, real=pathlib.Path.unlink):
    if path.suffix == ".part" and path.exists() and os.stat(path).st_nlink == 1:
        raise PermissionError("Windows removes no open file")
    real(path, missing_ok)

pathlib.Path.unlink = unlink
"""
SHELL = """
sys.argv = ["kling-expand", "expand", sys.argv[1], "--right", "0.02", "--emulator", "-o", "out"]
from kling_expand.__main__ import main
main()
"""


def test_no_posix_system_is_needed(tmp_path: Path) -> None:
    """Core, journal, emulator and command line run without the calls of POSIX."""
    photo = str(ROOT / "examples" / "photos" / "coffee.jpg")
    for program in (PROGRAM, SHELL):
        ran = subprocess.run(
            [sys.executable, "-c", NO_POSIX + program, photo],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        assert "coffee-0" in ran.stdout


def test_the_wheel_works_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    """Installed elsewhere, the package, the emulator and the command line work without the repository."""
    target = tmp_path / "site"
    with zipfile.ZipFile(wheel) as zipped:
        zipped.extractall(target)  # the same as installing a wheel without compiled code
    keyless = {name: value for name, value in os.environ.items() if not name.startswith("KLING")}
    photo = ROOT / "examples" / "photos" / "coffee.jpg"
    for command, printed in (
        (["-c", PROGRAM, str(photo)], f"coffee-0.png\n{kling_expand.__version__} {target}"),
        (["-m", "kling_expand", "--version"], kling_expand.__version__),
    ):
        ran = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=keyless | {"PYTHONPATH": str(target)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ran.stderr, ran.returncode) == ("", 0)
        assert printed in ran.stdout
