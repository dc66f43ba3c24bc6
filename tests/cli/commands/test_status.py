"""`kling-expand status`: the status of tasks at the service, and the progress of a run in its journal."""

import asyncio
import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
from attrs import evolve
from cli.commands.test_tasks import submitted
from support.shell import CHELSEA, COFFEE, Shell, shell

from kling_expand.cli.batch.plan import Usage
from kling_expand.cli.commands.status import Run
from kling_expand.store.base import JobState
from kling_expand.store.sqlite import SQLiteStore


def test_status_prints_one_line_for_each_task_in_order() -> None:
    """An unknown id does not affect the others, but the exit code is 1."""
    with shell(work_seconds=600) as kling:
        (task_id,) = submitted(kling, COFFEE)
        done = kling("status", "unknown", task_id)
        assert done.exit_code == 1
        assert [line.split()[0] for line in done.stdout.splitlines()] == ["unknown", task_id]
        kling.within(kling.emulator.advance, 700)
        done = kling("status", task_id, "unknown", "--json")
        first, second = map(json.loads, done.stdout.splitlines())
        assert (first["task_status"], "error" in second) == ("succeed", True)
        assert kling("status", task_id).exit_code == 0


async def test_the_status_of_a_run_in_progress_is_shown(tmp_path: Path) -> None:
    """Jobs, cost and process are shown while the journal is open. It is named by its file or directory."""
    journal = tmp_path / ".kling-expand.db"
    status = partial(asyncio.to_thread, Shell(), "status")
    copy = tmp_path / "copy.jpg"  # shares a job with the first photo
    await asyncio.to_thread(shutil.copyfile, COFFEE, copy)
    with shell() as kling:
        photos = COFFEE, CHELSEA, copy
        await asyncio.to_thread(
            kling, "bulk", *photos, "--up", 1, "--journal", journal, "-o", tmp_path / "out"
        )
    over = (await status(tmp_path)).stdout.splitlines()
    assert over[1:] == ["2 jobs: 2 saved", "16 units ($0.06) billed"]
    assert over[0].endswith(".kling-expand.db: not running")
    async with SQLiteStore(journal) as store:
        await store.set_rows(7)
        text = (await status(journal)).stdout
        facts = json.loads((await status(tmp_path, "--json")).stdout)
    assert f"running in process {os.getpid()}" in text
    assert "7 jobs: 2 saved, 5 not started" in text
    assert (facts["process"], facts["rows"], facts["to_come"], facts["units_billed"]) == (
        os.getpid(),
        7,
        5,
        16,
    )


def test_the_cost_of_a_run_includes_every_attempt(tmp_path: Path) -> None:
    """With --fresh a job has a second task. Its summary, `status` and `report` have the cost of both."""
    with shell() as kling:
        words = ("bulk", COFFEE, "--up", 1, "-o", tmp_path)
        kling(*words)
        done = kling(*words, "--fresh", "--budget", 16)
    assert "16 units ($0.06) billed for all jobs" in done.stderr
    assert kling("status", tmp_path).stdout.splitlines()[1:] == ["1 job: 1 saved", "16 units ($0.06) billed"]
    page = kling("report", tmp_path, "-o", tmp_path / "r.html", "--json")
    assert json.loads(page.stdout)["units_billed"] == 16


def test_rate_and_time_left_follow_from_recent_rows() -> None:
    """At ten rows a minute, ninety rows take nine minutes. Only a run in progress has a rate."""
    usage = Usage(due=88, billed=80.0, saved=10, open=1)
    usage.states.update({JobState.DONE: 10, JobState.SUBMITTED: 1})
    run = Run("j", 1, 100, usage, emulated=False, now=160.0, saved_at=[100.0 + 6 * n for n in range(11)])
    assert run.rate == pytest.approx(1 / 6)
    assert run.time_left == pytest.approx(90 * 6)
    assert run.lines() == [
        "j: running in process 1",
        "100 jobs: 10 saved, 1 at the service, 89 not started",
        "10.0 jobs per minute, about 9:00 left",
        "80 units ($0.28) billed, 8 more if the open tasks succeed",
    ]
    assert evolve(run, process=None).rate is None
    emulated = evolve(run, emulated=True).lines()[3]
    assert emulated == "80 units (emulated, not billed) used, 8 more if the open tasks succeed"


