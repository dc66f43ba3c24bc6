"""`get`, `status`, `list`, `wait` and `download`: tasks of another time, by any of their ids."""

import json
from pathlib import Path

from support.shell import CHELSEA, COFFEE, Shell, shell

from kling_expand.emulator.faults.plan import Fault


def ids(kling: Shell) -> list[str]:
    """The ids of all tasks, oldest first."""
    return list(kling.emulator.account.tasks)


def submitted(kling: Shell, *photos: str) -> list[str]:
    """The ids of tasks for *photos* that nobody waited for."""
    kling("expand", *photos, "--up", 0.5, "--deadline", 0.3)
    return ids(kling)


def test_get_shows_a_task_by_either_id(tmp_path: Path) -> None:
    """One fact a line, or the task in the API's own words as JSON."""
    with shell() as kling:
        kling("expand", COFFEE, "--up", 0.5, "--watermark", "-o", tmp_path)
        (task_id,) = ids(kling)
        facts = json.loads(kling("get", task_id, "--json").stdout)
        assert (facts["task_id"], facts["task_status"], len(facts["images"])) == (task_id, "succeed", 1)
        shown = kling("get", facts["external_task_id"])
        assert shown.exit_code == 0
        for value in (task_id, facts["external_task_id"], facts["images"][0]["watermark_url"], " UTC"):
            assert value in shown.stdout


def test_an_id_nobody_knows_is_one_sentence() -> None:
    """Exit code 1: the service said no."""
    with shell() as kling:
        done = kling("get", "nobody")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "nobody" in done.stderr
    assert "Traceback" not in done.stderr


def test_status_is_one_line_a_task_in_the_order_asked() -> None:
    """An id that cannot be read disturbs no other, and makes the exit code 1."""
    with shell(work_seconds=600) as kling:
        (task_id,) = submitted(kling, COFFEE)
        done = kling("status", "nobody", task_id)
        assert done.exit_code == 1
        assert [line.split()[0] for line in done.stdout.splitlines()] == ["nobody", task_id]
        kling.within(kling.emulator.advance, 700)
        done = kling("status", task_id, "nobody", "--json")
        first, second = map(json.loads, done.stdout.splitlines())
        assert (first["task_status"], "error" in second) == ("succeed", True)
        assert kling("status", task_id).exit_code == 0


def test_list_pages_filters_and_shows_all() -> None:
    """Each task once, whatever the page size."""
    with shell(work_seconds=600) as kling:
        tasks = submitted(kling, COFFEE, CHELSEA, COFFEE)
        assert len(kling("list", "--page-size", 2).stdout.splitlines()) == 2
        assert kling("list", "--page", 9).stdout == ""
        every = kling("list", "--all", "--page-size", 2, "--json").stdout.splitlines()
        assert sorted(json.loads(line)["task_id"] for line in every) == sorted(tasks)
        assert kling("list", "--status", "failed").stdout == ""
        assert len(kling("list", "--status", "processing").stdout.splitlines()) == 3
        assert kling("list", "--page-size", 501).exit_code == 2


def test_wait_saves_each_task_once_under_its_id(tmp_path: Path) -> None:
    """The same id twice is one task; either kind of id will do."""
    with shell(work_seconds=600) as kling:
        first, second = submitted(kling, COFFEE, CHELSEA)
        external = json.loads(kling("get", second, "--json").stdout)["external_task_id"]
        kling.within(kling.emulator.advance, 700)
        done = kling("wait", first, external, first, "-o", tmp_path)
    assert done.exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f"{first}-0.png", f"{second}-0.png"])


def test_waiting_for_a_failed_task_says_why(tmp_path: Path) -> None:
    """Exit code 1, the reason, and no advice to wait again."""
    with shell(work_seconds=600) as kling:
        kling("expand", COFFEE, "--up", 0.5, "--prompt", "emulate-risk-control", "--deadline", 0.3)
        (task_id,) = ids(kling)
        kling.within(kling.emulator.advance, 700)
        done = kling("wait", task_id, "-o", tmp_path)
        assert kling("status", task_id).exit_code == 1
    assert (done.exit_code, done.stdout) == (1, "")
    assert "risk control" in done.stderr
    assert "resume" not in done.stderr


def test_download_does_not_wait(tmp_path: Path) -> None:
    """What has ended is saved, what has not is said to be at work, and how to wait for it."""
    with shell(work_seconds=600) as kling:
        (first,) = submitted(kling, COFFEE)
        kling.within(kling.emulator.advance, 700)
        second = submitted(kling, CHELSEA)[-1]
        done = kling("download", first, second, "-o", tmp_path)
        assert (done.exit_code, done.stdout) == (1, f"{tmp_path / f'{first}-0.png'}\n")
        assert "has not ended" in done.stderr
        assert f"kling-expand wait -o {tmp_path} {second}" in done.stderr


def test_a_result_that_cannot_be_fetched_stays_open(tmp_path: Path) -> None:
    """The task is paid for: the failure of its download names the command that tries again."""
    with shell() as kling:
        kling("expand", COFFEE, "--up", 0.5, "-o", tmp_path)
        (task_id,) = ids(kling)
        kling.emulator.faults.script("file", Fault("expired", times=2))
        done = kling("download", task_id, "-o", tmp_path / "again")
    assert done.exit_code == 1
    assert f" {task_id}" in done.stderr.splitlines()[-1]
    assert list((tmp_path / "again").glob("*")) == []
