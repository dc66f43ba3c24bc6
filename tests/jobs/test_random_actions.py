"""Random actions of two clients on one account, after which nothing is left over or counted wrongly."""

import asyncio
import io
import json
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random
from types import CoroutineType
from typing import Any

import pytest
from PIL import Image as Pictures

from kling_expand import ExpandRequest, KlingClient, Ratios, TaskFuture
from kling_expand.emulator import Emulator
from kling_expand.emulator.faults.plan import Fault
from kling_expand.errors import ClientClosed, KlingError, NotSubmitted, SubmissionUnknown
from kling_expand.events import Event, EventKind
from kling_expand.jobs.runner import Job
from kling_expand.jobs.scheduler import Slots
from kling_expand.testing import loop_clock, run

SEEDS, PARTS = 500, 10
STEPS = 40
LONG = 3600.0  # seconds by which everything has ended
PACKAGE = str(Path("kling_expand"))
CREATE_FAULTS: list[Fault | str] = [
    "reset",
    "reset_after",
    "html_after",
    "refused",
    Fault("error", code=1302, retry_after="3"),
    Fault("error", code=1303),
    Fault("error", code=5000),
    Fault("error_after", code=5001),
    Fault("error", code=1102),
    Fault("error", code=1301),
    Fault("slow_headers", seconds=8),
    Fault("late", seconds=4),
]
READ_FAULTS: list[Fault | str] = ["reset", Fault("error", code=5000), Fault("error", code=1302), "html"]


def picture() -> bytes:
    """A small photo."""
    target = io.BytesIO()
    Pictures.new("RGB", (320, 320), "teal").save(target, "JPEG")
    return target.getvalue()


PHOTO = picture()


class Scenario:
    """One random sequence of actions, with its clients, their futures and every event."""

    def __init__(
        self, seed: int, emulator: Emulator, clients: list[KlingClient], photo: bytes | Path
    ) -> None:
        self.rng = Random(seed)
        self.emulator = emulator
        self.clients = clients
        self.photo = photo
        self.futures: list[TaskFuture] = []
        self.unkeyed: list[TaskFuture] = []
        self.waits: list[asyncio.Task[Any]] = []

    async def step(self) -> None:
        """Perform one random action."""
        methods = [self.submit] * 4 + [self.sleep] * 3 + [self.fault] * 2
        methods += [self.attach, self.send_callback, self.cancel, self.resume, self.cancel_wait]
        method = self.rng.choice(methods)
        await method(self.rng.choice(self.clients))

    async def submit(self, kling: KlingClient) -> None:
        """Submit a job, perhaps with a key, a deadline or `fresh`."""
        key = self.rng.choice([None, None, "cat", "dog"])
        request = ExpandRequest(
            self.photo,
            Ratios(right=0.5 if key else 0.1 + self.rng.random()),
            prompt=self.rng.choice([None, None, None, "emulate-risk-control"]),
            n=self.rng.choice([1, 1, 2]),
            key=key,
        )
        future = kling.submit(
            request, deadline=self.rng.choice([None, None, 6.0]), fresh=self.rng.random() < 0.2
        )
        self.futures.append(future)
        if key is None and kling._store.durable is False:
            self.unkeyed.append(future)
        self.waits.append(asyncio.create_task(self.wait(future)))

    async def wait(self, future: TaskFuture) -> None:
        """Await a future as a caller would."""
        with suppress(KlingError):
            await future

    async def attach(self, kling: KlingClient) -> None:
        """Follow a task of the account, by either id."""
        tasks = list(self.emulator.account.tasks.values())
        if tasks:
            task = self.rng.choice(tasks)
            self.futures.append(kling.attach(self.rng.choice([task.task_id, task.external_task_id])))

    async def send_callback(self, kling: KlingClient) -> None:
        """Deliver an unsigned callback about a task of the account."""
        tasks = list(self.emulator.account.tasks.values())
        if tasks:
            kling.receive({}, json.dumps({"task_id": tasks[-1].task_id, "task_status": "succeed"}).encode())

    async def cancel(self, _kling: KlingClient) -> None:
        """Cancel a random job, which works only if it was not sent."""
        if self.futures:
            self.rng.choice(self.futures).cancel()

    async def fault(self, _kling: KlingClient) -> None:
        """Let the next creates or reads fail."""
        self.emulator.faults.script("create", *self.rng.choices(CREATE_FAULTS, k=2))
        self.emulator.faults.script("query", self.rng.choice(READ_FAULTS))

    async def resume(self, kling: KlingClient) -> None:
        """Resume whatever the journal holds."""
        self.futures += [future async for future in kling.resume()]

    async def cancel_wait(self, _kling: KlingClient) -> None:
        """Cancel one of the waiting callers."""
        if self.waits:
            self.rng.choice(self.waits).cancel()

    async def sleep(self, _kling: KlingClient) -> None:
        """Let some time pass."""
        await asyncio.sleep(self.rng.choice([0.0, 0.01, 0.3, 2.0, 9.0]))


