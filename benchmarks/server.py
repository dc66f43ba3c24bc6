"""A small local server of several protocols that counts the requests of its clients.

    python -m benchmarks.server --median 12

It implements the parts of the protocols that the clients of `benchmarks.peers` need. A job is only a
duration, which begins at its create. The durations are drawn from a seed in the order of the creates. `GET
/statistics` returns the requests so far and the end of each job in Unix seconds. `DELETE /statistics` resets
both. For a task with a `callback_url` the server sends a callback at its end, as `benchmarks.callbacks`
describes.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from subprocess import PIPE, Popen
from typing import Any
from urllib.request import Request, urlopen

import aiohttp
from aiohttp import web
from attrs import define

from benchmarks.callbacks import KINDS, signed
from benchmarks.durations import DISTRIBUTIONS, Handler, Jobs
from benchmarks.protocols import PEER_ROUTES

KLING = "/v1/images/editing/expand"
CONNECTIONS = 4  # at most, for sending callbacks
STATUS = {"POST /api/v2/jobs": 201}  # routes whose status is not 200


def kling_task(jobs: Jobs, name: str, *, ended: bool | None = None) -> dict[str, Any]:
    """Return a job as a task of Kling, in its current state unless *ended* is given."""
    ended = jobs.ended(name) if ended is None else ended
    ends = jobs.ends[name]
    task: dict[str, Any] = {
        "task_id": name,
        "task_status": "succeed" if ended else "processing",
        "task_status_msg": "",
        "created_at": round(jobs.starts[name] * 1000),
        "updated_at": round((ends if ended else jobs.starts[name]) * 1000),
    }
    if ended:
        url = f"https://cdn.example.com/{name}.png"
        task |= {"task_result": {"images": [{"index": 0, "url": url}]}, "final_unit_deduction": "8"}
    return task


def _envelope(data: Any) -> dict[str, Any]:
    return {"code": 0, "message": "SUCCEED", "request_id": "0", "data": data}


def kling_create(_request: web.Request, jobs: Jobs) -> dict[str, Any]:
    """Create a task."""
    return _envelope(kling_task(jobs, jobs.new()))


def kling_query(request: web.Request, jobs: Jobs) -> dict[str, Any]:
    """Return one task."""
    return _envelope(kling_task(jobs, request.match_info["name"]))


def kling_list(request: web.Request, jobs: Jobs) -> dict[str, Any]:
    """Return a page of tasks, newest first."""
    page, size = int(request.query.get("pageNum", 1)), int(request.query.get("pageSize", 30))
    names = list(reversed(jobs.ends))[(page - 1) * size : page * size]
    return _envelope([kling_task(jobs, name) for name in names])


KLING_ROUTES: dict[tuple[str, str], Handler] = {
    ("POST", KLING): kling_create,
    ("GET", KLING): kling_list,
    ("GET", KLING + "/{name}"): kling_query,
}


_HTTP = web.AppKey("http", aiohttp.ClientSession)


async def _keep_session(app: web.Application) -> AsyncIterator[None]:
    """Keep a session open for sending callbacks."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONNECTIONS)) as http:
        app[_HTTP] = http
        yield


def application(jobs: Jobs, routes: dict[tuple[str, str], Handler]) -> web.Application:
    """Return an application with *routes* that counts requests by method and path."""
    app = web.Application(client_max_size=32 << 20)
    app.cleanup_ctx.append(_keep_session)
    for (method, path), handler in routes.items():
        app.router.add_route(method, path, _counted(handler, jobs, f"{method} {path}"))
    app.router.add_get("/statistics", _json(lambda _request: jobs.statistics()))
    app.router.add_delete("/statistics", _json(lambda request: jobs.measure(int(request.query["seed"]))))
    return app


def _counted(
    handler: Handler, jobs: Jobs, name: str
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    calls: set[asyncio.Task[None]] = set()

    async def answer(request: web.Request) -> web.StreamResponse:
        jobs.requests[name] += 1
        body = await request.read()
        found = handler(request, jobs)
        if b'"callback_url"' in body:
            url = json.loads(body)["callback_url"]
            call = _call_back(request.app[_HTTP], jobs, found["data"]["task_id"], url)
            calls.add(task := asyncio.create_task(call))
            task.add_done_callback(calls.discard)
        return web.json_response(found, status=STATUS.get(name, 200))

    return answer


async def _call_back(http: aiohttp.ClientSession, jobs: Jobs, name: str, url: str) -> None:
    """Send the callback of a task's end, unless it is lost."""
    end = jobs.ends[name]
    delay = KINDS[url.rpartition("/")[2]](int(name) % 10**6, jobs.warm)
    if delay is not None:
        task = kling_task(jobs, name, ended=True)  # built now because a reset deletes the job
        await asyncio.sleep(end + delay - time.time())
        headers, body = signed(task, f"{name}-{end}", time.time())
        with suppress(aiohttp.ClientError):  # the client has ended
            async with http.post(url, data=body, headers=headers):
                pass


def _json(function: Callable[[web.Request], Any]) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response(function(request))

    return answer


async def serve(median: float, distribution: str) -> None:
    """Serve on a free port until SIGTERM, and print the address as the only line."""
    jobs = Jobs(median, 0, distribution)
    runner = web.AppRunner(application(jobs, KLING_ROUTES | PEER_ROUTES), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await stopped.wait()
    await runner.cleanup()


@define
class Server:
    """A server in another process."""

    url: str

    def statistics(self) -> dict[str, Any]:
        """Return the requests by route and the end of each job."""
        with urlopen(f"{self.url}/statistics") as response:
            found: dict[str, Any] = json.load(response)
            return found

    def reset(self, seed: int = 0) -> None:
        """Delete all jobs and counts, and measure the jobs that follow."""
        urlopen(Request(f"{self.url}/statistics?seed={seed}", method="DELETE")).close()


@contextmanager
def serving(median: float, distribution: str = "log-normal") -> Iterator[Server]:
    """Run a server whose jobs have this *median* duration in seconds and follow this *distribution*.

    Raises:
        RuntimeError: the server ended during its start.
    """
    command = [
        sys.executable,
        "-m",
        "benchmarks.server",
        "--median",
        str(median),
        "--distribution",
        distribution,
    ]
    with Popen(command, stdout=PIPE, text=True) as process:
        try:
            if process.stdout is None or not (url := process.stdout.readline().strip()):
                raise RuntimeError("the server must print its address, but it ended; see its error above")
            yield Server(url)
        finally:
            os.kill(process.pid, signal.SIGTERM)


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description="A small server of several protocols.")
    parser.add_argument(
        "--median", type=float, default=12.0, help="median duration of a job in seconds (default: 12)"
    )
    parser.add_argument(
        "--distribution", choices=DISTRIBUTIONS, default="log-normal", help="distribution of the durations"
    )
    given = parser.parse_args()
    asyncio.run(serve(given.median, given.distribution))


if __name__ == "__main__":
    main()
