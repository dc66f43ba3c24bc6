"""WriteQueue: what waits together is written together, and every caller hears of its own."""

import asyncio
import threading
from typing import Any

import pytest

from kling_expand.errors import JournalError
from kling_expand.store.write_queue import BATCH, WriteQueue


class Paper:
    """Writes nothing: notes each batch, and waits for `gate` in it."""

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


async def test_one_turn_one_batch() -> None:
    """Everybody who is ready in one turn of the loop shares a commit, in the order they asked."""
    paper = Paper()
    batches = WriteQueue(paper.commit)
    assert await asyncio.gather(*(batches.put(number) for number in range(4))) == [-0, -1, -2, -3]
    assert paper.batches == [[0, 1, 2, 3]]
    await batches.close(99, paper.close)


async def test_what_comes_meanwhile_is_the_next_batch() -> None:
    """While one batch is written the loop runs on, and what is asked then shares the next commit."""
    paper = Paper()
    paper.gate.clear()
    batches = WriteQueue(paper.commit)
    first = batches.put(1)
    await turns()
    others = [batches.put(number) for number in (2, 3)]
    await turns()
    others.append(batches.put(4))
    assert not first.done()
    paper.gate.set()
    assert await asyncio.gather(first, *others) == [-1, -2, -3, -4]
    assert paper.batches == [[1], [2, 3, 4]]
    await batches.close(99, paper.close)


async def test_a_batch_is_bounded() -> None:
    """Thousands that wait become several batches, none larger than BATCH, in order."""
    paper = Paper()
    batches = WriteQueue(paper.commit)
    numbers = list(range(3 * BATCH + 5))
    await asyncio.gather(*map(batches.put, numbers))
    assert numbers == [number for batch in paper.batches for number in batch]
    assert [len(batch) for batch in paper.batches] == [BATCH, BATCH, BATCH, 5]
    await batches.close(99, paper.close)


async def test_an_exception_reaches_only_its_caller() -> None:
    """An outcome that is an exception is raised where it was asked for, and nowhere else."""
    batches = WriteQueue(Paper().commit)
    good, bad = batches.put(7), batches.put(LookupError("no"))
    with pytest.raises(LookupError, match="no"):
        await bad
    assert await good == -7
    await batches.close(99, Paper().close)


async def test_a_cancelled_caller_changes_nothing_for_the_others() -> None:
    """What was asked is done although its caller is gone, before or during the commit."""
    paper = Paper()
    paper.gate.clear()
    batches = WriteQueue(paper.commit)
    early, late, other = (batches.put(number) for number in (1, 2, 3))
    early.cancel()
    await turns()
    late.cancel()
    paper.gate.set()
    assert await other == -3
    assert paper.batches == [[1, 2, 3]]
    await batches.close(99, paper.close)


async def test_the_loop_knows_of_all_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every commit passes through `run_in_executor`, where a loop can count it."""
    loop = asyncio.get_running_loop()
    seen: list[Any] = []
    through = loop.run_in_executor

    def counted(executor: Any, function: Any, *args: Any) -> Any:
        seen.append(function)
        return through(executor, function, *args)

    monkeypatch.setattr(loop, "run_in_executor", counted)
    paper = Paper()
    batches = WriteQueue(paper.commit)
    await batches.put(1)
    await batches.put(2)
    assert [paper.commit, paper.commit] == seen
    await batches.close(3, paper.close)


async def test_finish_writes_all_that_waits() -> None:
    """Finishing leaves nothing unwritten, and closes after the last commit."""
    paper = Paper()
    batches = WriteQueue(paper.commit)
    waiting = [batches.put(number) for number in range(BATCH + 1)]
    await batches.close(99, paper.close)
    assert all(future.done() for future in waiting)
    assert paper.batches[-1][-1] == 99
    assert paper.closed


async def test_a_finish_that_is_cancelled_refuses_what_waits() -> None:
    """A cancelled finish closes all the same; nobody is left waiting for ever."""
    paper = Paper()
    paper.gate.clear()
    batches = WriteQueue(paper.commit)
    first = batches.put(1)
    await turns()
    second = batches.put(2)
    finishing = asyncio.ensure_future(batches.close(99, paper.close))
    await turns()
    finishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await finishing
    with pytest.raises(JournalError, match="closed before"):
        await second
    paper.gate.set()
    assert await first == -1
    assert paper.batches == [[1]]


async def test_what_never_began_is_refused_too() -> None:
    """Stopped before the loop came to it, a write is refused rather than forgotten."""
    paper = Paper()
    batches = WriteQueue(paper.commit)
    write = batches.put(1)
    batches.abort(paper.close)
    await turns()
    with pytest.raises(JournalError, match="closed before"):
        await write
    assert paper.batches == []


async def test_a_commit_that_breaks_leaves_nobody_hanging() -> None:
    """Should committing itself fail, every caller of the batch hears of it, and the next one is tried."""
    paper = Paper()

    def commit(batch: list[Any]) -> list[Any]:
        if 13 in batch:
            raise MemoryError
        return paper.commit(batch)

    batches = WriteQueue(commit)
    outcomes = await asyncio.gather(*map(batches.put, (12, 13)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [MemoryError, MemoryError]
    assert await batches.put(14) == -14
    await batches.close(99, paper.close)
