"""The CPU time of one task and of one event while few or many tasks are open.

    python -m benchmarks.open_tasks --json

The whole client runs in virtual time over a stub instead of a network. The number of open tasks stays the
same throughout each part:

    task        a job of `map` from its request to its result
    page entry  one task on a list page, whose status has not changed
    read        a single read of one task, where the service refuses lists
    callback    a signed callback with a newer snapshot
    end         a signed callback with the end of a task, up to the result of its future

Each number of open tasks is measured in a new process. The figures are medians of `--runs` runs. The ratio
of the larger to the smaller number should be at most 1.3.
"""

import asyncio
import json
import logging
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable

from attrs import define

from benchmarks.callbacks import SECRET, signed
from benchmarks.memory import requests
from benchmarks.reporting import finish, interleaved, medians, options, rounded, table
from benchmarks.stub import Response, Service
from kling_expand import KlingClient, TaskFuture
from kling_expand.testing import loop_clock, run

LONG = 1e9  # seconds of a task that does not end by itself
ROUND = 10  # tasks that end at the same moment
GOAL = 1.3


@define(eq=False, kw_only=True)
class CountingService(Service):
    """A stub that counts reads and the tasks on its pages, and refuses list pages unless *lists* is true."""

    lists: bool = True
    entries: int = 0  # tasks on list pages
    reads: int = 0

    def request(
        self, method: str, url: str, *, params: dict[str, int] | None = None, **given: object
    ) -> Response:
        """Answer and count a call."""
        if params and not self.lists:
            return Response(b'{"code":5000,"message":"internal error","request_id":"0"}', 500)
        response = super().request(method, url, params=params, **given)
        if params:
            self.entries += response.body.count(b'"task_id"')
        elif method == "GET":
            self.reads += 1
        return response


def client(service: Service, opened: int) -> KlingClient:
    """Return a client with *opened* slots whose session is a stub."""
    return KlingClient(
        api_key="key",
        base_url="http://stub.example",
        http=service.as_session(),
        max_in_flight=opened,
        webhook_secret=f"whsec_{SECRET}",
        clock=loop_clock,
    )


async def fill(kling: KlingClient, number: int) -> list[TaskFuture]:
    """Return *number* new futures whose tasks are accepted."""
    futures = [kling.submit(request) for request in requests(number)]
    for future in futures:
        await future.accepted()
    return futures


async def cpu_of_tasks(opened: int, events: int) -> float:
    """Return the CPU seconds of a job of `map`, with *opened* tasks open."""
    async with client(Service(12.0), opened) as kling:
        ended, begin = 0, 0.0
        async for outcome in kling.map(requests(2 * opened + events), prefetch=opened):
            if outcome.error is not None:
                raise outcome.error
            ended += 1
            if ended == opened:  # from here on, a new task begins whenever one ends
                begin = time.process_time()
            if ended == opened + events:
                return (time.process_time() - begin) / events
    raise RuntimeError("map must yield an outcome for each request")


async def cpu_of_entries(opened: int, events: int) -> float:
    """Return the CPU seconds of one task on a list page."""
    service = CountingService(LONG)
    async with client(service, opened) as kling:
        await fill(kling, opened)
        await asyncio.sleep(30)
        return await _cpu_until(lambda: service.entries, events)


async def cpu_of_reads(opened: int, events: int) -> float:
    """Return the CPU seconds of a single read, where lists are refused."""
    service = CountingService(LONG, lists=False)
    async with client(service, opened) as kling:
        await fill(kling, opened)
        await asyncio.sleep(30)
        return await _cpu_until(lambda: service.reads, events)


async def _cpu_until(count: Callable[[], int], events: int) -> float:
    """Return the CPU seconds of one event, measured until *count* has grown by that many *events*."""
    first, begin = count(), time.process_time()
    while (seen := count() - first) < events:  # noqa: ASYNC110 - the stub has no event to wait for
        await asyncio.sleep(10)
    return (time.process_time() - begin) / seen


def callback(future: TaskFuture, number: int, *, end: bool) -> tuple[dict[str, str], bytes]:
    """Return the headers and the body of a signed callback about the task of *future*."""
    status = "succeed" if end else "processing"
    images = [{"index": 0, "url": f"https://cdn.example.com/{future.task_id}.png"}] if end else []
    task = {"task_id": future.task_id, "task_status": status, "task_result": {"images": images}}
    return signed(task | {"created_at": 0, "updated_at": number}, str(number), loop_clock())


async def cpu_of_callbacks(opened: int, events: int) -> float:
    """Return the CPU seconds of one signed callback with a newer snapshot."""
    async with client(Service(LONG), opened) as kling:
        futures = await fill(kling, opened)
        calls = [callback(futures[number % opened], number + 1, end=False) for number in range(events)]
        begin = time.process_time()
        for headers, body in calls:
            kling.receive(headers, body)
        return (time.process_time() - begin) / events


async def cpu_of_ends(opened: int, events: int) -> float:
    """Return the CPU seconds of one end, from its signed callback to the result of the future."""
    async with client(Service(LONG), opened) as kling:
        futures, seconds = deque(await fill(kling, opened)), 0.0
        for first in range(0, events, ROUND):
            ending = [futures.popleft() for _ in range(ROUND)]
            calls = [callback(future, first + n, end=True) for n, future in enumerate(ending)]
            begin = time.process_time()
            for headers, body in calls:
                kling.receive(headers, body)
            for future in ending:
                await future
            seconds += time.process_time() - begin
            futures.extend(await fill(kling, ROUND))
        return seconds / events


PARTS = {
    "task": cpu_of_tasks,
    "page entry": cpu_of_entries,
    "read": cpu_of_reads,
    "callback": cpu_of_callbacks,
    "end": cpu_of_ends,
}


def in_process(opened: int, events: int) -> dict[str, float]:
    """Return the CPU microseconds of each part, measured in a new process."""
    command = [sys.executable, "-m", "benchmarks.open_tasks", "--part", str(opened), str(events)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def main() -> None:
    """Measure and print the results, or with ``--part`` measure one number in this process."""
    if sys.argv[1:2] == ["--part"]:
        opened, events = map(int, sys.argv[2:])
        logging.disable(logging.WARNING)  # each client is closed while tasks are open
        print(json.dumps({name: 1e6 * run(part(opened, events)) for name, part in PARTS.items()}))
        return
    given = options("CPU with few and many open tasks.", few=100, many=10_000, events=10_000, runs=3)
    numbers = {"few": given.few, "many": given.many}
    measures = {name: lambda n=n: in_process(n, given.events) for name, n in numbers.items()}
    found = {name: medians(rows) for name, rows in interleaved(measures, given.runs).items()}
    ratios = {part: rounded(found["many"][part] / found["few"][part]) for part in PARTS}
    names = {name: f"{number} open (µs)" for name, number in numbers.items()}
    table(
        [
            {"CPU of one": part}
            | {names[name]: found[name][part] for name in numbers}
            | {"ratio": ratios[part], "at most": GOAL}
            for part in PARTS
        ]
    )
    finish({"ratios": ratios, "microseconds": found}, as_json=given.json)


if __name__ == "__main__":
    main()
