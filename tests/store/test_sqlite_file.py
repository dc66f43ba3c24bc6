"""The journal file, which loses no record without an error, despite kills, other programs and full disks."""

import asyncio
import contextlib
import itertools
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kling_expand.errors import JournalError
from kling_expand.models import Task
from kling_expand.store.base import JobIdentity, JobRecord, JobState
from kling_expand.store.sqlite import FORMAT, SQLiteStore
from kling_expand.store.sqlite_file import DatabaseFile, set_journal_mode
from kling_expand.testing import prepared

ROOT = Path(__file__).parents[2]


async def write(store: SQLiteStore, key: str, padding: str = "") -> JobRecord:
    """Record an intent, with *padding* to make its row longer."""
    return await store.record_intent(
        JobIdentity(key, "h"), prepared(key, callback_url=f"https://c/{padding}")
    )


async def keep(path: Path, *keys: str) -> dict[str, str]:
    """Open the journal, write the keys, and return the states in the file by key."""
    async with SQLiteStore(path) as journal:
        for key in keys:
            await write(journal, key)
        return {job.key: str(job.state) async for job in journal.jobs()}


def run(path: Path, *keys: str) -> dict[str, str]:
    return asyncio.run(keep(path, *keys))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.db"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
async def test_only_its_owner_reads_the_journal(path: Path, umask: int) -> None:
    """Only its owner can read a journal, because it names photos, prompts and URLs."""
    before = os.umask(umask)
    try:
        async with SQLiteStore(path) as store:
            await write(store, "k")
            modes = {file.name: oct(file.stat().st_mode & 0o777) for file in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert len(modes) >= 2, modes
    assert set(modes.values()) == {"0o600"}


# ------------------------------------------------------------------------ killed

WRITER = """
import asyncio, os, sys
from kling_expand.store.sqlite import SQLiteStore
from kling_expand.models import Task
from kling_expand.testing import record_job

async def job(journal, key):
    name = (await record_job(journal, key)).external_task_id
    say(f"intent {key}")
    await journal.mark_sending(name)
    say(f"posting {key}")
    await journal.observe(name, Task(f"t-{key}", "submitted"))
    say(f"submitted {key}")
    await journal.observe(name, Task(f"t-{key}", "succeed"))
    say(f"succeeded {key}")
    await journal.mark_saved(name, [f"{key}.png"])
    say(f"done {key}")

def say(line):
    os.write(1, f"{line}\\n".encode())  # one call for each line: none is ever half out

async def main(path, prefix):
    async with SQLiteStore(path) as journal:
        async def worker(number):
            for count in range(1_000_000):
                await job(journal, f"{prefix}-{number}-{count}")
        await asyncio.gather(*map(worker, range(64)))

asyncio.run(main(*sys.argv[1:]))
"""
ORDER = ["intent", "posting", "submitted", "succeeded", "done"]


def kill_while_writing(path: Path, prefix: str, lines: int) -> list[tuple[str, str]]:
    """Return the records that a writer, killed after about *lines* writes, had acknowledged."""
    command = [sys.executable, "-c", WRITER, str(path), prefix]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as child:
        assert child.stdout is not None
        lines_read = [child.stdout.readline() for _ in range(lines)]
        child.send_signal(signal.SIGKILL)
        lines_read += child.stdout.readlines()
    assert child.returncode == -signal.SIGKILL
    return [(word, key) for word, key in (line.decode().split() for line in lines_read)]


async def known(path: Path) -> dict[str, tuple[str, str | None, float | None]]:
    async with SQLiteStore(path) as journal:
        return {job.key: (str(job.state), job.task_id, job.last_post_at) async for job in journal.jobs()}


def test_everything_acknowledged_survives_sigkill(path: Path) -> None:
    """After a SIGKILL in the middle of thousands of writes, no acknowledged record is missing."""
    acknowledged: dict[str, str] = {}
    for round_, lines in enumerate((500, 3000, 1501)):
        for word, key in kill_while_writing(path, str(round_), lines):
            acknowledged[key] = max(word, acknowledged.get(key, "intent"), key=ORDER.index)
    jobs = asyncio.run(known(path))
    assert len(acknowledged) > 500
    for key, word in acknowledged.items():
        state, task_id, last_post_at = jobs[key]
        if word == "posting":
            assert last_post_at is not None
        else:
            assert ORDER.index(state) >= ORDER.index(word)
        if ORDER.index(word) >= ORDER.index("submitted"):
            assert task_id == f"t-{key}"


def test_a_journal_without_its_log_causes_a_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that was copied without its log appears complete, so opening it logs a warning."""
    kill_while_writing(path, "a", 200)
    lone, pair = path.with_name("lone.db"), path.with_name("pair.db")
    for copy in (lone, pair):
        shutil.copy(path, copy)
    shutil.copy(f"{path}-wal", f"{pair}-wal")
    assert run(pair)
    assert not caplog.records
    run(lone)
    assert [f"{lone}-wal is missing" in record.getMessage() for record in caplog.records] == [True]
    run(lone)
    assert len(caplog.records) == 1


# ------------------------------------------------------------------------ shared

OPENER = """
import asyncio, sys
from kling_expand.errors import JournalError
from kling_expand.store.sqlite import SQLiteStore

async def main(path):
    sys.stdin.readline()
    try:
        async with SQLiteStore(path):
            print("open", flush=True)
            sys.stdin.readline()
    except JournalError as error:
        print(error, flush=True)

asyncio.run(main(sys.argv[1]))
"""


@contextlib.contextmanager
def opener(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Start another process, which opens the journal at a signal and holds it until the next one."""
    command = [sys.executable, "-c", OPENER, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as child:
        yield child
        child.kill()


def signal_child(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


def read_line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def test_the_error_names_the_process_that_has_the_file_open(path: Path) -> None:
    """The error names the process that has the file open, and the file is free once it is killed."""
    run(path, "a")
    with opener(path) as child:
        signal_child(child)
        assert read_line(child) == "open"
        with pytest.raises(JournalError, match=f"process {child.pid} has it open.*name another file"):
            run(path, "b")
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert run(path, "c") == {"a": "intent", "c": "intent"}


def test_only_one_of_two_concurrent_openers_gets_a_new_file(path: Path) -> None:
    """If two processes open a new file at the same time, exactly one gets it."""
    with opener(path) as one, opener(path) as other:
        signal_child(one)
        signal_child(other)
        outputs = sorted([read_line(one), read_line(other)])
        assert outputs[0] == "open" or outputs[1] == "open"
        assert "has it open" in "".join(outputs)


async def test_each_worker_takes_the_first_free_file(tmp_path: Path) -> None:
    """With ``{worker}`` in the name, each store gets its own file, and the next store reuses a free one."""
    name = tmp_path / "run-{worker}.db"
    async with SQLiteStore(name) as first, SQLiteStore(name) as second:
        with opener(name) as child:  # in another process
            signal_child(child)
            assert await asyncio.to_thread(read_line, child) == "open"
            async with SQLiteStore(name) as fourth:
                names = [Path(store.path).name for store in (first, second, fourth)]
                assert names == ["run-0.db", "run-1.db", "run-3.db"]
        await write(second, "a")
        await second.aclose()
        async with SQLiteStore(name) as restarted:
            assert Path(restarted.path).name == "run-1.db"
            assert [job.key async for job in restarted.jobs()] == ["a"]


async def test_a_worker_file_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    """Only a file that is open elsewhere is skipped, and any other error is raised."""
    (tmp_path / "run-0.db").write_bytes(b"not a journal" * 100)
    with pytest.raises(JournalError, match=r"run-0\.db.*not a journal"):
        await keep(tmp_path / "run-{worker}.db")


async def test_a_store_that_was_just_closed_can_be_opened_again(path: Path) -> None:
    """Closing never affects the file of the next opening, however late its thread runs."""
    store = SQLiteStore(path)
    for number in range(50):
        async with store:
            await write(store, str(number))
            assert sum((await store.counts()).values()) == number + 1


async def test_a_second_opener_in_this_process_is_refused(path: Path) -> None:
    """The lock also holds within one process, whatever name of the file is used."""
    async with SQLiteStore(path) as journal:
        await write(journal, "a")
        names = [path, path.with_name("soft.db"), path.with_name("hard.db")]
        names[1].symlink_to(path)
        names[2].hardlink_to(path)
        for name in names:
            with pytest.raises(JournalError, match="this process has it open"):
                await keep(name)
        await write(journal, "b")
    assert await keep(path) == {"a": "intent", "b": "intent"}


SHELL = [
    sys.executable,
    "-c",
    "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('SELECT * FROM jobs')",
]
# A program that locks the file as SQLite does, until it is killed.
LOCKER = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX, 1, 0x40000000)
    print(flush=True)
    sys.stdin.read()
"""


async def refused(path: Path) -> str:
    """Return the error of another process that tries to open the journal."""
    with opener(path) as child:
        signal_child(child)
        return await asyncio.to_thread(read_line, child)


async def test_the_lock_survives_a_copy_of_the_file(path: Path) -> None:
    """POSIX drops a process's locks when it closes any descriptor of a file, as each backup does."""
    async with SQLiteStore(path) as store:
        await write(store, "a")
        for read in (lambda: shutil.copy(path, path.with_name("backup.db")), path.read_bytes):
            read()
            assert f"process {os.getpid()} has it open" in await refused(path)
        await write(store, "b")
        shell = await asyncio.to_thread(subprocess.run, [*SHELL, str(path)], capture_output=True)
        assert b"locked" in shell.stderr  # by SQLite's own lock, the only one that a shell checks
    assert await keep(path) == {"a": "intent", "b": "intent"}


async def test_the_lock_survives_a_second_store(path: Path) -> None:
    """A second store that is refused in the same process does not release the lock of the first."""
    async with SQLiteStore(path) as store:
        with pytest.raises(JournalError, match="this process has it open"):
            await SQLiteStore(path).__aenter__()
        assert f"process {os.getpid()} has it open" in await refused(path)
        await write(store, "a")
    assert await keep(path, "b") == {"a": "intent", "b": "intent"}


async def test_a_program_that_opened_the_file_is_reported(path: Path) -> None:
    """If another program opened the file while the lock was lost, writes fail until it closes the file."""
    async with SQLiteStore(path) as store:
        await write(store, "a")
        await asyncio.to_thread(path.read_bytes)
        command = [sys.executable, "-c", LOCKER, str(path)]
        other = await asyncio.create_subprocess_exec(*command, stdin=-1, stdout=-1)
        assert other.stdout is not None
        await other.stdout.readline()
        with pytest.raises(JournalError, match="opened by another program"):
            await write(store, "b")
        other.kill()
        await other.wait()
        await write(store, "c")
    assert await keep(path) == {"a": "intent", "c": "intent"}


FORKER = """
import asyncio, os, sys, time
from kling_expand.store.sqlite import SQLiteStore

async def main(path):
    async with SQLiteStore(path):
        if os.fork() == 0:
            os.write(1, b"forked\\n")
            time.sleep(60)
        await asyncio.sleep(60)

asyncio.run(main(sys.argv[1]))
"""


def test_a_forked_child_holds_no_lock(path: Path) -> None:
    """Once its process is dead, the file is free, even if a forked child is still running."""
    command = [sys.executable, "-c", FORKER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, start_new_session=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"forked\n"
        with pytest.raises(JournalError, match=f"process {parent.pid} has it open"):
            run(path)
        parent.kill()
        os.waitpid(parent.pid, 0)
        assert run(path, "a") == {"a": "intent"}
        os.killpg(parent.pid, signal.SIGKILL)


def test_a_file_locked_by_another_program_is_waited_for(path: Path) -> None:
    """If another program keeps the file locked beyond the time limit, opening it raises an error."""
    run(path, "a")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        with pytest.raises(JournalError, match="another program has it open"):
            run(path)
    assert run(path) == {"a": "intent"}


# ------------------------------------------------------------------------ foreign or damaged files


def foreign(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE jobs (a)")
        db.commit()


def newer(path: Path) -> None:
    run(path, "a")
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 4")
        db.execute("PRAGMA journal_mode = DELETE")


def cut(path: Path) -> None:
    run(path, *map(str, range(40)))
    os.truncate(path, path.stat().st_size * 2 // 3)


def overwritten(path: Path) -> None:
    run(path, *map(str, range(40)))
    with path.open("r+b") as file:
        file.seek(3 * 4096)
        file.write(b"\xa5" * 4096)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (foreign, "another program's database; name another file"),
        (newer, "must be at most 3, got 4; use the version"),
        (cut, "it is damaged; restore a copy"),
        (overwritten, "it is damaged; restore a copy"),
        (lambda path: path.write_text("to do: buy milk, " * 500), "not a journal; name another file"),
        (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), "not a journal; name another file"),
    ],
    ids=["foreign", "newer", "cut", "overwritten", "text", "short"],
)
def test_a_file_of_another_kind_is_not_changed(path: Path, damage: Any, words: str) -> None:
    """A file of another kind raises an error and stays unchanged."""
    damage(path)
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(JournalError, match=words):
            run(path, "b")
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_an_empty_file_is_used_with_a_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An empty file may be new or damaged, so it is used and a warning is logged."""
    path.touch()
    assert run(path, "a") == {"a": "intent"}
    assert ["was an empty file" in record.getMessage() for record in caplog.records] == [True]


def test_a_partial_commit_at_the_end_of_the_log_is_ignored(path: Path) -> None:
    """A partial commit at the end of the log was never acknowledged, and earlier commits are kept."""
    acknowledged = kill_while_writing(path, "a", 500)
    with Path(f"{path}-wal").open("ab") as log:
        log.write(os.urandom(5000))
    assert {key for word, key in acknowledged if word == "intent"} <= set(run(path))


# ------------------------------------------------------------------------ no space, permission or file


@pytest.mark.parametrize(
    "name", ["missing/run.db", "file/run.db", "folder", "/proc/run.db", "/dev/null/run.db"]
)
def test_an_unwritable_directory_is_named(tmp_path: Path, name: str) -> None:
    """The error names a missing or protected directory as the cause."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(JournalError, match="directory is missing or not writable"):
        run(tmp_path / name)


@contextlib.contextmanager
def no_rights(folder: Path) -> Iterator[None]:
    """Remove write permission for *folder* and its files, and become another user if root."""
    files = [*folder.iterdir()]
    for file in files:
        file.chmod(0o444)
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)
        for file in files:
            file.chmod(0o644)


def test_a_journal_in_a_read_only_directory_cannot_be_opened() -> None:
    """In a read-only directory, opening a new or an old journal fails with the reason."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to other users
        old, new = Path(folder, "old.db"), Path(folder, "new.db")
        run(old, "a")
        before = old.read_bytes()
        with no_rights(Path(folder)):
            with pytest.raises(JournalError, match="not writable"):
                run(new)
            with pytest.raises(JournalError, match="read-only"):
                run(old)
        assert (old.read_bytes(), new.exists()) == (before, False)
        assert run(old) == {"a": "intent"}


async def fill(journal: SQLiteStore) -> list[str]:
    """Write until the disk is full, and return the acknowledged keys."""
    done: list[str] = []

    async def write_until_refused() -> None:
        for number in range(100_000):
            await asyncio.gather(*(write(journal, f"{number}-{part}", "x" * 2000) for part in "abc"))
            done.extend(f"{number}-{part}" for part in "abc")

    with pytest.raises(JournalError, match=r"the disk (is full|refused a write)"):
        await write_until_refused()
    return done


async def test_a_full_disk_fails_only_its_own_batch(path: Path) -> None:
    """A failed batch leaves no records, acknowledged ones stay, and writes work again once there is space."""
    async with SQLiteStore(path) as journal:
        await journal._execute(lambda db: db.execute("PRAGMA max_page_count = 60").fetchall())
        done = await fill(journal)
        with pytest.raises(JournalError, match="the disk is full; free some space"):
            await write(journal, "again", "x" * 20_000)
        assert [job.key async for job in journal.jobs()] == done
        await journal._execute(lambda db: db.execute("PRAGMA max_page_count = 10000").fetchall())
        await write(journal, "again", "x" * 20_000)
    assert list(await keep(path)) == [*done, "again"]


async def test_a_quota_acts_like_a_full_disk(path: Path) -> None:
    """A file-size limit of the operating system acts like a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with SQLiteStore(path) as journal:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
        try:
            done = await fill(journal)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert [job.key async for job in journal.jobs()] == done
        await write(journal, "again")
    assert list(await keep(path)) == [*done, "again"]


async def test_a_failed_database_rolls_the_whole_batch_back(path: Path) -> None:
    """If the database fails, the whole batch fails and is rolled back, and the next batch is tried."""
    async with SQLiteStore(path) as journal:
        before, trouble = await asyncio.gather(
            write(journal, "a"), journal._execute(lambda db: db.execute("nonsense")), return_exceptions=True
        )
        assert isinstance(before, JournalError)
        assert "syntax error" in str(before)
        assert str(before) == str(trouble)
        assert await journal.find("a") is None
        await write(journal, "b")
    assert await keep(path) == {"b": "intent"}


def delete(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    other = path.with_name("other.db")
    shutil.copy(path, other)
    other.replace(path)


def lose_log(path: Path) -> None:
    Path(f"{path}-wal").unlink()


def move_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))


