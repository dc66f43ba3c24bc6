"""The blocking client: every method is called from plain functions, against a real server."""

import asyncio
import concurrent.futures
import inspect
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pytest

import kling_expand
from kling_expand import ExpandRequest, Padding, Ratios, Status, Task
from kling_expand._portal import LoopThread
from kling_expand.blocking import ExpandResult, KlingClient, Outcome, ResultImage, TaskFuture
from kling_expand.emulator import Emulator
from kling_expand.errors import (
    ClientClosed,
    ConfigurationError,
    DeadlineExceeded,
    ImageError,
    InvalidRequest,
    JournalError,
    NotSubmitted,
    TaskNotFound,
)
from kling_expand.jobs.bulk import Row
from kling_expand.jobs.poll_schedule import ExponentialSchedule
from kling_expand.store.base import JobRecord
from kling_expand.webhooks import WebhookEvent

PHOTOS = Path(__file__).parent.parent / "examples" / "photos"
WIDER = Ratios(right=0.5)


def emulating(**settings: Any) -> Iterator[Emulator]:
    """Yield an emulator that runs in its own thread."""
    thread = LoopThread()
    thread.start()
    emulator = Emulator(engine="flat", **settings)
    thread.run(emulator.__aenter__())
    yield emulator
    thread.run(emulator.__aexit__(None, None, None))
    thread.stop()


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    """Yield an emulator with short tasks."""
    yield from emulating(queue_seconds=0.02, work_seconds=0.02)


@pytest.fixture
def endless() -> Iterator[Emulator]:
    """Yield an emulator whose tasks do not end."""
    yield from emulating(queue_seconds=0.0, work_seconds=3600.0)


def options(emulator: Emulator) -> dict[str, Any]:
    """Return the options of a client that polls often."""
    schedule = ExponentialSchedule(Random(1), first=0.03, longest=0.3)
    return {"api_key": emulator.api_key, "base_url": emulator.url, "schedule": schedule}


@pytest.fixture
def kling(emulator: Emulator) -> Iterator[KlingClient]:
    """Yield an open client."""
    with KlingClient(**options(emulator)) as kling:
        yield kling


def test_a_photo_is_expanded_and_saved(kling: KlingClient, emulator: Emulator, tmp_path: Path) -> None:
    """A photo is expanded and saved in two lines, and paid for once."""
    result = kling.expand(PHOTOS / "coffee.jpg", WIDER, n=2)
    paths = result.save(tmp_path)
    assert [path.name for path in paths] == ["coffee-0.png", "coffee-1.png"]
    assert all(path.stat().st_size for path in paths)
    assert emulator.account.images_billed == 2
    assert result.request is not None
    assert result.request.n == len(result.images)
    assert result.task.task_id == result.task_id


def test_a_for_loop_yields_each_new_snapshot(kling: KlingClient) -> None:
    """A ``for`` loop yields each new snapshot, and after it the result is available."""
    future = kling.submit(PHOTOS / "coffee.jpg", WIDER, external_task_id="mine")
    assert future.external_task_id == "mine"
    assert future.accepted().task_id == future.task_id
    with pytest.raises(InvalidRequest, match="timeout must not be NaN"):
        future.result(timeout=float("nan"))
    statuses = [task.status for task in future]
    assert statuses[-1] is Status.SUCCEED
    assert future.done()
    assert future.wait(timeout=0)
    assert future.error is None
    assert future.result().task == future.task


def test_functions_of_concurrent_futures_accept_futures(kling: KlingClient, tmp_path: Path) -> None:
    """`wait` and `as_completed` accept futures, and each callback runs once, even if added after the end."""
    good = kling.submit(PHOTOS / "coffee.jpg", WIDER)
    bad = kling.submit(tmp_path, WIDER)
    called: list[object] = []
    good.add_done_callback(called.append)
    assert concurrent.futures.wait([good, bad], timeout=30) == ({good, bad}, set())
    assert set(concurrent.futures.as_completed([good, bad])) == {good, bad}
    assert [good.exception(), type(bad.exception())] == [None, ImageError]
    good.add_done_callback(called.append)
    assert called == [good, good]
    assert not good.running()
    with pytest.raises(ImageError):
        bad.result()


def test_a_wait_for_a_result_may_have_a_timeout(endless: Emulator) -> None:
    """`result` and `exception` raise a `TimeoutError` with the ids, and can be called again."""
    with KlingClient(**options(endless)) as kling:
        future = kling.submit(PHOTOS / "coffee.jpg", WIDER, deadline=3600)
        task = future.accepted()
        assert future.running()
        for wait in (future.result, future.exception):
            for timeout in (0, 0.01):
                with pytest.raises(TimeoutError) as caught:
                    wait(timeout)
                assert isinstance(caught.value, DeadlineExceeded)
                assert caught.value.task_id == task.task_id
        assert concurrent.futures.wait([future], timeout=0.01).not_done == {future}
    assert isinstance(future.exception(), ClientClosed)
    assert concurrent.futures.wait([future]).done == {future}


