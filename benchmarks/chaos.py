"""Is a job ever paid twice, or lost? Killed scripts, a killed service and a bad network, and then the books.

    python -m benchmarks.chaos --jobs 2000 --kills 20 --faults 0.10 --seed 1
    python -m benchmarks.chaos --baseline naive

Real processes: the emulator with its state in SQLite, and a script (`benchmarks.chaos_worker`) that has
all jobs done through a proxy (`benchmarks.proxy`) which spoils a share of all requests. The script is
SIGKILLed at random moments and started again, and so is the emulator. In the end the emulator is
started anew from its file alone, and what it has is compared with what the script has on disk:

    created     tasks the service has            duplicates  jobs with more than one of them
    billed      units it takes for them          due         units that one task for each job costs
    verified    jobs whose file is, byte for     lost        all other jobs
                byte, what the service serves
"""

import argparse
import asyncio
import hashlib
import json
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
from attrs import frozen

from benchmarks.chaos_worker import photo, picture, prompt
from benchmarks.processes import Emulator, Process
from benchmarks.proxy import Proxy

UNITS = 8  # of one picture


@frozen(kw_only=True)
class Conditions:
    """All that makes two runs alike. `limit`: seconds until everything is stopped as it is."""

    jobs: int
    kills: int
    emulator_kills: int
    faults: float
    seed: int
    baseline: str | None
    unique: bool
    forget: bool
    parallel: int
    work_seconds: float
    limit: float
    folder: Path

    def moments(self, what: str, count: int) -> list[float]:
        """When to kill: as shares of all that there is to do, in order."""
        rng = Random(f"{self.seed} {what}")
        return sorted(rng.uniform(0.01, 0.95) for _ in range(count))


def emulator(conditions: Conditions) -> Emulator:
    """The service as these conditions want it."""
    words = [f"--slots={conditions.parallel}", f"--work-seconds={conditions.work_seconds}"]
    words += [] if conditions.unique else ["--allow-duplicates"]
    return Emulator(conditions.folder, "--queue-seconds=0.1", *words)


class Run:
    """One run under given conditions, from the first start of the script to its last."""

    def __init__(self, conditions: Conditions, service: Emulator, proxy: Proxy) -> None:
        self.conditions = conditions
        self.kills = self.emulator_kills = 0
        self._service = service
        self._proxy = proxy
        script = conditions.baseline or "sdk"
        words = (proxy.url, conditions.folder, conditions.jobs, conditions.parallel)
        worker = ("-m", "benchmarks.chaos_worker", script, *words)
        self._script = Process(conditions.folder / "script.log", *worker)

    async def all(self) -> bool:
        """Start the script again and again until it says that all is done; whether it ever did."""
        try:
            async with asyncio.timeout(self.conditions.limit), asyncio.TaskGroup() as group:
                group.create_task(self._kill_service())
                group.create_task(self._restart())
        except TimeoutError:
            return False
        finally:
            await self._script.kill()
        return True

    async def _restart(self) -> None:
        """Kill the script at its moments; start it again until it says that everything is done."""
        rng = Random(f"{self.conditions.seed} pauses")
        for moment in self.conditions.moments("script", self.conditions.kills):
            due = asyncio.create_task(self._reached(moment, rng.uniform(0, 1)))
            while not await self._killed(due):
                pass  # it had ended by itself
            self.kills += 1
            if self.conditions.forget:
                for file in self.conditions.folder.glob("run.db*"):
                    file.unlink()
        while await (await self._start()).wait() != 0:
            pass

    async def _killed(self, due: asyncio.Task[None]) -> bool:
        """Start the script and kill it when that is due, if it has not ended until then."""
        process = await self._start()
        ended = asyncio.create_task(process.wait())
        await asyncio.wait([ended, due], return_when=asyncio.FIRST_COMPLETED)
        return await self._script.kill()

    async def _start(self) -> asyncio.subprocess.Process:
        """The SDK signs tokens of its own, which is the harder way; the naive script has a static key."""
        names = ("api_key",) if self.conditions.baseline else ("access_key", "secret_key")
        return await self._script.start(
            **{f"KLING_{name.upper()}": self._service.keys[name] for name in names}
        )

    async def _kill_service(self) -> None:
        rng = Random(f"{self.conditions.seed} downtimes")
        for moment in self.conditions.moments("service", self.conditions.emulator_kills):
            await self._reached(moment, rng.uniform(0, 1))
            await self._service.kill()
            self.emulator_kills += 1
            await asyncio.sleep(rng.uniform(0, 2))
            await self._service.start()

    async def _reached(self, share: float, seconds: float) -> None:
        """Wait until so much of everything is done, whoever has heard of it, and so long after that."""
        await self._proxy.reached(share * 2 * self.conditions.jobs)  # a task and a picture for each
        await asyncio.sleep(seconds)


