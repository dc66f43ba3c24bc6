"""Where does a result lie? A task's URLs, fresh ones when they have expired, and which may be fetched."""

import asyncio
import re
from collections.abc import Awaitable, Callable

from attrs import frozen
from yarl import URL  # part of aiohttp's interface: the only way to send a signed URL as it is

from kling_expand.errors import DownloadError, NotFound, ResultExpired, TaskNotFound
from kling_expand.models import Image, Task

_SENDABLE = re.compile(r"[!-~]+")

Refresh = Callable[[str], Awaitable[Task]]


def in_order(images: tuple[Image, ...]) -> tuple[Image, ...]:
    """The images by their index."""
    return tuple(sorted(images, key=lambda image: image.index))


@frozen
class Wanted:
    """One file of a task; `place` counts its images by index."""

    place: int
    watermark: bool

    def url(self, task: Task) -> str:
        """Raises `ResultExpired`."""
        images = in_order(task.images)
        image = images[self.place] if self.place < len(images) else None
        url = image and (image.watermark_url if self.watermark else image.url)
        if not url:
            raise ResultExpired("the service no longer lists the image")
        return url


class ResultUrls:
    """A task's URLs. They are asked for again once, however many of them are refused."""

    def __init__(self, task: Task, refresh: Refresh) -> None:
        self._task = task
        self._refresh = refresh
        self._fresh: Task | None = None
        self._lock = asyncio.Lock()

    def wanted(self) -> list[Wanted]:
        """Every plain picture by index, then the watermarked ones."""
        images = list(enumerate(in_order(self._task.images)))
        marked = [Wanted(place, watermark=True) for place, image in images if image.watermark_url]
        return [Wanted(place, watermark=False) for place, _ in images] + marked

    def url(self, wanted: Wanted) -> str:
        """The URL the task came with."""
        return wanted.url(self._task)

    async def renewed(self, wanted: Wanted) -> str:
        """The URL the service gives now. Raises `ResultExpired`, or what the lookup raised."""
        async with self._lock:
            if self._fresh is None:
                self._fresh = await self._look_up()
        return wanted.url(self._fresh)

    async def _look_up(self) -> Task:
        try:
            return await self._refresh(self._task.task_id)
        except (TaskNotFound, NotFound) as error:
            raise ResultExpired("the service no longer knows the task") from error


def readable(text: str) -> URL:
    """A URL to fetch, byte for byte where possible: some signatures cover its spelling.

    A user and password in it are dropped: they would be sent as credentials. Raises `DownloadError`.
    """
    try:
        url = URL(text, encoded=_SENDABLE.fullmatch(text) is not None)
        fits = url.scheme in {"http", "https"} and url.host and url.port
        url = url.with_user(None) if fits else url
    except (ValueError, TypeError):
        raise DownloadError("a result's URL cannot be read") from None
    if not fits:
        raise DownloadError(f"a result's URL is {url.scheme or 'relative'}: only http and https are fetched")
    return url


def redirected(url: URL, location: str) -> URL:
    """Where a redirect from *url* leads. Raises `DownloadError`: never from https to http."""
    try:
        joined = url.join(URL(location, encoded=_SENDABLE.fullmatch(location) is not None))
    except ValueError:
        raise DownloadError("the server redirected to a URL that cannot be read") from None
    if url.scheme == "https" and joined.scheme == "http":
        raise DownloadError("the server redirected from https to http")
    return readable(str(joined))