def test_only_an_unsent_job_can_be_cancelled(endless: Emulator) -> None:
    """`cancel` ends only a job that was not sent, and its future raises `NotSubmitted`."""
    with KlingClient(**options(endless), max_in_flight=1) as kling:
        running = kling.submit(PHOTOS / "coffee.jpg", Ratios(right=0.1))
        running.accepted()  # before the other is submitted, which would race it for the only slot
        waiting = kling.submit(PHOTOS / "coffee.jpg", Ratios(right=0.2))
        assert [running.cancel(), waiting.cancel()] == [False, True]
        assert concurrent.futures.wait([waiting]).done == {waiting}
        assert [running.cancelled(), waiting.cancelled()] == [False, True]
        assert isinstance(waiting.exception(), NotSubmitted)


async def test_asyncio_waits_for_a_blocking_future(kling: KlingClient) -> None:
    """A future can be awaited through `asyncio.wrap_future`."""
    future = await asyncio.to_thread(kling.submit, PHOTOS / "coffee.jpg", WIDER)
    result = await asyncio.wrap_future(future)
    assert result.task_id == future.task_id


def test_a_result_is_available_after_the_client_was_closed(emulator: Emulator) -> None:
    """A result is still available after the client was closed."""
    with KlingClient(**options(emulator)) as kling:
        future = kling.submit(PHOTOS / "coffee.jpg", WIDER)
        result = future.result()
        assert kling.settings.base_url == emulator.url
    assert future.result().task == result.task
    assert future.exception() is None


def test_leaving_with_logs_the_running_tasks(endless: Emulator, caplog: pytest.LogCaptureFixture) -> None:
    """Leaving ``with`` logs the running tasks, as the asynchronous client does."""
    with KlingClient(**options(endless)) as kling:
        task = kling.create(PHOTOS / "coffee.jpg", WIDER)
    assert f"1 task continues at the service: {task.task_id}" in caplog.text


def test_each_request_has_an_outcome(kling: KlingClient, emulator: Emulator, tmp_path: Path) -> None:
    """Each request has an outcome, even if it failed, and results can be saved."""
    names = ["coffee.jpg", "CREDITS.md", "rocket.jpg"]
    requests = [ExpandRequest(PHOTOS / name, Padding(left=100)) for name in names]
    outcomes = list(kling.map(requests, ordered=True))
    assert [outcome.request for outcome in outcomes] == requests
    assert [isinstance(outcome.error, ImageError) for outcome in outcomes] == [False, True, False]
    assert [outcome.result.save(tmp_path)[0].name for outcome in outcomes if outcome.result] == [
        "coffee-0.png",
        "rocket-0.png",
    ]
    assert emulator.account.images_billed == 2


def test_a_map_saves_pictures_and_survives_a_bad_row(kling: KlingClient, tmp_path: Path) -> None:
    """With `save_to` each outcome has its files, and an invalid row has an outcome of its own."""
    names = {"coffee.jpg": 0, "rocket.jpg": 1}
    rows = [{"image": PHOTOS / name, "geometry": WIDER, "n": n} for name, n in names.items()]
    bad, good = kling.map(rows, ordered=True, save_to=tmp_path)
    assert isinstance(bad.error, InvalidRequest)
    assert bad.request is None
    assert good.files == (tmp_path / "rocket-0.png",)
    assert good.request.image == PHOTOS / "rocket.jpg"


def test_pictures_can_be_read_without_a_file(kling: KlingClient, tmp_path: Path) -> None:
    """`read` and `stream` return the same bytes that `save` writes."""
    result = kling.expand(PHOTOS / "coffee.jpg", WIDER, n=2)
    written = tuple(path.read_bytes() for path in result.save(tmp_path))
    assert result.read() == written
    assert tuple(image.read() for image in result.images) == written
    assert b"".join(result.images[1].stream()) == written[1]


def test_the_source_of_a_map_may_use_the_client(kling: KlingClient) -> None:
    """The source of a `map` may use the same client while `map` iterates over it."""

    def chain() -> Iterator[ExpandRequest]:
        for number in range(2):
            yield ExpandRequest(PHOTOS / "coffee.jpg", WIDER, key=f"{number}-{len(kling.list())}")

    keys = [outcome.request.key for outcome in kling.map(chain(), prefetch=1)]
    assert keys == ["0-0", "1-1"]


