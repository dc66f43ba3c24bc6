"""What is already known of this job? Its id, and with a journal how far it came before."""

from pathlib import Path
from typing import Any

import pytest

from kling_expand import ExpandRequest, Ratios
from kling_expand.api.photo import load_photo
from kling_expand.errors import BadRequest, SubmissionUnknown
from kling_expand.models import Image, Task
from kling_expand.store.ledger import Identity, JobRecord, Ledger, PreparedRequest
from kling_expand.store.sqlite import Journal, State

PHOTO = Path(__file__).parents[2] / "examples" / "photos" / "chelsea.jpg"
WIDER = Ratios(right=0.5)


async def order(image: Any = PHOTO, **fields: Any) -> PreparedRequest:
    """A request with its photo loaded."""
    request = ExpandRequest(image, WIDER, **fields)
    return PreparedRequest(request, await load_photo(image), WIDER)


def identity(ledger: Ledger, asked: PreparedRequest) -> Identity:
    """Of a job that has one."""
    found = ledger.identify(asked)
    assert found is not None
    return found


def done(task_id: str, status: str = "succeed", **fields: Any) -> Task:
    """A snapshot of an end."""
    return Task(task_id, status, images=(Image(0, "https://cdn.example/0.png"),), **fields)


async def test_only_what_is_named_is_a_job_without_a_journal() -> None:
    """A key makes one, unless the id is given; with neither each submission is for itself."""
    ledger = Ledger("monday")
    assert ledger.identify(await order()) is None
    assert ledger.identify(await order(external_task_id="mine", key="cat")) is None
    assert identity(ledger, await order(key="cat")).key == "cat"


async def test_without_a_journal_an_id_follows_from_the_words() -> None:
    """The same in every process; another run, key, photo or attempt has another."""
    ids = set()
    for run in ("monday", "tuesday"):
        ledger = Ledger(run)
        for asked in (
            await order(key="cat"),
            await order(key="dog"),
            await order(PHOTO.with_name("coffee.jpg"), key="cat"),
        ):
            for attempt in (1, 2):
                known = await ledger.intend(identity(ledger, asked), asked, attempt)
                again = await Ledger(run).intend(identity(ledger, asked), asked, attempt)
                assert known.external_task_id == again.external_task_id
                assert (known.adopt, known.doubtful, known.task) == (True, False, None)
                ids.add(known.external_task_id)
    assert len(ids) == 12


async def test_without_a_journal_nothing_is_written() -> None:
    """Every step may be told to it all the same."""
    ledger = Ledger("monday")
    await ledger.posting("a")
    await ledger.observed("a", done("1"))
    await ledger.mark_unknown_or_rejected("a", BadRequest("no"), refused=True)
    await ledger.mark_unknown_or_rejected("a", SubmissionUnknown("?"), refused=False)
    await ledger.saved(done("1", external_task_id="a"), [])
    assert [each async for each in ledger.unfinished()] == []


async def test_with_a_journal_the_same_words_are_the_same_job(tmp_path: Path) -> None:
    """Without a key too; and an id of yours is kept."""
    async with Journal(tmp_path / "run.db", run="monday") as journal:
        ledger = Ledger("monday", journal)
        first, again, mine = await order(), await order(), await order(external_task_id="mine", prompt="x")
        one = await ledger.intend(identity(ledger, first), first, 1)
        two = await ledger.intend(identity(ledger, again), again, 1)
        assert one == two
        assert identity(ledger, first).key == identity(ledger, first).digest == one.digest
        assert (await ledger.intend(identity(ledger, mine), mine, 1)).external_task_id == "mine"
        assert not one.doubtful
        assert one.task is None


async def test_what_happened_is_known_the_next_time(tmp_path: Path) -> None:
    """A POST makes it doubtful, an acceptance a task, an end its snapshot, files where they are."""
    async with Journal(tmp_path / "run.db", run="monday") as journal:
        ledger = Ledger("monday", journal)
        asked = await order(key="cat")

        async def known() -> JobRecord:
            return await ledger.intend(identity(ledger, asked), asked, 1)

        any_id = (await known()).external_task_id
        await ledger.posting(any_id)
        assert (await known()).doubtful
        await ledger.observed(any_id, Task("7", "submitted"))
        assert (await known()).task == Task("7", "submitted", external_task_id=any_id)
        ended = done("7", external_task_id=any_id)
        await ledger.observed(any_id, ended)
        assert (await known()).task == ended
        picture = tmp_path / "cat-0.png"
        picture.write_bytes(b"png")
        await ledger.saved(ended, [picture])
        assert (await known()).files == (picture,)
        picture.unlink()
        assert (await known()).files == ()
        assert [each async for each in ledger.unfinished()] == []


@pytest.mark.parametrize("refused", [True, False])
async def test_giving_up_is_a_refusal_or_a_doubt(tmp_path: Path, refused: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """What was refused may be sent again under its id; what is unknown has to be looked up first."""
    async with Journal(tmp_path / "run.db", run="monday") as journal:
        ledger = Ledger("monday", journal)
        asked = await order(key="cat")
        any_id = (await ledger.intend(identity(ledger, asked), asked, 1)).external_task_id
        await ledger.mark_unknown_or_rejected(any_id, BadRequest("no"), refused=refused)
        assert (await journal.counts())[State.REJECTED if refused else State.UNKNOWN] == 1
        assert len([each async for each in ledger.unfinished()]) == (0 if refused else 1)
        known = await ledger.intend(identity(ledger, asked), asked, 1)
        assert (known.external_task_id, known.doubtful) == (any_id, not refused)


async def test_a_failed_task_makes_the_next_attempt(tmp_path: Path) -> None:
    """Counted by the journal, whatever number is asked for."""
    async with Journal(tmp_path / "run.db", run="monday") as journal:
        ledger = Ledger("monday", journal)
        asked = await order(key="cat")
        first = await ledger.intend(identity(ledger, asked), asked, 1)
        await ledger.observed(first.external_task_id, Task("7", "failed", "no"))
        second = await ledger.intend(identity(ledger, asked), asked, 1)
        third = await Ledger("monday", journal).intend(identity(ledger, asked), asked, 9)
        assert second == third
        plain = Ledger("monday")
        lost = await plain.intend(identity(plain, asked), asked, 2)
        assert lost.external_task_id == second.external_task_id != first.external_task_id


async def test_what_is_unfinished_can_be_asked_for_again(tmp_path: Path) -> None:
    """With its request, where the photo has a place; without, where it was bytes."""
    async with Journal(tmp_path / "run.db", run="monday") as journal:
        ledger = Ledger("monday", journal)
        for asked in (await order(key="path", prompt="a"), await order(PHOTO.read_bytes(), key="bytes")):
            await ledger.intend(identity(ledger, asked), asked, 1)
        (first, request, source), (second, none, nowhere) = [each async for each in ledger.unfinished()]
        assert request is not None
        assert (request.key, request.prompt, request.geometry) == ("path", "a", WIDER)
        assert Path(source or "") == PHOTO
        assert (none, nowhere) == (None, None)
        assert first.external_task_id != second.external_task_id


async def test_somebody_elses_pictures_are_not_noted(tmp_path: Path) -> None:
    """A task without an id of ours, or with one that no job has, is saved and not written down."""
    async with Journal(tmp_path / "run.db", run="monday") as journal:
        ledger = Ledger("monday", journal)
        await ledger.saved(done("1"), [tmp_path / "a.png"])
        await ledger.saved(done("2", external_task_id="stranger"), [tmp_path / "b.png"])
        assert sum((await journal.counts()).values()) == 0
