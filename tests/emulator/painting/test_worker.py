"""The worker process and its messages."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.raw_client import png
from support.sample_pictures import photo, saved

from kling_expand.emulator.painting.image_headers import PictureError
from kling_expand.emulator.painting.worker import Worker, WorkerLost, receive, send, serve

RATIOS = (0.0, 0.0, 0.1, 0.1)


def test_a_worker_ends_when_its_pipe_closes() -> None:
    """A worker responds, and ends when its pipe closes, so it cannot outlive its parent."""
    worker = Worker()
    with pytest.raises(PictureError, match="neither PNG nor JPEG"):
        worker.outpaint(b"nonsense", RATIOS, seed=0, engine="flat", watermark=False)
    picture, marked = worker.outpaint(png(), RATIOS, seed=0, engine="flat", watermark=True)
    assert picture.startswith(b"\x89PNG")
    assert marked not in {picture, None}
    scene = saved(photo(300, 300))
    exact, moved = (
        worker.outpaint(scene, RATIOS, seed=0, engine="flat", misregister=text)[0] for text in ("", "2,0,1")
    )
    assert exact != moved
    worker.close()
    assert worker._process.returncode == 0
    with pytest.raises(WorkerLost):
        worker.outpaint(png(), RATIOS, seed=0, engine="flat", watermark=False)


def test_an_incomplete_message_is_an_end_of_file() -> None:
    """An incomplete line or part raises EOFError."""
    whole = io.BytesIO()
    send(whole, {"a": 1}, b"part", b"")
    assert receive(io.BytesIO(whole.getvalue())) == ({"a": 1, "sizes": [4, 0]}, [b"part", b""])
    for length in range(len(whole.getvalue())):
        with pytest.raises(EOFError):
            receive(io.BytesIO(whole.getvalue()[:length]))
    with pytest.raises(EOFError):
        receive(None)
    with pytest.raises(EOFError):
        send(None, {})


def test_an_exception_becomes_a_response() -> None:
    """An exception during painting is sent back, and the worker continues."""
    requests, responses = io.BytesIO(), io.BytesIO()
    for engine in ("unheard of", "flat"):
        send(requests, {"ratios": RATIOS, "options": {"seed": 0, "engine": engine}}, png())
    requests.seek(0)
    serve(requests, responses)
    responses.seek(0)
    head, parts = receive(responses)
    assert ("unheard of" in head["error"], parts) == (True, [])
    head, parts = receive(responses)
    assert (head["error"], len(parts)) == ("", 1)


def test_a_script_without_a_guard_runs_once(tmp_path: Path) -> None:
    """The worker process does not import the caller's script."""
    script = tmp_path / "script.py"
    script.write_text(
        "print('started')\n"
        "from kling_expand.emulator.painting.worker import Worker\n"
        "worker = Worker()\n"
        f"picture = worker.outpaint({png()!r}, (0, 0, 0.1, 0.1), seed=0, engine='flat', watermark=False)\n"
        "worker.close()\n"
    )
    ended = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "started\n", "")
