"""Names of results: each result has its own, and none replaces a photo."""

import asyncio
from pathlib import Path

from kling_expand.cli.batch.plan import OutputNames
from kling_expand.models import Image, Task


def task(number: int, images: int = 1) -> Task:
    """Return a task that succeeded."""
    return Task(str(number), "succeed", images=tuple(Image(place, "") for place in range(images)))


async def chosen(names: OutputNames, *candidates: str, of: Task | None = None) -> str:
    """Return the name that is reserved, and release it."""
    async with names.name(of or task(1, 3), candidates) as name:
        return name


async def test_a_name_is_taken_by_any_file_that_would_be_written(tmp_path: Path) -> None:
    """A name is taken by a file of any format and index, by a watermarked copy and by a broken link."""
    names = OutputNames(str(tmp_path))
    for name in ("a-0.png", "b-2.jpeg", "c-1-watermark.webp", "e-3.png"):
        (tmp_path / name).touch()
    (tmp_path / "d-0.jpg").symlink_to("nowhere")
    found = [await chosen(names, name, f"{name}-tag") for name in "abcdef"]
    assert found == ["a-tag", "b-tag", "c-tag", "d-tag", "e", "f"]


async def test_the_last_candidate_is_this_tasks_own(tmp_path: Path) -> None:
    """The last candidate replaces an earlier save of the same task that was cut off."""
    (tmp_path / "a-0.png").touch()
    assert await chosen(OutputNames(str(tmp_path)), "a") == "a"


async def test_concurrent_saves_never_get_one_name(tmp_path: Path) -> None:
    """Concurrent saves get different names, also where only case differs; a released name is free."""
    names = OutputNames(str(tmp_path))
    async with names.name(task(1), ["dog", "dog-1"]) as one, names.name(task(2), ["Dog", "Dog-2"]) as two:
        assert (one, two) == ("dog", "Dog-2")
    assert await chosen(names, "DOG", "x") == "DOG"


async def test_the_same_task_is_saved_once_at_a_time(tmp_path: Path) -> None:
    """Rows that ask for the same share a name, and save one after the other."""
    names = OutputNames(str(tmp_path))
    async with names.name(task(1), ["a"]):
        other = asyncio.create_task(chosen(names, "a"))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not other.done()
    assert await other == "a"
