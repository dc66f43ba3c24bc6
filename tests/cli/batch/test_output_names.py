"""Names of results: each result has its own, and none replaces a photo."""

import asyncio
from pathlib import Path

from kling_expand.cli.batch.output_names import OutputNames
from kling_expand.models import Image, Task


def task(number: int, images: int = 1) -> Task:
    """A task that succeeded."""
    return Task(str(number), "succeed", images=tuple(Image(place, "") for place in range(images)))


async def chosen(names: OutputNames, *candidates: str, of: Task | None = None) -> str:
    """The name handed out, given back at once."""
    async with names.name(of or task(1, 3), candidates) as name:
        return name


async def test_a_name_is_taken_by_any_file_that_would_be_written(tmp_path: Path) -> None:
    """Of whichever format and picture, a watermarked one included; a broken link is a file too."""
    names = OutputNames(str(tmp_path))
    for name in ("a-0.png", "b-2.jpeg", "c-1-watermark.webp", "e-3.png"):
        (tmp_path / name).touch()
    (tmp_path / "d-0.jpg").symlink_to("nowhere")
    found = [await chosen(names, name, f"{name}-tag") for name in "abcdef"]
    assert found == ["a-tag", "b-tag", "c-tag", "d-tag", "e", "f"]


async def test_the_last_candidate_is_this_tasks_own(tmp_path: Path) -> None:
    """An earlier save of the same that was cut off is replaced."""
    (tmp_path / "a-0.png").touch()
    assert await chosen(OutputNames(str(tmp_path)), "a") == "a"


async def test_two_who_save_at_once_never_get_one_name(tmp_path: Path) -> None:
    """Nor two that a file system may take for one; once given back a name is free."""
    names = OutputNames(str(tmp_path))
    async with names.name(task(1), ["dog", "dog-1"]) as one, names.name(task(2), ["Dog", "Dog-2"]) as two:
        assert (one, two) == ("dog", "Dog-2")
    assert await chosen(names, "DOG", "x") == "DOG"


async def test_the_same_task_is_saved_once_at_a_time(tmp_path: Path) -> None:
    """Two rows that ask for the same share name and turn."""
    names = OutputNames(str(tmp_path))
    async with names.name(task(1), ["a"]):
        other = asyncio.create_task(chosen(names, "a"))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not other.done()
    assert await other == "a"
