"""Requests and latency of jobs in virtual time, for every distribution of durations and with callbacks.

    python -m benchmarks.virtual --json
    python -m benchmarks.virtual --distributions queue,constant --concurrent 100 --callbacks "" --json

The whole client runs over a stub instead of a network, so requests and latencies are exact, and a run takes
seconds. The number of jobs under way is constant: when a job ends, the next one starts. The distributions are
those of `benchmarks.durations`, and the kinds of callbacks are those of `benchmarks.callbacks`.

The client is compared with a *sweep*, which reads list pages every second until they have shown all open
jobs. The first jobs, from which the client learns, are not counted. If callbacks stop, only the jobs that end
later are counted. The table also shows the highest latency and the most requests within one second.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count
from statistics import fmean, quantiles
from typing import Any
from urllib.parse import urlsplit

from attrs import define, field

from benchmarks.callbacks import KINDS, SECRET, signed
from benchmarks.durations import DISTRIBUTIONS, Jobs
from benchmarks.reporting import finish, options, picture, rounded, table
from benchmarks.server import kling_task
from benchmarks.stub import Response, Service
from kling_expand import KlingClient, Ratios
from kling_expand.testing import loop_clock, run

PHOTO = picture()
PAGE = 500  # tasks on a page of the sweep
WARM = 200  # jobs that are not counted; at least twice the number of concurrent jobs
STOP = 120.0  # seconds after the start, from which callbacks of the kind "stopping" are lost
JOBS = {1: 500, 10: 2000, 100: 3000, 1000: 6000}  # by number of concurrent jobs: jobs that are counted
Run = Callable[[], Awaitable[str]]


@define(eq=False, kw_only=True)
class VirtualService(Service):
    """A stub whose tasks have the durations of *jobs*, and that calls `receive` at the end of each."""

    jobs: Jobs
    callbacks: str = "lost"
    receive: Callable[[dict[str, str], bytes], object] | None = None
    reads: list[float] = field(factory=list)
    begun_at: float = field(factory=loop_clock)

    def request(
        self, method: str, url: str, *, params: dict[str, int] | None = None, **_given: object
    ) -> Response:
        """Answer a create, a list page or a query."""
        data: Any
        if method == "POST":
            name = self.jobs.new()
            self._call_later(name)
            data = kling_task(self.jobs, name)
        else:
            self.reads.append(self.jobs.clock())
            data = self.page(**params) if params else kling_task(self.jobs, urlsplit(url).path[-18:])
        return Response(json.dumps({"code": 0, "message": "", "request_id": "0", "data": data}).encode())

    def page(self, pageNum: int, pageSize: int) -> list[dict[str, Any]]:  # noqa: N803 - the service's words
        """Return a page of tasks, newest first."""
        newest = len(self.jobs.ends) - 1 - (pageNum - 1) * pageSize
        numbers = range(newest, max(newest - pageSize, -1), -1)
        return [kling_task(self.jobs, f"{10**17 + number}") for number in numbers]

    def _call_later(self, name: str) -> None:
        end = self.jobs.ends[name]
        delay = KINDS[self.callbacks](int(name) % 10**6, end - self.begun_at < STOP)
        if delay is not None and self.receive is not None:
            asyncio.get_running_loop().call_later(end + delay - loop_clock(), self._call, name)

    def _call(self, name: str) -> None:
        if self.receive is not None:
            self.receive(*signed(kling_task(self.jobs, name), name, loop_clock()))


@asynccontextmanager
async def ours(service: VirtualService, concurrent: int) -> AsyncIterator[Run]:
    """Open this package's client on the stub, with or without callbacks."""
    url = None if service.callbacks == "lost" else "http://client.example/callback"
    http = service.as_session()
    given: dict[str, Any] = {"webhook_secret": f"whsec_{SECRET}", "max_in_flight": concurrent}
    async with KlingClient(
        api_key="key", base_url="http://stub.example", http=http, clock=loop_clock, **given
    ) as kling:
        service.receive = kling.receive

        async def one() -> str:
            return (await kling.expand(PHOTO, Ratios(right=0.5), callback_url=url)).task_id

        yield one