@pytest.mark.parametrize("damage", [delete, replace, lose_log, move_folder])
async def test_a_file_deleted_while_open_fails_every_write(tmp_path: Path, damage: Any) -> None:
    """After the file is deleted, every write raises the reason, and closing still works."""
    path = tmp_path / "folder" / "run.db"
    path.parent.mkdir()
    async with SQLiteStore(path) as journal:
        job = await write(journal, "a")
        damage(path)
        for call in (
            write(journal, "b"),
            journal.observe(job.external_task_id, Task("t", "submitted")),
            journal.observe(job.external_task_id, Task("t", "succeed")),
        ):
            with pytest.raises(JournalError, match="deleted or replaced while it was open"):
                await call
    with pytest.raises(JournalError, match="not open"):
        await write(journal, "c")


async def test_inode_numbers_may_change(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose inode number changes, as on FUSE, is still the same file."""
    numbers, plain = itertools.count(1), os.stat

    def changing(name: Any, *more: Any, **options: Any) -> os.stat_result:
        found = plain(name, *more, **options)
        return os.stat_result((found.st_mode, next(numbers), *found[2:]))

    async with SQLiteStore(path) as store:
        monkeypatch.setattr(os, "stat", changing)
        for key in "abc":
            await write(store, key)
    monkeypatch.undo()
    assert await keep(path) == dict.fromkeys("abc", "intent")


async def test_a_replaced_file_with_two_names_is_noticed(path: Path) -> None:
    """A replaced file is noticed although its other name keeps it alive."""
    async with SQLiteStore(path) as store:
        await write(store, "a")
        path.with_name("other name.db").hardlink_to(path)
        await write(store, "b")
        replace(path)
        with pytest.raises(JournalError, match="deleted or replaced"):
            await write(store, "c")


def test_nothing_is_acknowledged_after_the_close(path: Path) -> None:
    """A batch after the close fails, and a second close is harmless."""
    database = DatabaseFile(str(path), FORMAT)
    database.open()
    database.close()
    database.close()
    outcomes = database.commit([lambda _db: 1, lambda _db: 2])
    assert [str(outcome) for outcome in outcomes] == [f"the journal {path} is closed"] * 2


# ------------------------------------------------------------------------ written by an earlier version

FIRST_VERSION = """
PRAGMA application_id = 0x4B6C4578;
PRAGMA user_version = 1;
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, external_task_id TEXT NOT NULL UNIQUE,
    params_hash TEXT NOT NULL, attempt INTEGER NOT NULL, latest INTEGER NOT NULL DEFAULT 1,
    state TEXT NOT NULL, task_id TEXT,
    last_post_at REAL, snapshot TEXT, error TEXT, files BLOB, source BLOB, params TEXT NOT NULL,
    created_at REAL NOT NULL, updated_at REAL NOT NULL, UNIQUE (key, params_hash, attempt)
);
CREATE INDEX jobs_by_state ON jobs (state, id) WHERE latest = 1;
INSERT INTO meta VALUES ('run', 'r');
"""
PARAMS = (
    '{"image":"","up_expansion_ratio":0.0,"down_expansion_ratio":0.0,"left_expansion_ratio":0.0,'
    '"right_expansion_ratio":0.5,"prompt":"a park","n":2,"external_task_id":""}'
)


async def test_files_of_the_first_version_are_read(path: Path) -> None:
    """A file of the first version is read with every state, request and task, and accepts new records."""
    words = ["intent", "unknown", "rejected", "submitted", "succeeded", "done", "failed"]
    snapshot = '{"task_id":"7","task_status":"succeed","final_unit_deduction":"16"}'
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(FIRST_VERSION)
        for word in words:
            values = (word, word, word, snapshot if word == "done" else None, b"/in/dog.png", PARAMS)
            db.execute(
                "INSERT INTO jobs (key, external_task_id, params_hash, attempt, state, snapshot, source,"
                " params, created_at, updated_at) VALUES (?, ?, 'h', 1, ?, ?, ?, ?, 1, 2)",
                values,
            )
        db.commit()
    async with SQLiteStore(path, run="r") as store:
        jobs = {str(job.state): job async for job in store.jobs()}
        await store.mark_sending("intent")
    async with SQLiteStore(path, run="r") as store:
        sent = await store.get("intent")
    assert sent is not None
    assert sent.may_exist
    assert list(jobs) == words
    assert jobs["done"].task == Task("7", "succeed", final_unit_deduction="16")
    request = jobs["intent"].request
    assert request is not None
    assert (request.image, request.prompt, request.n, request.key) == ("/in/dog.png", "a park", 2, "intent")


# ------------------------------------------------------------------------ how it is written


async def test_commits_are_on_disk(path: Path) -> None:
    """The journal uses a write-ahead log, and every commit is flushed."""
    asked = ["journal_mode", "synchronous", "locking_mode", "application_id", "user_version"]

    def ask(db: sqlite3.Connection) -> list[Any]:
        return [db.execute(f"PRAGMA {name}").fetchone()[0] for name in asked]

    async with SQLiteStore(path) as journal:
        assert await journal._execute(ask) == ["wal", 2, "exclusive", 0x4B6C4578, 3]


def test_commits_are_flushed_without_a_write_ahead_log(path: Path) -> None:
    """Without a write-ahead log, commits use a rollback journal and flush the directory too."""
    run(path, "a")
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = DELETE")
    uri = f"{path.as_uri()}?nolock=1"  # SQLite uses no write-ahead log where it cannot lock
    with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as db:
        assert set_journal_mode(db) == "delete"
        assert db.execute("PRAGMA synchronous").fetchone() == (3,)
        db.execute("UPDATE jobs SET state = 'unknown'")
    assert run(path) == {"a": str(JobState.UNKNOWN)}
