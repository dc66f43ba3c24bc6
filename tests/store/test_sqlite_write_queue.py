"""The write queue, which commits waiting writes together and gives each caller its own outcome."""

import asyncio
import threading
from typing import Any

import pytest

from kling_expand.errors import JournalError
from kling_expand.store.sqlite import BATCH, WriteQueue


class Recorder:
    """A commit function that writes nothing, but records each batch and waits for `gate`."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.closed = 0

    def commit(self, batch: list[Any]) -> list[Any]:
        self.batches.append(batch)
        self.gate.wait()
        return [-item if isinstance(item, int) else item for item in batch]

    def close(self) -> None:
        self.closed += 1


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_writes_of_one_iteration_share_a_commit() -> None:
    """All writes of one iteration of the loop share a commit, in FIFO order."""
    recorder = Recorder()
    queue = WriteQueue(recorder.commit)
    assert await asyncio.gather(*(queue.put(number) for number in range(4))) == [-0, -1, -2, -3]
    assert recorder.batches == [[0, 1, 2, 3]]
    await queue.close(99, recorder.close)


async def test_writes_during_a_commit_share_the_next_batch() -> None:
    """While a batch is written, the loop continues, and new writes share the next commit."""
    recorder = Recorder()
    recorder.gate.clear()
    queue = WriteQueue(recorder.commit)
    first = queue.put(1)
    await turns()
    others = [queue.put(number) for number in (2, 3)]
    await turns()
    others.append(queue.put(4))
    assert not first.done()
    recorder.gate.set()
    assert await asyncio.gather(first, *others) == [-1, -2, -3, -4]
    assert recorder.batches == [[1], [2, 3, 4]]
    await queue.close(99, recorder.close)


async def test_a_batch_is_bounded() -> None:
    """Many waiting writes become several batches in order, none larger than `BATCH`."""
    recorder = Recorder()
    queue = WriteQueue(recorder.commit)
    numbers = list(range(3 * BATCH + 5))
    await asyncio.gather(*map(queue.put, numbers))
    assert numbers == [number for batch in recorder.batches for number in batch]
    assert [len(batch) for batch in recorder.batches] == [BATCH, BATCH, BATCH, 5]
    await queue.close(99, recorder.close)


async def test_an_exception_reaches_only_its_caller() -> None:
    """An outcome that is an exception is raised only in the caller of that write."""
    queue = WriteQueue(Recorder().commit)
    good, bad = queue.put(7), queue.put(LookupError("no"))
    with pytest.raises(LookupError, match="no"):
        await bad
    assert await good == -7
    await queue.close(99, Recorder().close)


async def test_a_cancelled_caller_affects_no_other_write() -> None:
    """A write is committed even if its caller is cancelled before or during the commit."""
    recorder = Recorder()
    recorder.gate.clear()
    queue = WriteQueue(recorder.commit)
    early, late, other = (queue.put(number) for number in (1, 2, 3))
    early.cancel()
    await turns()
    late.cancel()
    recorder.gate.set()
    assert await other == -3
    assert recorder.batches == [[1, 2, 3]]
    await queue.close(99, recorder.close)


async def test_every_commit_uses_run_in_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every commit uses `run_in_executor`, so that a loop can track it."""
    loop = asyncio.get_running_loop()
    seen: list[Any] = []
    through = loop.run_in_executor

    def counted(executor: Any, function: Any, *args: Any) -> Any:
        seen.append(function)
        return through(executor, function, *args)

    monkeypatch.setattr(loop, "run_in_executor", counted)
    recorder = Recorder()
    queue = WriteQueue(recorder.commit)
    await queue.put(1)
    await queue.put(2)
    assert [recorder.commit, recorder.commit] == seen
    await queue.close(3, recorder.close)


async def test_close_commits_every_waiting_write() -> None:
    """Closing commits every waiting write, and releases the file after the last commit."""
    recorder = Recorder()
    queue = WriteQueue(recorder.commit)
    waiting = [queue.put(number) for number in range(BATCH + 1)]
    await queue.close(99, recorder.close)
    assert all(future.done() for future in waiting)
    assert recorder.batches[-1][-1] == 99
    assert recorder.closed


async def test_a_cancelled_close_fails_every_waiting_write() -> None:
    """A cancelled close still releases the file, and no caller waits forever."""
    recorder = Recorder()
    recorder.gate.clear()
    queue = WriteQueue(recorder.commit)
    first = queue.put(1)
    await turns()
    second = queue.put(2)
    closing = asyncio.ensure_future(queue.close(99, recorder.close))
    await turns()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    with pytest.raises(JournalError, match="closed before"):
        await second
    recorder.gate.set()
    assert await first == -1
    assert recorder.batches == [[1]]


async def test_an_aborted_write_fails() -> None:
    """A write that is aborted before its batch began fails rather than being forgotten."""
    recorder = Recorder()
    queue = WriteQueue(recorder.commit)
    write = queue.put(1)
    queue.abort(recorder.close)
    await turns()
    with pytest.raises(JournalError, match="closed before"):
        await write
    assert recorder.batches == []


async def test_a_failed_commit_raises_in_every_caller() -> None:
    """An exception of the commit itself reaches every caller in the batch, and the next batch is tried."""
    recorder = Recorder()

    def commit(batch: list[Any]) -> list[Any]:
        if 13 in batch:
            raise MemoryError
        return recorder.commit(batch)

    queue = WriteQueue(commit)
    outcomes = await asyncio.gather(*map(queue.put, (12, 13)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [MemoryError, MemoryError]
    assert await queue.put(14) == -14
    await queue.close(99, recorder.close)
