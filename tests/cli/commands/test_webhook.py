"""`kling-expand webhook listen`: callbacks are printed, and those that cannot be verified are refused."""

import asyncio
import json
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from support.shell import COFFEE, Shell, shell

from kling_expand import KlingClient, Ratios

SECRET = "whsec_c2VjcmV0c2VjcmV0c2VjcmV0"
CALLBACK = json.dumps({"task_id": "7", "task_status": "processing\x1b[2J"}).encode()


@contextmanager
def listening(*arguments: object) -> "Iterator[tuple[subprocess.Popen[str], str, str]]":
    """Start a listener on a free port, yield its process, URL and first line, and end it with Ctrl-C."""
    with Shell().start("webhook", "listen", "--port", 0, *arguments) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        url = re.search(r"http://\S+", line)
        assert url is not None, line + process.stderr.read()
        yield process, url[0], line
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def post(url: str, body: bytes, headers: dict[str, str] | None = None) -> int:
    """Send a POST request, and return the status of the response."""
    try:
        with urlopen(Request(url, body, headers or {}, method="POST"), timeout=10) as response:
            return int(response.status)
    except HTTPError as error:
        error.close()
        return error.code


@pytest.fixture
def secret_file(tmp_path: Path) -> str:
    """A file with the secret and a newline, as an editor saves it."""
    path = tmp_path / "secret"
    path.write_text(f"{SECRET}\n")
    return str(path)


def create(url: str, api_key: str, callback_url: str) -> None:
    """Create a task that reports to *callback_url*."""

    async def submit() -> None:
        async with KlingClient(api_key=api_key, base_url=url) as client:
            await client.create(COFFEE, Ratios(up=0.5), callback_url=callback_url)

    asyncio.run(submit())


@pytest.mark.parametrize("as_json", [False, True])
def test_signed_callbacks_are_printed_in_order(secret_file: str, *, as_json: bool) -> None:
    """The callbacks of a task are printed in order, with their path."""
    with listening("--secret-file", secret_file, *(["--json"] if as_json else [])) as (process, url, line):
        assert "signed callbacks only" in line
        with shell(webhook_secret=SECRET, queue_seconds=0.05, allow_private=True) as kling:
            create(kling.emulator.url, kling.emulator.api_key, f"{url}hook")
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(3)]
    if as_json:
        calls = [json.loads(line) for line in lines]
        assert [call["task"]["task_status"] for call in calls] == ["submitted", "processing", "succeed"]
        assert all(call["verified"] and call["path"] == "/hook" for call in calls)
    else:
        assert [line.split()[4] for line in lines] == ["submitted", "processing", "succeed"]
        assert all(line.split()[1:3] == ["verified", "/hook"] for line in lines)
        assert "http" in lines[-1]


def test_unsigned_callbacks_are_refused_with_the_reason(secret_file: str) -> None:
    """An unsigned callback is refused with 400 and reported on stderr. A body that is too long gets 413."""
    with listening("--secret-file", secret_file) as (process, url, _):
        assert post(url, CALLBACK) == 400
        assert process.stderr is not None
        assert "webhook-id is missing" in process.stderr.readline()
        assert post(url, b"x" * (2 << 20)) == 413
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[0] == ""


def test_without_a_secret_every_callback_is_marked() -> None:
    """Without a secret, every callback is marked as unverified, and its control characters are escaped."""
    with listening() as (process, url, line):
        assert "nothing is verified" in line
        assert post(url, CALLBACK) == 204
        assert process.stdout is not None
        shown = process.stdout.readline()
        assert post(url, b"{}") == 400
        assert post(url, b"no gzip", {"Content-Encoding": "gzip"}) == 400
        assert process.stderr is not None
        assert all("refused a request" in process.stderr.readline() for _ in range(2))
    assert "NOT VERIFIED" in shown
    assert "\x1b" not in shown


def test_a_port_in_use_or_an_invalid_secret_exits_with_2(tmp_path: Path) -> None:
    """For a port in use or an invalid secret, the exit code is 2."""
    with shell() as other:
        done = Shell()("webhook", "listen", "--port", other.emulator.url.rpartition(":")[2])
    assert (done.exit_code, "cannot listen" in done.stderr) == (2, True)
    empty = tmp_path / "secret"
    empty.write_text("whsec_\n")
    assert Shell()("webhook", "listen", "--secret-file", str(empty)).exit_code == 2
    # There is no option for the secret itself, because other users would see it.
    assert Shell()("webhook", "listen", "--secret", "whsec_c2VjcmV0").exit_code == 2