async def audit(conditions: Conditions, url: str) -> dict[str, int]:
    """What the service has, and what of it is on disk."""
    async with aiohttp.ClientSession(url, raise_for_status=True) as http:
        # What still runs is billed as well once it has ended.
        async with http.post("/_emulator/advance", json={"seconds": 3600}) as answer:
            account = (await answer.json())["data"]["account"]
        async with http.get("/_emulator/tasks") as answer:
            tasks = (await answer.json())["data"]
        of_job = defaultdict(list)
        for task in tasks:
            of_job[task["prompt"]].append(task["task_id"])
        places = asyncio.Semaphore(8)

        async def verified(number: int) -> bool:
            file = picture(conditions.folder, number)
            if not file.exists():
                return False
            digest = hashlib.sha256(file.read_bytes()).digest()
            for task_id in of_job[prompt(number)]:
                async with places, http.get(f"/files/{task_id}/0.png") as served:
                    if hashlib.sha256(await served.read()).digest() == digest:
                        return True
            return False

        good = sum(await asyncio.gather(*map(verified, range(conditions.jobs))))
    return {
        "jobs": conditions.jobs,
        "created": len(tasks),
        "duplicates": sum(len(task_ids) > 1 for task_ids in of_job.values()),
        "lost": conditions.jobs - good,
        "billed": account["units_billed"],
        "due": UNITS * conditions.jobs,
        "verified": good,
    }


async def chaos(conditions: Conditions) -> dict[str, Any]:
    """Everything in a row; the numbers."""
    from PIL import Image  # of the emulator's extra, without which nothing starts here

    Image.new("RGB", (750, 300), (90, 120, 160)).save(photo(conditions.folder))
    service = emulator(conditions)
    begin = time.monotonic()
    try:
        await service.start()
        async with Proxy(service.url, probability=conditions.faults, seed=conditions.seed) as proxy:
            run = Run(conditions, service, proxy)
            finished = await run.all()
            seconds = time.monotonic() - begin
        await service.kill()  # only what is on its disk counts
        await service.start()
        numbers = await audit(conditions, service.url)
    finally:
        await service.kill()
    return numbers | {
        "kills": run.kills,
        "emulator_kills": run.emulator_kills,
        "faults": {"total": proxy.faults.total(), **dict(sorted(proxy.faults.items()))},
        "seed": conditions.seed,
        "baseline": conditions.baseline,
        "unique": conditions.unique,
        "forget": conditions.forget,
        "finished": finished,
        "seconds": round(seconds, 1),
        "seconds_with_audit": round(time.monotonic() - begin, 1),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Is a job ever paid twice, or lost?")
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=20, help="of the script, by SIGKILL")
    parser.add_argument("--emulator-kills", type=int, help="of the service; default: one in five of --kills")
    parser.add_argument("--faults", type=float, default=0.10, help="share of requests that are spoilt")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--baseline", choices=["naive"], help="run a script without the SDK instead")
    parser.add_argument(
        "--unique", choices=["on", "off"], default="on", help="whether the service refuses a known id"
    )
    parser.add_argument("--forget", action="store_true", help="delete the journal with each kill")
    parser.add_argument("--parallel", type=int, default=64, help="slots of the account")
    parser.add_argument("--work-seconds", type=float, default=0.5, help="how long a task takes")
    parser.add_argument("--limit", type=float, default=540.0, help="seconds until it is stopped as it is")
    parser.add_argument("--folder", type=Path, help="keep everything there; it must be empty")
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON line")
    return parser


def _conditions(options: argparse.Namespace, folder: Path) -> Conditions:
    folder.mkdir(parents=True, exist_ok=True)
    given = {k: v for k, v in vars(options).items() if k not in {"json", "folder", "unique"}}
    if given["emulator_kills"] is None:
        given["emulator_kills"] = given["kills"] // 5
    return Conditions(**given, unique=options.unique == "on", folder=folder)


def main() -> int:
    """Run it once, and print what came of it; exit code 0: nothing paid twice, nothing lost."""
    options = _parser().parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        found = asyncio.run(chaos(_conditions(options, options.folder or Path(temporary))))
    if not options.json:
        print(f"{found['jobs']} jobs, {found['kills']} kills: {found['duplicates']} paid twice,", end=" ")
        print(f"{found['lost']} lost, {found['verified']} verified in {found['seconds']} s")
    print(json.dumps(found))
    return 1 if found["duplicates"] or found["lost"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