def test_leaving_a_map_cancels_unsent_jobs(endless: Emulator) -> None:
    """After `break` only jobs that were sent are paid for, and the client still works."""
    with KlingClient(**options(endless), max_in_flight=1) as kling:
        bad = ExpandRequest(PHOTOS / "CREDITS.md", WIDER)
        good = ExpandRequest(PHOTOS / "coffee.jpg", WIDER)
        for outcome in kling.map([bad, good, good, good]):
            assert outcome.error is not None
            break
        created = len(endless.account.tasks)  # a create that was sent may still arrive
        assert created <= len(kling.list()) <= len(endless.account.tasks) <= 1


def test_tasks_can_be_read_listed_and_attached(kling: KlingClient) -> None:
    """Tasks can be read by either id, listed, and attached as futures."""
    task = kling.create(PHOTOS / "coffee.jpg", WIDER, external_task_id="order-7")
    result = kling.attach("order-7").result()
    assert result.task_id == task.task_id == kling.get(task.task_id).task_id
    assert [each.task_id for each in kling.tasks()] == [each.task_id for each in kling.list()]
    with pytest.raises(TaskNotFound):
        kling.get("unknown-id")


def test_a_second_run_continues_the_jobs_of_its_journal(emulator: Emulator, tmp_path: Path) -> None:
    """A second run of a script continues the jobs of the first and pays for nothing twice."""
    journal = tmp_path / "run.db"
    with KlingClient(**options(emulator), journal=journal) as kling:
        kling.create(PHOTOS / "coffee.jpg", WIDER, key="coffee")
    with KlingClient(**options(emulator), journal=journal) as kling:
        (path,) = [path for future in kling.resume() for path in future.result().save(tmp_path)]
    assert path.name == "coffee-0.png"
    with KlingClient(**options(emulator), journal=journal) as kling:
        assert list(kling.resume()) == []
        again = kling.expand(PHOTOS / "coffee.jpg", WIDER, key="coffee")
    assert [file.resolve() for file in again.files] == [path.resolve()]
    assert emulator.account.images_billed == 1


def test_callbacks_can_be_passed_from_any_thread(kling: KlingClient) -> None:
    """A program with its own web server can pass callbacks to the client from any thread."""
    call = kling.receive({}, b'{"task_id":"1","task_status":"succeed"}')
    assert call.needs_poll


def test_threads_share_one_client(kling: KlingClient, emulator: Emulator) -> None:
    """Many threads may expand at once, and each gets its own picture."""
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: kling.expand(PHOTOS / "chelsea.jpg", WIDER), range(8)))
    assert len({result.task_id for result in results}) == 8
    assert emulator.account.images_billed == 8


async def test_methods_work_while_another_loop_runs(emulator: Emulator) -> None:
    """The methods work in a notebook, where another event loop runs."""
    kling = KlingClient(**options(emulator)).open()
    assert kling.list() == ()
    assert asyncio.get_running_loop().is_running()
    kling.close()


def test_close_returns_the_running_tasks(endless: Emulator) -> None:
    """`close` returns the tasks that are still running, so that another process can attach them."""
    kling = KlingClient(**options(endless)).open()
    task = kling.create(PHOTOS / "coffee.jpg", WIDER)
    (running,) = kling.close()
    assert running.task_id == task.task_id
    assert isinstance(running.error, ClientClosed)
    assert kling.close() == ()


def test_a_client_that_is_not_open_raises(emulator: Emulator) -> None:
    """Before and after `with`, every method raises an error instead of waiting forever."""
    kling = KlingClient(**options(emulator))
    with pytest.raises(ClientClosed):
        kling.list()
    with kling:
        assert kling.list() == ()
    with pytest.raises(ClientClosed):
        kling.submit(PHOTOS / "coffee.jpg", WIDER)


def test_bad_options_raise_in_the_line_that_passes_them(emulator: Emulator) -> None:
    """Bad options and bad requests raise an error in the line that passes them."""
    with pytest.raises(ConfigurationError, match="secret key is missing"):
        KlingClient(access_key="half of a pair")
    with KlingClient(**options(emulator)) as kling, pytest.raises(InvalidRequest):
        kling.submit(PHOTOS / "coffee.jpg")


def test_a_failed_open_leaves_no_thread(emulator: Emulator, tmp_path: Path) -> None:
    """A failed `open` stops the background thread."""

    def ours() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "kling-expand"]

    foreign = tmp_path / "letter.txt"
    foreign.write_text("no journal" * 1000)
    before = ours()
    with pytest.raises(JournalError):
        KlingClient(**options(emulator), journal=foreign).open()
    assert ours() == before


