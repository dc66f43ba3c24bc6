"""Which URLs are fetched, and how a task's are asked for again."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kling_expand.downloads.links import ResultUrls, Wanted, in_order, readable, redirected
from kling_expand.errors import DownloadError, NotFound, ResultExpired
from kling_expand.models import Image, Task

TASK = Task("1", "succeed", images=(Image(1, "http://h/1"), Image(0, "http://h/0", "http://h/w")))


@given(st.text() | st.text().map("http://{}".format) | st.from_regex(r"https?://[a-z0-9:@\[\]/.%?#-]+"))
def test_any_text_is_a_url_or_an_error_of_ours(text: str) -> None:
    """What is read is http or https, has a host, and holds no credential."""
    try:
        url = readable(text)
    except DownloadError:
        return
    assert url.scheme in {"http", "https"}
    assert url.host
    assert url.user is url.password is None


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#\\"), min_size=1))
def test_a_url_that_is_spelled_for_the_wire_is_not_respelled(query: str) -> None:
    """Signatures may cover the very bytes."""
    assert readable(f"https://h/a%2Fb?{query}").raw_path_qs == f"/a%2Fb?{query}"
    assert redirected(readable("https://h/x"), f"/a%2Fb?{query}").raw_path_qs == f"/a%2Fb?{query}"


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("b", "https://h/x/b"),
        ("/b", "https://h/b"),
        ("//other/b", "https://other/b"),
        ("https://other:8443/b", "https://other:8443/b"),
        ("https://user:secret@other/b", "https://other/b"),
        ("?again=1", "https://h/x/a?again=1"),
    ],
)
def test_where_redirects_lead(location: str, expected: str) -> None:
    """Relative to where they came from, and without credentials."""
    assert str(redirected(readable("https://h/x/a?q=1"), location)) == expected


@pytest.mark.parametrize("location", ["http://h/a", "HTTP://h/a", "file:///etc/passwd", "http://[", "http:b"])
def test_where_they_must_not_lead(location: str) -> None:
    """Out of https, out of HTTP, or nowhere."""
    with pytest.raises(DownloadError):
        redirected(readable("https://h/x"), location)


def test_images_are_counted_by_index() -> None:
    """Whatever order the service lists them in; the marked ones come last."""
    links = ResultUrls(TASK, None)  # type: ignore[arg-type]  # nothing is looked up here
    assert [image.index for image in in_order(TASK.images)] == [0, 1]
    assert [links.url(wanted) for wanted in links.wanted()] == ["http://h/0", "http://h/1", "http://h/w"]


async def test_one_lookup_serves_all() -> None:
    """Also those who ask while it is under way."""
    asked: list[str] = []

    async def refresh(task_id: str) -> Task:
        asked.append(task_id)
        await asyncio.sleep(0)
        return Task("1", "succeed", images=(Image(0, "http://h/new"), Image(1, "")))

    links = ResultUrls(TASK, refresh)
    first, second = Wanted(0, watermark=False), Wanted(0, watermark=False)
    assert {*await asyncio.gather(links.renewed(first), links.renewed(second))} == {"http://h/new"}
    for gone in (Wanted(0, watermark=True), Wanted(1, watermark=False), Wanted(2, watermark=False)):
        with pytest.raises(ResultExpired):
            await links.renewed(gone)
    assert asked == ["1"]


async def test_a_lookup_that_failed_is_made_again() -> None:
    """A task nobody knows is an expired one; one failure is not remembered for the others."""
    answers: list[Task | Exception] = [NotFound("no such resource", code=1203), TASK]

    async def refresh(_task_id: str) -> Task:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    links = ResultUrls(TASK, refresh)
    with pytest.raises(ResultExpired):
        await links.renewed(Wanted(0, watermark=False))
    assert await links.renewed(Wanted(0, watermark=False)) == "http://h/0"
