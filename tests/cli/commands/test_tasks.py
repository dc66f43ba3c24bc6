"""`get` and `list`: the tasks at the service."""

import json
from pathlib import Path

from support.shell import CHELSEA, COFFEE, Shell, shell


def ids(kling: Shell) -> list[str]:
    """Return the ids of all tasks, oldest first."""
    return list(kling.emulator.account.tasks)


def submitted(kling: Shell, *photos: str) -> list[str]:
    """Submit *photos* without waiting, and return the ids of all tasks."""
    kling("expand", *photos, "--up", 0.5, "--deadline", 0.3, "--no-journal")
    return ids(kling)


def test_get_shows_a_task_by_either_id(tmp_path: Path) -> None:
    """A task is printed with one fact per line, or as JSON."""
    with shell() as kling:
        kling("expand", COFFEE, "--up", 0.5, "--watermark", "-o", tmp_path)
        (task_id,) = ids(kling)
        facts = json.loads(kling("get", task_id, "--json").stdout)
        assert (facts["task_id"], facts["task_status"], len(facts["images"])) == (task_id, "succeed", 1)
        shown = kling("get", facts["external_task_id"])
        assert shown.exit_code == 0
        for value in (task_id, facts["external_task_id"], facts["images"][0]["watermark_url"], " UTC"):
            assert value in shown.stdout


def test_an_unknown_id_is_an_error() -> None:
    """For an unknown id, the exit code is 1."""
    with shell() as kling:
        done = kling("get", "unknown")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "unknown" in done.stderr
    assert "Traceback" not in done.stderr


def test_list_pages_filters_and_shows_all() -> None:
    """With --all, every task is listed once, whatever the page size."""
    with shell(work_seconds=600) as kling:
        submitted(kling, COFFEE, CHELSEA)
        tasks = submitted(kling, COFFEE)
        assert len(kling("list", "--page-size", 2).stdout.splitlines()) == 2
        assert kling("list", "--page", 9).stdout == ""
        every = kling("list", "--all", "--page-size", 2, "--json").stdout.splitlines()
        assert sorted(json.loads(line)["task_id"] for line in every) == sorted(tasks)
        assert kling("list", "--status", "failed").stdout == ""
        assert len(kling("list", "--status", "processing").stdout.splitlines()) == 3
        assert kling("list", "--page-size", 501).exit_code == 2
        assert "'submitted', 'processing'" in kling("list", "--status", "broken").stderr
