"""Photos and saved pictures in object stores, through fsspec (extra `objects`)."""

import asyncio
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kling_expand.errors import DownloadError, InvalidRequest, require

from .files import all_ended, is_url, with_ending


def without_password(text: object) -> str:
    """Return *text* with the passwords of its URLs replaced by ``***``."""
    return re.sub(r"(://[^/:@\s]*):\S*@", r"\1:***@", str(text))


class Upload:
    """One upload to *url*, a directory or a template in an object store.

    The pictures are first saved in a temporary directory, so no object is ever incomplete.
    """

    def __init__(self, url: str, *, overwrite: bool = False) -> None:
        self._scheme, _, self._path = url.partition("://")
        self._overwrite = overwrite
        self._folder = ""
        parts = self._path.replace("{", "/").split("/")
        chained = "::" in url  # fsspec reads this as one file system within another
        if not is_url(url) or self._scheme.lower() in {"http", "https"} or ".." in parts or chained:
            limit = "must be a directory in an object store, such as s3://bucket/out/"
            shown = repr(without_password(url))
            raise InvalidRequest("url", shown, limit, "to write to a path on this machine, use `save`")
        self._fsspec = fsspec_module()

    @contextmanager
    def folder(self) -> Iterator[str]:
        """Yield a temporary directory, or a template below one, in which to save the pictures."""
        with TemporaryDirectory() as self._folder:
            yield f"{self._folder}/{self._path.lstrip('/')}"

    async def run(self, files: Sequence[Path], tag: str) -> tuple[str, ...]:
        """Upload *files*, and return their URLs. *tag* is appended to a name that is already taken.

        Raises:
            DownloadError: if the store cannot be written to.
        """
        uploads = [asyncio.to_thread(self._upload, file, tag) for file in files]
        return tuple(await all_ended(*uploads))

    def _upload(self, file: Path, tag: str) -> str:
        root = "/" if self._path.startswith("/") else ""
        url = f"{self._scheme}://{root}{file.relative_to(self._folder).as_posix()}"
        content = file.read_bytes()
        try:
            if not self._overwrite and self._holds_other(url, content):
                url = with_ending(url, tag)
            with self._fsspec.open(url, "wb") as target:
                target.write(content)
        except Exception as error:  # each kind of store raises its own exceptions
            raise DownloadError(without_password(f"{url} cannot be written: {error}")) from error
        return url

    def _holds_other(self, url: str, content: bytes) -> bool:
        """Return whether an object at *url* exists with different content."""
        store, path = self._fsspec.core.url_to_fs(url)
        return bool(store.exists(path) and store.cat_file(path) != content)


def open_object(url: str) -> Any:
    """Open the object at *url* for reading. The URL is not trusted, as it may come from a queue.

    fsspec's own file systems can read local files, call any host, or run code that a file names. So only
    `memory` and the file systems of separate packages, such as s3fs, are used.

    Raises:
        ValueError: if *url* does not name an object store, or nests one within another.
        MissingExtra: if fsspec is not installed.
    """
    fsspec = fsspec_module()
    scheme = url.partition("://")[0].lower()
    # fsspec's own file systems are first detected by name, because their classes may need a missing package.
    known: dict[str, Any] = import_module("fsspec.registry").known_implementations
    is_builtin = str(known.get(scheme, {}).get("class", "")).startswith("fsspec.")
    is_builtin = is_builtin or fsspec.get_filesystem_class(scheme).__module__.startswith("fsspec.")
    if "::" in url or (is_builtin and scheme != "memory"):
        given = repr(without_password(url))
        raise ValueError(f"a photo must be an object in a store, such as s3://bucket/photo.png, got {given}")
    return fsspec.open(url, "rb")


def fsspec_module() -> Any:
    """Return fsspec, or raise `MissingExtra`."""
    require("objects", "fsspec")
    import fsspec

    return fsspec
