"""`kling-expand resume`: the open jobs of a journal, regardless of the program that submitted them."""

import asyncio
import json
import shutil
import time
from pathlib import Path

import pytest
from cli.commands.test_expand import files, portrait
from cli.test_interrupted import press_ctrl_c
from support.shell import CHELSEA, COFFEE, Shell, shell

from kling_expand import KlingClient, Ratios
from kling_expand.cli.batch.plan import EMULATED
from kling_expand.emulator.faults.plan import Fault
from kling_expand.store.sqlite import SQLiteStore


def submit_and_close(kling: Shell, journal: Path, *photos: str, prompt: str | None = None) -> None:
    """Submit photos with a client that is closed before its tasks end."""

    async def submit() -> None:
        emulator = kling.emulator
        async with KlingClient(
            api_key=emulator.api_key, base_url=emulator.url, journal=journal, run="nightly", max_in_flight=60
        ) as client:
            for photo in photos:
                await client.create(photo, Ratios(up=0.5), prompt=prompt, key=photo)

    asyncio.run(submit())


def test_each_task_of_a_journal_is_saved_once(tmp_path: Path) -> None:
    """A journal is named by its file or directory, and each of its tasks is saved once under its own name."""
    same = tmp_path / "coffee.jpg"
    same.write_bytes(Path(CHELSEA).read_bytes())
    with shell(work_seconds=600) as kling:
        submit_and_close(kling, tmp_path / ".kling-expand.db", COFFEE, CHELSEA, str(same))
        kling.within(kling.emulator.advance, 700)
        done = kling("resume", tmp_path / ".kling-expand.db", "-o", tmp_path / "out")
        assert done.exit_code == 0, done.stderr
        again = kling("resume", tmp_path, "-o", tmp_path / "out", "--json")
        empty = kling("resume", tmp_path, "-o", tmp_path / "out")
        assert (len(kling.emulator.account.tasks), kling.emulator.account.units_billed) == (3, 24)
    assert "3 jobs: 3 saved" in done.stderr
    assert "check the network" not in empty.stderr
    paths = {Path(line).name for line in done.stdout.splitlines()}
    assert len(paths) == 3
    assert paths >= {"chelsea-0.png", "coffee-0.png"}
    assert (again.exit_code, json.loads(again.stdout)["summary"]["rows"]) == (0, 0)


def test_the_summary_says_how_to_retry_failed_jobs(tmp_path: Path) -> None:
    """A failed task is reported with its photo and reason, and the summary says how to retry it."""
    with shell(work_seconds=600) as kling:
        submit_and_close(kling, tmp_path / "j", COFFEE, CHELSEA, prompt="emulate-risk-control")
        kling.within(kling.emulator.advance, 700)
        done = kling("resume", tmp_path / "j", "-o", tmp_path / "out")
    assert done.exit_code == 1
    assert f"{COFFEE}: Failure to pass the risk control system" in done.stderr
    assert "2 jobs: 0 saved, 2 failed" in done.stderr
    assert "only retried by the program that submitted them" in done.stderr


def test_an_interrupted_resume_can_be_run_again(tmp_path: Path) -> None:
    """After Ctrl-C, the exit code is 130, and the tasks that continue are counted."""
    with shell(work_seconds=600) as kling:
        submit_and_close(kling, tmp_path / "j", COFFEE, CHELSEA)
        reads = kling.emulator.account.requests.total()
        with kling.start("resume", tmp_path / "j", "-o", tmp_path / "out") as process:
            while kling.emulator.account.requests.total() == reads:
                assert process.poll() is None
            press_ctrl_c(process)
            assert process.stderr is not None
            err = process.stderr.read()
        assert process.returncode == 130, err
        assert "Traceback" not in err
        assert "2 tasks continue at the service" in err
        kling.within(kling.emulator.advance, 700)
        assert kling("resume", tmp_path / "j", "-o", tmp_path / "out").exit_code == 0
        assert kling.emulator.account.units_billed == 16


def test_a_budget_counts_what_the_journal_has_spent(tmp_path: Path) -> None:
    """A running task is saved even with a budget of 0, because it is already paid for."""
    with shell(work_seconds=600) as kling:
        submit_and_close(kling, tmp_path / "j", COFFEE)
        kling.within(kling.emulator.advance, 700)
        done = kling("resume", tmp_path / "j", "--budget", 0, "-o", tmp_path / "out")
    assert (done.exit_code, "1 job: 1 saved" in done.stderr) == (0, True)