def left_over() -> list[str]:
    """Return the asyncio tasks of the SDK that still run."""
    running = [each.get_coro() for each in asyncio.all_tasks()]
    codes = [each.cr_code for each in running if isinstance(each, CoroutineType)]
    return [
        code.co_name for code in codes if PACKAGE in code.co_filename and "emulator" not in code.co_filename
    ]


def check_events(events: list[Event]) -> None:
    """Check that each job begins once and ends once."""
    kinds = {kind: Counter(each.number for each in events if each.kind is kind) for kind in EventKind}
    ends = kinds[EventKind.ENDED] + kinds[EventKind.FAILED] + kinds[EventKind.MERGED]
    assert set(kinds[EventKind.SUBMITTED].values()) <= {1}
    assert {number: ends[number] for number in kinds[EventKind.SUBMITTED]} == kinds[EventKind.SUBMITTED]
    assert set(ends.values()) <= {1}


def check_ends(scenario: Scenario) -> None:
    """Check that every future has ended, in agreement with the emulator's account."""
    account = scenario.emulator.account
    assert set(account.accepted.values()) <= {1}
    for future in scenario.futures:
        assert future.done()
        error = future.error
        if error is None:
            assert future.task_id in account.tasks
        elif isinstance(error, ClientClosed):
            assert error.task_id in account.tasks or error.task_id is None
        elif future in scenario.unkeyed and not isinstance(error, SubmissionUnknown):
            assert future.external_task_id not in account.accepted
        if isinstance(error, NotSubmitted):
            assert error.task_id is None


def check_units(scenario: Scenario) -> None:
    """Check that the units due equal the units billed, except for ends that no client saw."""
    jobs = {id(each.record.job): each for each in scenario.futures if isinstance(each.record.job, Job)}
    units: dict[str | None, list[int]] = {}
    for future in jobs.values():
        job: Any = future.record.job
        units.setdefault(future.external_task_id, []).append(job.counted.due)
    for kling in scenario.clients:
        for name, counted in kling._budget._unsettled.items():
            units.setdefault(name, []).append(counted.due)
    due = sum(kling.stats.units_due for kling in scenario.clients)
    assert due == sum(map(sum, units.values()))
    due = sum(map(max, units.values()))
    billed = scenario.emulator.account.units_billed
    open_ends = any(isinstance(each.error, ClientClosed | SubmissionUnknown) for each in scenario.futures)
    assert due == billed or (open_ends and due > billed)


async def live(seed: int, folder: Path | None) -> None:
    """Run one random sequence of actions, and check what it leaves."""
    rng = Random(seed)
    slots, events = Slots(9), list[Event]()
    photo = folder / "photo.jpg" if folder else PHOTO
    if isinstance(photo, Path):
        photo.write_bytes(PHOTO)
    account: dict[str, Any] = {"slots": rng.choice([2, 4, 9]), "work_seconds": rng.choice([0.5, 4.0, 30.0])}
    async with Emulator(engine="flat", clock=loop_clock, seed=seed, **account) as emulator:
        options: dict[str, Any] = {"api_key": emulator.api_key, "base_url": emulator.url, "slots": slots}
        options |= {
            "clock": loop_clock,
            "listener": events.append,
            "retry_timeout": 20.0,
            "create_timeout": 5.0,
        }
        clients = [
            KlingClient(rng=Random(seed), journal=folder / "run.db" if folder else None, **options),
            KlingClient(rng=Random(seed + 1), run="other", **options),
        ]
        scenario = Scenario(seed, emulator, clients, photo)
        async with clients[0], clients[1]:
            for _ in range(rng.randrange(1, STEPS)):
                await scenario.step()
            if rng.random() < 0.5:
                emulator.faults.clear()
                await asyncio.gather(*(kling.aclose(wait=True) for kling in clients))
        await asyncio.gather(*scenario.waits, return_exceptions=True)
        assert left_over() == []
        assert (slots.held, slots.running) == (0, 0)
        for kling in clients:
            assert (kling.stats.waiting, kling.stats.running) == (0, 0)
            assert kling._jobs._submitter._uploads.held == 0
        await asyncio.sleep(LONG)
        check_events(events)
        check_ends(scenario)
        emulator.account.settle(loop_clock())
        check_units(scenario)


@pytest.mark.parametrize("part", range(PARTS))
def test_random_actions_leave_nothing_behind(part: int, tmp_path: Path) -> None:
    """For each of many seeds, no task, slot, byte or unit is left over."""
    for seed in range(part, SEEDS, PARTS):
        folder = tmp_path / str(seed) if seed % 4 == 0 else None
        if folder is not None:
            folder.mkdir()
        try:
            run(live(seed, folder))
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