def test_opening_an_open_client_changes_nothing(kling: KlingClient) -> None:
    """An open client can be opened again, because a notebook cell may run twice."""
    assert kling.open() is kling
    assert kling.list() == ()


def program(emulator: Emulator, code: str, *flags: str) -> tuple[str, str, int]:
    """Run *code* in a new interpreter, and return its output, its errors and its exit code."""
    prelude = f"""
import queue, sys, tempfile, threading
from kling_expand import ExpandRequest, Ratios
from kling_expand.blocking import KlingClient
PHOTO, WIDER = {str(PHOTOS / "coffee.jpg")!r}, Ratios(right=0.5)
def make(**options):
    return KlingClient(api_key={emulator.api_key!r}, base_url={emulator.url!r}, **options)
"""
    ran = subprocess.run(
        [sys.executable, *flags, "-c", prelude + code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # On a busy machine asyncio's debug mode reports slow steps, which are not the client's fault.
    lines = [line for line in ran.stderr.splitlines(keepends=True) if not line.startswith("Executing <")]
    return ran.stdout, "".join(lines), ran.returncode


LEFT_OPEN = {
    "idle": "print(len(make().open().list()))",
    "with a journal": """
kling = make(journal=tempfile.mkdtemp() + "/run.db").open()
print(len(kling.list()))
""",
    "after a job": """
kling = make(journal=tempfile.mkdtemp() + "/run.db").open()
print(len(kling.expand(PHOTO, WIDER, key="a").save(tempfile.mkdtemp())) - 1)
""",
    "with a job under way": """
kling = make(journal=tempfile.mkdtemp() + "/run.db").open()
print(kling.submit(PHOTO, WIDER, key="a").done() - 0)
""",
    "in a map whose source waits": """
requests = queue.Queue()
requests.put(ExpandRequest(PHOTO, WIDER))
outcomes = make().open().map(iter(requests.get, None))
print(next(outcomes).index)
""",
    "two of them": """
first, second = make().open(), make().open()
print(len(first.list()) + len(second.list()))
""",
}


@pytest.mark.parametrize("code", LEFT_OPEN.values(), ids=LEFT_OPEN.keys())
def test_a_program_with_an_open_client_ends(emulator: Emulator, code: str) -> None:
    """A program that never closes its client ends at once, and a forgotten job is logged with its id."""
    out, err, status = program(emulator, code, "-X", "dev", "-W", "error")
    assert (out, status) == ("0\n", 0)
    forgotten = r"(the error of a job was never retrieved|.* 1 task continues at the service): .*\S{18,}.*\n"
    assert re.fullmatch(forgotten if "kling.submit(" in code else "", err)


def test_a_program_ends_while_a_daemon_thread_waits_for_a_client(endless: Emulator) -> None:
    """A thread that waits for a result does not keep the interpreter alive."""
    code = """
kling = make(journal=tempfile.mkdtemp() + "/run.db").open()
future = kling.submit(PHOTO, WIDER)
future.accepted()
threading.excepthook = lambda hooked: print(hooked.exc_type.__name__)
threading.Thread(target=future.result, daemon=True).start()
print("end")
"""
    out, _err, status = program(endless, code)
    assert out.startswith("end\n")
    assert status == 0


FORK = """
import os
from kling_expand.errors import ClientClosed

kling, unopened, closed = make().open(), make(), make().open()
closed.close()
future = kling.submit(PHOTO, WIDER)
snapshots = iter(future)
next(snapshots)
child = os.fork()
if child == 0:
    calls = [kling.list, kling.open, future.result, lambda: next(snapshots), lambda: next(kling.map([]))]
    for call in calls:
        try:
            call()
        except ClientClosed as error:
            assert "os.fork" in str(error), error
        else:
            print("no error")
    assert kling.close() == ()
    for other in (unopened, closed):
        with other:
            print(len(other.list()))
    sys.exit(7)  # with the client of the parent left open
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(len(future.result().images))
"""


def test_calls_raise_after_a_fork(emulator: Emulator) -> None:
    """In the child every call raises an error with advice, and the parent's client still works."""
    assert program(emulator, FORK)[::2] == ("1\n1\n7\n1\n", 0)


def test_a_client_can_be_opened_again(emulator: Emulator, tmp_path: Path) -> None:
    """A client that was closed can be opened again and works as before, in another event loop."""
    kling = KlingClient(**options(emulator), journal=tmp_path / "run.db")
    for number in range(3):
        with kling:
            outcomes = list(
                kling.map(
                    ExpandRequest(PHOTOS / "coffee.jpg", WIDER, key=str(n + 3 * number)) for n in range(3)
                )
            )
            results = [outcome.result for outcome in outcomes if outcome.result]
            assert len([path for result in results for path in result.save(tmp_path / str(number))]) == 3
    assert emulator.account.images_billed == 9


def waiting_source(
    *requests: ExpandRequest,
) -> tuple["queue.Queue[ExpandRequest | None]", Iterator[ExpandRequest]]:
    """Return a queue with these requests, and an iterator that waits for the next request in it."""
    source: queue.Queue[ExpandRequest | None] = queue.Queue()
    for request in requests:
        source.put(request)
    return source, iter(source.get, None)


def test_a_map_whose_source_waits_can_be_left(kling: KlingClient) -> None:
    """`break` and `close` return at once, although the source never yields another request."""
    _source, requests = waiting_source(ExpandRequest(PHOTOS / "coffee.jpg", WIDER))
    for outcome in kling.map(requests):
        assert outcome.error is None
        break
    assert len(kling.list()) == 1
    assert kling.close() == ()


def test_many_maps_make_progress_at_once(kling: KlingClient) -> None:
    """All maps make progress, however many sources wait for the outcomes of their own earlier requests."""

    def follow(number: int) -> int:
        source, requests = waiting_source(ExpandRequest(PHOTOS / "coffee.jpg", Ratios(right=number / 100)))
        ended = 0
        for outcome in kling.map(requests):
            assert outcome.error is None
            ended += 1
            source.put(None)
        return ended

    count = 40  # more than an executor has threads
    with ThreadPoolExecutor(count) as pool:
        assert list(pool.map(follow, range(1, count + 1))) == [1] * count


def test_both_clients_have_the_same_methods() -> None:
    """Each method of the asynchronous client exists, with the same parameters and documentation."""

    def methods(kind: type) -> dict[str, Any]:
        return {name: value for name, value in inspect.getmembers(kind, callable) if name[0] != "_"}

    ours, theirs = methods(KlingClient), methods(kling_expand.KlingClient)
    # Only programs that iterate over futures, such as the command line, follow passes one by one.
    assert set(theirs) - set(ours) == {"aclose", "expand_passes", "resume_passes"}
    assert set(ours) - set(theirs) == {"open", "close"}
    for name in set(ours) & set(theirs):
        mine, original = inspect.signature(ours[name]), inspect.signature(theirs[name])
        assert list(mine.parameters) == list(original.parameters), name
        for parameter in set(mine.parameters) - {"requests"}:
            assert mine.parameters[parameter] == original.parameters[parameter], name
        assert inspect.getdoc(ours[name]) == inspect.getdoc(theirs[name]), name


def test_help_shows_what_the_methods_return() -> None:
    """Signatures name the blocking classes and plain iterators, never coroutines or generators."""
    returned = {
        (KlingClient, "expand"): ExpandResult,
        (KlingClient, "submit"): TaskFuture,
        (KlingClient, "attach"): TaskFuture,
        (KlingClient, "map"): Iterator[Outcome],
        (KlingClient, "resume"): Iterator[TaskFuture],
        (KlingClient, "receive"): WebhookEvent,
        (KlingClient, "create"): Task,
        (KlingClient, "get"): Task,
        (KlingClient, "job"): JobRecord | None,
        (KlingClient, "tasks"): Iterator[Task],
        (KlingClient, "list"): tuple[Task, ...],
        (ExpandResult, "save"): tuple[Path, ...],
        (ExpandResult, "upload"): tuple[str, ...],
        (ExpandResult, "read"): tuple[bytes, ...],
        (ResultImage, "read"): bytes,
        (ResultImage, "stream"): Iterator[bytes],
        (TaskFuture, "accepted"): Task,
        (TaskFuture, "wait"): bool,
    }
    for (kind, name), expected in returned.items():
        assert inspect.signature(getattr(kind, name)).return_annotation == expected, name
    parameters = inspect.signature(KlingClient.map).parameters
    assert parameters["requests"].annotation == Iterable[Row]


def test_results_and_futures_have_the_same_attributes() -> None:
    """Blocking results and futures have all attributes of the asynchronous ones, except loop internals."""

    def public(kind: type) -> set[str]:
        return {name for name in dir(kind) if name[0] != "_"}

    loop_internals = {"deadline_at", "record", "remove_done_callback"}
    assert public(kling_expand.TaskFuture) - public(TaskFuture) == loop_internals
    assert public(kling_expand.ExpandResult) - public(ExpandResult) == set()
    assert public(kling_expand.ResultImage) - public(ResultImage) == set()
