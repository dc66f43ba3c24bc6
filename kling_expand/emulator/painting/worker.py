"""Where does painting happen? In a process of its own, asked through its pipes, one picture a time.

Not `multiprocessing`: its children import the caller's `__main__` again, which runs an unguarded script
twice, and outlive a killed parent. This child knows nothing of its parent and goes when the pipe closes.
"""

import json
import os
import subprocess
import sys
from contextlib import suppress
from typing import IO, Any

from kling_expand.emulator.http.validation import Ratios

from .image_headers import PictureError

Painted = tuple[bytes, bytes | None]  # the picture, and its marked copy where one was asked for
_START = "import sys; sys.path[:] = {path!r}; from kling_expand.emulator.painting.worker import main; main()"


class WorkerLost(Exception):
    """The process ended before it answered."""


class Worker:
    """One process; `outpaint` blocks its caller, a thread, while `close` may come from another."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and our own code
            [sys.executable, "-c", _START.format(path=sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the parent, whose end closes the pipe
        )
        self._busy = False

    def outpaint(self, image: bytes, ratios: Ratios, *, seed: int, engine: str, watermark: bool) -> Painted:
        """PNG bytes; raises PictureError, or WorkerLost when the process is gone."""
        ask = {"ratios": ratios, "seed": seed, "engine": engine, "watermark": watermark}
        self._busy = True
        try:
            send(self._process.stdin, ask, image)
            answer, parts = receive(self._process.stdout)
        except (OSError, ValueError, EOFError) as error:
            raise WorkerLost(str(error)) from None
        self._busy = False
        if answer["error"]:
            raise PictureError(answer["error"])
        return parts[0], parts[1] if len(parts) > 1 else None

    def close(self) -> None:
        """End the process: politely when it is idle, at once when it paints."""
        if self._busy:
            self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # flushing into a dead process
                pipe.close() if pipe else None
        self._process.wait()


def send(pipe: IO[bytes] | None, head: dict[str, Any], *parts: bytes) -> None:
    """Write one message: a line of JSON, then the parts whose sizes it tells."""
    if pipe is None:
        raise EOFError("no pipe")
    pipe.write(json.dumps(head | {"sizes": [len(part) for part in parts]}).encode() + b"\n")
    for part in parts:
        pipe.write(part)
    pipe.flush()


def receive(pipe: IO[bytes] | None) -> tuple[dict[str, Any], list[bytes]]:
    """Read one message; raises EOFError when there is no whole one."""
    line = pipe.readline() if pipe else b""
    if not line.endswith(b"\n") or pipe is None:
        raise EOFError("the pipe closed")
    head: dict[str, Any] = json.loads(line)
    parts = [pipe.read(size) for size in head["sizes"]]
    if [len(part) for part in parts] != head["sizes"]:
        raise EOFError("the pipe closed")
    return head, parts


def main() -> None:
    """Answer until the pipe closes; what native code prints goes to standard error instead."""
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        serve(sys.stdin.buffer, answers)


def serve(asks: IO[bytes], answers: IO[bytes]) -> None:
    """Paint what is asked; an error of any kind is an answer too, so that one bad picture costs one task."""
    from .pictures import outpaint

    with suppress(EOFError):
        while True:
            ask, (image,) = receive(asks)
            up, down, left, right = ask["ratios"]
            try:
                picture = outpaint(
                    image,
                    (up, down, left, right),
                    seed=ask["seed"],
                    engine=ask["engine"],
                    watermark=ask["watermark"],
                )
            except Exception as error:  # noqa: BLE001 - told to the task, which fails with it
                send(answers, {"error": str(error) or repr(error)})
            else:
                marked = [picture.watermarked] if picture.watermarked else []
                send(answers, {"error": ""}, picture.data, *marked)
