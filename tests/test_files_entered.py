"""A bound on the number of source files that one call enters."""

import asyncio
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import pytest
from click.testing import CliRunner
from support.shell import COFFEE, shell

import kling_expand
from kling_expand import ExpandRequest, KlingClient, ToAspect
from kling_expand.cli import root
from kling_expand.emulator import Emulator
from kling_expand.fleet.queue import Fleet
from kling_expand.fleet.worker import Worker
from kling_expand.jobs.poll_schedule import ExponentialSchedule

pytest_plugins = ["support.postgres"]
PACKAGE = Path(kling_expand.__file__).parent
FAST: dict[str, Any] = {"engine": "flat", "queue_seconds": 0.05, "work_seconds": 0.05}


@pytest.fixture(autouse=True)
def no_log_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the log handler that a command of an earlier test has installed in this process."""
    monkeypatch.setattr(logging.getLogger("kling_expand"), "handlers", [])


@contextmanager
def files_entered() -> Iterator[set[str]]:
    """Collect the files of the package whose functions are called, except those of the emulator.

    A worker's heartbeats are left out, because they are sent whether or not the worker has jobs.
    """
    found: set[str] = set()

    def profile(frame: FrameType, event: str, _arg: object) -> None:
        name = frame.f_code.co_qualname
        if event == "call" and name != "<module>" and not name.startswith("Worker._beat"):
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(PACKAGE) and not path.is_relative_to(PACKAGE / "emulator"):
                found.add(str(path.relative_to(PACKAGE)))

    before = sys.getprofile()
    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        yield found
    finally:
        sys.setprofile(before)
        threading.setprofile(None)


async def test_expand_and_save_enter_few_files(tmp_path: Path) -> None:
    """One `expand` with its `save` enters at most 18 files."""
    async with (
        Emulator(**FAST) as emulator,
        KlingClient(api_key=emulator.api_key, base_url=emulator.url) as kling,
    ):
        with files_entered() as found:
            result = await kling.expand(COFFEE, ToAspect("16:9"))
            await result.save(tmp_path)
    assert len(found) <= 18, sorted(found)


def test_a_bulk_row_enters_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `bulk` of one row, from the command line to the picture on disk, enters at most 28 files."""
    for module in ("commands.bulk", "batch.runner"):  # the command imports them, and an import is not a call
        import_module(f"kling_expand.cli.{module}")
    monkeypatch.chdir(tmp_path)  # where the journal goes
    with shell(**FAST) as kling:
        environ = {"KLING_API_KEY": kling.emulator.api_key, "KLING_BASE_URL": kling.emulator.url}
        with files_entered() as found:
            places = ["-o", str(tmp_path / "out"), "--journal", str(tmp_path / "run.journal")]
            arguments = ["bulk", str(COFFEE), "--aspect", "16:9", *places]
            done = CliRunner(env=environ).invoke(root, arguments)
    logging.getLogger("kling_expand").handlers.clear()  # the next test must not enter this handler's files
    assert done.exit_code == 0, done.output
    assert len(found) <= 28, sorted(found)


async def test_a_fleet_job_enters_few_files(dsn: str, tmp_path: Path) -> None:
    """A job of the fleet, from its submission to its picture on disk, enters at most 22 files."""
    async with Emulator(**FAST) as emulator, Fleet(dsn, webhook_secrets=[]) as fleet:
        await fleet.init()
        access: dict[str, Any] = {"api_key": emulator.api_key, "base_url": emulator.url}
        schedule = ExponentialSchedule(Random(), first=0.2, longest=1.0)
        worker = Worker(fleet, max_in_flight=9, output=str(tmp_path), schedule=schedule, **access)
        running = asyncio.create_task(worker.run())
        # The worker has finished its start-up when it has done a first job.
        await fleet.submit(ExpandRequest(COFFEE, ToAspect("16:9"), key="first"))
        assert [outcome.key async for outcome in fleet.results()] == ["first"]
        with files_entered() as found:
            await fleet.submit(ExpandRequest(COFFEE, ToAspect("4:3"), key="second"))
            outcomes = [outcome async for outcome in fleet.results()]
        worker.stop()
        await running
    assert [outcome.status for outcome in outcomes] == ["succeeded", "succeeded"]
    assert len(found) <= 22, sorted(found)