@pytest.mark.parametrize("key", ["", "some"])
def test_a_journal_of_the_local_emulator_is_refused(tmp_path: Path, key: str) -> None:
    """The emulator has ended, so credentials would not help. The journal still belongs to the emulator."""

    async def account(given: str = "") -> str:
        async with SQLiteStore(tmp_path / "j", account=given) as store:
            return store.account

    asyncio.run(account(EMULATED))
    done = Shell()("resume", tmp_path / "j", KLING_API_KEY=key)
    assert done.exit_code == 2
    assert "this run used the local emulator; repeat the command that started it" in done.stderr
    assert asyncio.run(account()) == EMULATED


def test_missing_credentials_are_explained_in_terms_of_the_shell(tmp_path: Path) -> None:
    """The message names neither a Python class nor an option that `resume` does not have."""

    async def create() -> None:
        async with SQLiteStore(tmp_path / "j"):
            pass

    asyncio.run(create())
    done = Shell()("resume", tmp_path / "j")
    assert (done.exit_code, "KLING_API_KEY" in done.stderr) == (2, True)
    assert "KlingClient" not in done.stderr
    assert "--emulator" not in done.stderr


def test_a_missing_journal_is_refused(tmp_path: Path) -> None:
    """A missing journal is not created, and a file that is not a journal is refused."""
    done = Shell()("resume", tmp_path / "j")
    assert (done.exit_code, "no such journal" in done.stderr) == (2, True)
    with shell() as kling:
        assert kling("resume", COFFEE).exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_results_have_the_names_of_the_original_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`resume` and `wait` save under the directories, shapes and names of the original command."""
    monkeypatch.chdir(tmp_path)
    for folder, photo in (("a", COFFEE), ("b", CHELSEA)):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        shutil.copy(photo, tmp_path / "photos" / folder / "dog.jpg")
    words = ("--aspect", "16:9", "--aspect", "5:4")
    expected = [f"{folder}/dog-{shape}-0.png" for folder in "ab" for shape in ("16x9", "5x4")]
    with shell() as kling:
        kling.emulator.faults.script("file", Fault("expired", times=8))  # each URL, and its renewed URL
        assert kling("bulk", "photos", *words, "-o", "out").exit_code == 1
        assert (files(tmp_path / "out"), len(kling.emulator.account.tasks)) == ([], 4)
        ids = list(kling.emulator.account.tasks)
        assert kling("resume", "out", "-o", "out").exit_code == 0
        assert files(tmp_path / "out") == expected
        for path in (tmp_path / "out").rglob("*.png"):
            path.unlink()
        assert kling("wait", *ids, "-o", "out").exit_code == 0
        assert files(tmp_path / "out") == expected
        assert kling.emulator.account.units_billed == 32


@pytest.mark.parametrize("passed", [0, 1])
def test_passes_continue_after_a_kill(passed: int, tmp_path: Path) -> None:
    """After a kill during the first or second pass, `resume` makes the rest. Each pass is paid for once."""
    photo = portrait(tmp_path)
    words = ("expand", photo, "--aspect", "16:9", "--passes", 2, "-o", tmp_path / "out")
    with shell(work_seconds=600) as kling, kling.start(*words) as process:
        for number in range(1, passed + 2):
            while len(kling.emulator.account.tasks) < number or not has_paid_tasks(tmp_path / "out", number):
                assert process.poll() is None
                time.sleep(0.02)
            if number <= passed:
                kling.within(kling.emulator.advance, 700)
        process.kill()
        process.wait()
        kling.within(kling.emulator.advance, 700)
        with kling.start("resume", tmp_path / "out", "-o", tmp_path / "out") as again:
            while again.poll() is None:
                kling.within(kling.emulator.advance, 100)
                time.sleep(0.1)
            assert again.returncode == 0, again.communicate()
        assert files(tmp_path / "out") == ["tower-0.png"]
        assert kling.emulator.account.units_billed == 16
        assert "saved by an earlier run" in kling(*words).stderr
        assert kling.emulator.account.units_billed == 16


def has_paid_tasks(folder: Path, number: int) -> bool:
    """Return whether the journal has at least *number* paid tasks."""
    done = Shell()("status", folder, "--json")
    return done.exit_code == 0 and json.loads(done.stdout)["units_due"] >= 8 * number