@asynccontextmanager
async def sweep(service: VirtualService, _concurrent: int) -> AsyncIterator[Run]:
    """Read list pages every second until they have shown all open jobs."""
    loop = asyncio.get_running_loop()
    waiting: dict[str, asyncio.Future[None]] = {}

    async def poll() -> None:
        while True:
            await asyncio.sleep(1.0)
            missing = set(waiting)
            for number in count(1):
                if not missing:
                    break
                service.reads.append(service.jobs.clock())
                shown = service.page(number, PAGE)
                missing -= {task["task_id"] for task in shown}
                for task in shown:
                    if task["task_status"] == "succeed" and (future := waiting.pop(task["task_id"], None)):
                        future.set_result(None)

    async def one() -> str:
        name = service.jobs.new()
        waiting[name] = loop.create_future()
        await waiting[name]
        return name

    poller = asyncio.create_task(poll())
    yield one
    poller.cancel()


CLIENTS = {"kling_expand": ours, "sweep": sweep}


async def measure(
    client: str, distribution: str, concurrent: int, jobs: int, callbacks: str
) -> dict[str, float]:
    """Return the requests per job and the latency of *jobs* jobs, of which *concurrent* are under way."""
    service = VirtualService(0.0, jobs=Jobs(12.0, concurrent, distribution, loop_clock), callbacks=callbacks)
    warm = max(WARM, 2 * concurrent)
    if callbacks == "stopping":
        warm, jobs = round(STOP / 12 * concurrent), max(4 * concurrent, 50)
    ends: list[tuple[float, float]] = []  # moment and latency
    first_at = service.begun_at + STOP if callbacks == "stopping" else 0.0
    async with CLIENTS[client](service, concurrent) as one:
        remaining = iter(range(warm + jobs))

        async def worker() -> None:
            for _ in remaining:
                name = await one()
                if service.jobs.ends[name] >= first_at:
                    ends.append((loop_clock(), loop_clock() - service.jobs.ends[name]))

        await asyncio.gather(*(worker() for _ in range(concurrent)))
    counted = ends if callbacks == "stopping" else ends[warm:]
    begin, end = counted[0][0], counted[-1][0]
    reads = [at for at in service.reads if begin < at <= end]
    latencies = [latency for _, latency in counted]
    return {
        "requests per job": rounded(len(reads) / (len(counted) - 1)),
        "latency (s)": rounded(fmean(latencies)),
        "latency p95 (s)": rounded(quantiles(latencies, n=20)[-1]),
        "highest latency (s)": rounded(max(latencies)),
        "most requests in 1 s": float(max(Counter(int(at) for at in reads).values(), default=0)),
    }


def compare_clients(distribution: str, concurrent: int, jobs: int, callbacks: str) -> list[dict[str, Any]]:
    """Return the rows of both clients, or only of ours if there are callbacks."""
    clients = ["kling_expand"] if callbacks != "lost" else list(CLIENTS)
    case = {"durations": distribution, "concurrent jobs": concurrent, "callbacks": callbacks}
    return [
        case | {"client": client} | run(measure(client, distribution, concurrent, jobs, callbacks))
        for client in clients
    ]


def main() -> None:
    """Measure and print the results."""
    given = options(
        "Requests and latency in virtual time, for every distribution of durations and with callbacks.",
        distributions=",".join(DISTRIBUTIONS),
        callbacks=",".join(each for each in KINDS if each != "lost"),
        concurrent="1,10,100,1000",
        jobs=0,
    )
    numbers = [int(number) for number in given.concurrent.split(",")]
    cases = [
        (distribution, number, "lost")
        for distribution in given.distributions.split(",")
        if distribution
        for number in numbers
    ]
    kinds = [kind for kind in given.callbacks.split(",") if kind]
    cases += [("log-normal", number, kind) for kind in kinds for number in numbers]
    rows = []
    for distribution, number, kind in cases:
        rows += compare_clients(distribution, number, given.jobs or JOBS.get(number, 1000), kind)
    table(rows)
    finish({"rows": rows}, as_json=given.json)


if __name__ == "__main__":
    main()