def test_bad_rows_are_counted_separately(tmp_path: Path) -> None:
    """`status` counts the bad rows as the run did, `report` names them, and the next run forgets them."""
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(Path(COFFEE).read_bytes()[:9000])
    with shell() as kling:
        words = ("bulk", COFFEE, cut, tmp_path / "none.jpg", "--up", 0.5, "--fit", "-o", tmp_path / "out")
        assert "3 photos: 1 saved, 2 bad" in kling(*words).stderr
        assert "3 jobs: 1 saved, 2 bad" in kling("status", tmp_path / "out").stdout.splitlines()
        facts = json.loads(kling("status", tmp_path / "out", "--json").stdout)
        assert (facts["bad"], facts["to_come"]) == (2, 0)
        assert kling("report", tmp_path / "out", "-o", tmp_path / "r.html").exit_code == 0
        kling("bulk", COFFEE, "--up", 0.5, "-o", tmp_path / "out")
        assert "1 job: 1 saved" in kling("status", tmp_path / "out").stdout.splitlines()
    page = (tmp_path / "r.html").read_text()
    assert "<dt>not sent</dt><dd>2</dd>" in page
    assert f"<li>{cut}: " in page
    assert "no such file" in page


def test_a_path_without_a_journal_is_refused(tmp_path: Path) -> None:
    """A directory without a command's journal, and a file that is not a journal, have different messages."""
    (tmp_path / "file").write_text("x" * 5000)
    (tmp_path / "workers").mkdir()
    for name in ("jobs-1.db", "jobs-0.db"):
        (tmp_path / "workers" / name).touch()
    named = ", ".join(str(tmp_path / "workers" / f"jobs-{number}.db") for number in range(2))
    for place, message in [
        (tmp_path, "no command has kept a journal in this directory"),
        (tmp_path / "workers", f"name its file: {named}"),
        (tmp_path / "file", "not a journal"),
    ]:
        done = Shell()("status", place)
        assert (done.exit_code, message in done.stderr) == (2, True)


@pytest.mark.parametrize(
    "command",
    [
        ("bulk", COFFEE, "--up", 1, "-o", "closed/out"),
        ("status", "closed/out"),
        ("resume", "closed/run.db"),
        ("report", "closed/run.db"),
    ],
)
def test_a_directory_that_cannot_be_searched_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[object, ...]
) -> None:
    """A path in a directory without search permission has exit code 2 and is named."""
    monkeypatch.chdir(tmp_path)
    Path("closed").mkdir(mode=0)
    if os.access("closed", os.X_OK):
        pytest.skip("root can search every directory")
    done = Shell()(*command, KLING_API_KEY="none")
    assert (done.exit_code, str(command[-1]) in done.stderr) == (2, True)
    assert "Permission denied" in done.stderr


@pytest.mark.parametrize(
    "command", [("status",), ("report",), ("bulk", "photo.jpg", "--right", 1, "--journal")]
)
def test_messages_name_the_journal_and_not_its_copy(command: tuple[object, ...], tmp_path: Path) -> None:
    """A file that is not a journal is refused by its own name. An empty file is not said to be changed."""
    (tmp_path / "file").write_text("x" * 5000)
    done = Shell()(*command, tmp_path / "file")
    assert (done.exit_code, f"the journal {tmp_path / 'file'}: this is not a journal" in done.stderr) == (
        2,
        True,
    )
    (tmp_path / "empty").touch()
    assert "new journal" not in Shell()(*command, tmp_path / "empty").stderr
