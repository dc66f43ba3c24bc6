"""A worker process that paints one picture at a time and is called through its pipes.

`multiprocessing` is not used. Its children import the caller's `__main__` again, which runs an unguarded
script twice, and they outlive a killed parent. This process ends when its pipe closes.
"""

import json
import os
import subprocess
import sys
from contextlib import suppress
from typing import IO, Any, Required, TypedDict, Unpack

from .canvas import Ratios
from .image_headers import PictureError

Painted = tuple[bytes, bytes | None]  # a picture, and its watermarked copy if requested
_START = "import sys; sys.path[:] = {path!r}; from kling_expand.emulator.painting.worker import main; main()"


class PaintingOptions(TypedDict, total=False):
    """The keyword arguments of `pictures.outpaint`."""

    seed: Required[int]
    engine: str
    watermark: bool
    misregister: str


class WorkerLost(Exception):
    """The error for a process that ended before it responded."""


class Worker:
    """A worker process. `outpaint` blocks the calling thread, and another thread may call `close`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and our own code
            [sys.executable, "-c", _START.format(path=sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches only the parent, which then closes the pipe
        )
        self._busy = False

    def outpaint(self, image: bytes, ratios: Ratios, **options: Unpack[PaintingOptions]) -> Painted:
        """Return the picture that `pictures.outpaint` paints.

        Raises:
            PictureError: if the image cannot be painted.
            WorkerLost: if the process has ended.
        """
        request = {"ratios": ratios, "options": options}
        self._busy = True
        try:
            send(self._process.stdin, request, image)
            response, parts = receive(self._process.stdout)
        except (OSError, ValueError, EOFError) as error:
            raise WorkerLost(str(error)) from None
        self._busy = False
        if response["error"]:
            raise PictureError(response["error"])
        return parts[0], parts[1] if len(parts) > 1 else None

    def close(self) -> None:
        """End the process. Kill it if it is painting, otherwise close its pipe."""
        if self._busy:
            self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # the flush fails if the process is dead
                pipe.close() if pipe else None
        self._process.wait()


def send(pipe: IO[bytes] | None, head: dict[str, Any], *parts: bytes) -> None:
    """Write one message: a line of JSON with the sizes of the parts, then the parts.

    Raises:
        EOFError: if there is no pipe.
    """
    if pipe is None:
        raise EOFError("no pipe")
    pipe.write(json.dumps(head | {"sizes": [len(part) for part in parts]}).encode() + b"\n")
    for part in parts:
        pipe.write(part)
    pipe.flush()


def receive(pipe: IO[bytes] | None) -> tuple[dict[str, Any], list[bytes]]:
    """Read one message.

    Raises:
        EOFError: if the pipe ends before a complete message.
    """
    line = pipe.readline() if pipe else b""
    if not line.endswith(b"\n") or pipe is None:
        raise EOFError("the pipe closed")
    head: dict[str, Any] = json.loads(line)
    parts = [pipe.read(size) for size in head["sizes"]]
    if [len(part) for part in parts] != head["sizes"]:
        raise EOFError("the pipe closed")
    return head, parts


def main() -> None:
    """Serve requests until the pipe closes. Output of native libraries goes to standard error."""
    with os.fdopen(os.dup(1), "wb") as responses:
        os.dup2(2, 1)
        serve(sys.stdin.buffer, responses)


def serve(requests: IO[bytes], responses: IO[bytes]) -> None:
    """Paint each requested picture. An exception becomes a response, so it fails only one task."""
    from .pictures import outpaint

    with suppress(EOFError):
        while True:
            request, (image,) = receive(requests)
            up, down, left, right = request["ratios"]
            try:
                picture = outpaint(image, (up, down, left, right), **request["options"])
            except Exception as error:  # noqa: BLE001 - the task fails with this message
                send(responses, {"error": str(error) or repr(error)})
            else:
                copies = [picture.watermarked] if picture.watermarked else []
                send(responses, {"error": ""}, picture.data, *copies)
