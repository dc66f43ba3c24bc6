"""What do all clients talk to? One small server in a process of its own, that counts their requests.

    python -m benchmarks.server --median 12

It speaks just enough of each protocol: Kling's, and those of the peers in `benchmarks.peers`. Jobs are
nothing but durations, drawn in the order of creation from one seed; a duration counts from the
moment its job was accepted. `GET /books` gives the requests so far and when each job ended, in Unix
seconds; `DELETE /books` begins anew.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from subprocess import PIPE, Popen
from typing import Any
from urllib.request import Request, urlopen

from aiohttp import web
from attrs import define

from benchmarks.durations import Handler, Jobs
from benchmarks.protocols import PEER_ROUTES

KLING = "/v1/images/editing/expand"
STATUS = {"POST /api/v2/jobs": 201}  # where it is not 200


def kling_task(jobs: Jobs, name: str) -> dict[str, Any]:
    """A job as Kling tells of it."""
    ended = jobs.ended(name)
    ends = jobs.ends[name]
    task: dict[str, Any] = {
        "task_id": name,
        "task_status": "succeed" if ended else "processing",
        "task_status_msg": "",
        "created_at": round(jobs.began[name] * 1000),
        "updated_at": round((ends if ended else jobs.began[name]) * 1000),
    }
    if ended:
        url = f"https://cdn.example.com/{name}.png"
        task |= {"task_result": {"images": [{"index": 0, "url": url}]}, "final_unit_deduction": "8"}
    return task


def _envelope(data: Any) -> dict[str, Any]:
    return {"code": 0, "message": "SUCCEED", "request_id": "0", "data": data}


def kling_create(_request: web.Request, jobs: Jobs) -> dict[str, Any]:
    """POST."""
    return _envelope(kling_task(jobs, jobs.new()))


def kling_query(request: web.Request, jobs: Jobs) -> dict[str, Any]:
    """GET of one."""
    return _envelope(kling_task(jobs, request.match_info["name"]))


def kling_list(request: web.Request, jobs: Jobs) -> dict[str, Any]:
    """GET of a page, newest first."""
    page, size = int(request.query.get("pageNum", 1)), int(request.query.get("pageSize", 30))
    names = list(reversed(jobs.ends))[(page - 1) * size : page * size]
    return _envelope([kling_task(jobs, name) for name in names])


KLING_ROUTES: dict[tuple[str, str], Handler] = {
    ("POST", KLING): kling_create,
    ("GET", KLING): kling_list,
    ("GET", KLING + "/{name}"): kling_query,
}


def application(jobs: Jobs, routes: dict[tuple[str, str], Handler]) -> web.Application:
    """All the *routes*, each counted by its method and path."""
    app = web.Application(client_max_size=32 << 20)
    for (method, path), handler in routes.items():
        app.router.add_route(method, path, _counted(handler, jobs, f"{method} {path}"))
    app.router.add_get("/books", _books(lambda _request: jobs.told()))
    app.router.add_delete("/books", _books(lambda request: jobs.forget(int(request.query["seed"]))))
    return app


def _counted(
    handler: Handler, jobs: Jobs, name: str
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(request: web.Request) -> web.StreamResponse:
        jobs.requests[name] += 1
        if request.body_exists:
            async for _ in request.content.iter_any():  # taken in, and looked at by nobody
                pass
        return web.json_response(handler(request, jobs), status=STATUS.get(name, 200))

    return answer


def _books(tell: Callable[[web.Request], Any]) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response(tell(request))

    return answer


async def serve(median: float) -> None:
    """Listen on a free port until told to stop; the one line printed is the address."""
    runner = web.AppRunner(application(Jobs(median, 0), KLING_ROUTES | PEER_ROUTES), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await stopped.wait()
    await runner.cleanup()


@define
class Server:
    """The server process, seen from outside."""

    url: str

    def account(self) -> dict[str, Any]:
        """Requests by route, and the end of each job."""
        with urlopen(f"{self.url}/books") as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def forget(self, seed: int = 0) -> None:
        """Begin anew."""
        urlopen(Request(f"{self.url}/books?seed={seed}", method="DELETE")).close()


@contextmanager
def serving(median: float) -> Iterator[Server]:
    """A server whose jobs take *median* seconds in the median."""
    command = [sys.executable, "-m", "benchmarks.server", "--median", str(median)]
    with Popen(command, stdout=PIPE, text=True) as process:
        try:
            if process.stdout is None or not (url := process.stdout.readline().strip()):
                raise RuntimeError("the server did not start")
            yield Server(url)
        finally:
            os.kill(process.pid, signal.SIGTERM)


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description="A small server of many protocols.")
    parser.add_argument("--median", type=float, default=12.0, help="seconds a job takes (12)")
    asyncio.run(serve(parser.parse_args().median))


if __name__ == "__main__":
    main()
