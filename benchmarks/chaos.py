"""Jobs paid twice or lost when the script and the service are killed and the network fails.

    python -m benchmarks.chaos --jobs 2000 --kills 20 --faults 0.10 --seed 1
    python -m benchmarks.chaos --baseline naive

All parts are real processes: an emulator with its state in SQLite, and a script (`benchmarks.chaos_worker`)
that runs all jobs through a proxy (`benchmarks.proxy`), which injects faults into a share of the requests.
Script and emulator receive SIGKILL at random moments and are restarted. At the end the emulator restarts from
its file, and its tasks are compared with the files of the script:

    created     tasks of the service
    duplicates  jobs with more than one task
    billed      units billed for all tasks
    due         units that one task for each job costs
    verified    jobs whose file equals the one that the service serves, byte for byte
    lost        all other jobs
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

UNITS = 8  # price of one picture


@frozen(kw_only=True)
class Conditions:
    """The parameters of a run; after `timeout` seconds it is stopped."""

    jobs: int
    kills: int
    emulator_kills: int
    faults: float
    seed: int
    baseline: str | None
    unique: bool
    delete_journal: bool
    slots: int
    work_seconds: float
    timeout: float
    folder: Path

    def kill_points(self, target: str, count: int) -> list[float]:
        """Return sorted shares of the whole work at which *target* is killed."""
        rng = Random(f"{self.seed} {target}")
        return sorted(rng.uniform(0.01, 0.95) for _ in range(count))


def emulator(conditions: Conditions) -> Emulator:
    """Return an emulator for these conditions."""
    options = [f"--slots={conditions.slots}", f"--work-seconds={conditions.work_seconds}"]
    options += [] if conditions.unique else ["--allow-duplicates"]
    return Emulator(conditions.folder, "--queue-seconds=0.1", *options)


class Run:
    """One run, from the first start of the script to its last."""

    def __init__(self, conditions: Conditions, service: Emulator, proxy: Proxy) -> None:
        self.conditions = conditions
        self.kills = self.emulator_kills = 0
        self._service = service
        self._proxy = proxy
        script = conditions.baseline or "sdk"
        arguments = (proxy.url, conditions.folder, conditions.jobs, conditions.slots)
        worker = ("-m", "benchmarks.chaos_worker", script, *arguments)
        self._script = Process(conditions.folder / "script.log", *worker)

    async def finish(self) -> bool:
        """Restart the script until it reports success; return False if that takes too long."""
        try:
            async with asyncio.timeout(self.conditions.timeout), asyncio.TaskGroup() as group:
                group.create_task(self._kill_service())
                group.create_task(self._restart())
        except TimeoutError:
            return False
        finally:
            await self._script.kill()
        return True

    async def _restart(self) -> None:
        """Kill the script at its kill points, then restart it until it reports success."""
        rng = Random(f"{self.conditions.seed} pauses")
        for share in self.conditions.kill_points("script", self.conditions.kills):
            due = asyncio.create_task(self._reached(share, rng.uniform(0, 1)))
            while not await self._killed(due):
                pass  # the script ended by itself before it was due
            self.kills += 1
            if self.conditions.delete_journal:
                for file in self.conditions.folder.glob("run.db*"):
                    file.unlink()
        while await (await self._start()).wait() != 0:
            pass

    async def _killed(self, due: asyncio.Task[None]) -> bool:
        """Start the script, kill it when *due* is done, and return whether it was still running."""
        process = await self._start()
        ended = asyncio.create_task(process.wait())
        await asyncio.wait([ended, due], return_when=asyncio.FIRST_COMPLETED)
        return await self._script.kill()

    async def _start(self) -> asyncio.subprocess.Process:
        """Start the script; the SDK signs its own tokens, and the naive script has a static key."""
        names = ("api_key",) if self.conditions.baseline else ("access_key", "secret_key")
        return await self._script.start(
            **{f"KLING_{name.upper()}": self._service.keys[name] for name in names}
        )

    async def _kill_service(self) -> None:
        rng = Random(f"{self.conditions.seed} downtimes")
        for share in self.conditions.kill_points("service", self.conditions.emulator_kills):
            await self._reached(share, rng.uniform(0, 1))
            await self._service.kill()
            self.emulator_kills += 1
            await asyncio.sleep(rng.uniform(0, 2))
            await self._service.start()

    async def _reached(self, share: float, seconds: float) -> None:
        """Wait until the service has done a *share* of the work, and *seconds* after that."""
        await self._proxy.reached(share * 2 * self.conditions.jobs)  # each job is a task and a picture
        await asyncio.sleep(seconds)


async def audit(conditions: Conditions, url: str) -> dict[str, int]:
    """Compare the tasks of the service with the files on disk."""
    async with aiohttp.ClientSession(url, raise_for_status=True) as http:
        # Running tasks are billed when they end.
        async with http.post("/_emulator/advance", json={"seconds": 3600}) as response:
            account = (await response.json())["data"]["account"]
        async with http.get("/_emulator/tasks") as response:
            tasks = (await response.json())["data"]
        of_job = defaultdict(list)
        for task in tasks:
            of_job[task["prompt"]].append(task["task_id"])
        semaphore = asyncio.Semaphore(8)

        async def verified(number: int) -> bool:
            file = picture(conditions.folder, number)
            if not file.exists():
                return False
            digest = hashlib.sha256(file.read_bytes()).digest()
            for task_id in of_job[prompt(number)]:
                async with semaphore, http.get(f"/files/{task_id}/0.png") as served:
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
    """Run everything and return the figures."""
    from PIL import Image  # in the same extra as the emulator

    Image.new("RGB", (750, 300), (90, 120, 160)).save(photo(conditions.folder))
    service = emulator(conditions)
    begin = time.monotonic()
    try:
        await service.start()
        async with Proxy(service.url, probability=conditions.faults, seed=conditions.seed) as proxy:
            run = Run(conditions, service, proxy)
            finished = await run.finish()
            seconds = time.monotonic() - begin
        await service.kill()  # the audit uses only the state on disk
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
        "delete_journal": conditions.delete_journal,
        "finished": finished,
        "seconds": round(seconds, 1),
        "seconds_with_audit": round(time.monotonic() - begin, 1),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Jobs paid twice or lost under kills and faults.")
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=20, help="SIGKILLs of the script (default: 20)")
    parser.add_argument(
        "--emulator-kills", type=int, help="SIGKILLs of the service (default: a fifth of --kills)"
    )
    parser.add_argument(
        "--faults", type=float, default=0.10, help="share of requests with a fault (default: 0.10)"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--baseline", choices=["naive"], help="run a script without the SDK")
    parser.add_argument(
        "--unique",
        choices=["on", "off"],
        default="on",
        help="whether the service refuses an id that it knows (default: on)",
    )
    parser.add_argument("--delete-journal", action="store_true", help="delete the journal after each kill")
    parser.add_argument("--slots", type=int, default=64, help="slots of the account (default: 64)")
    parser.add_argument("--work-seconds", type=float, default=0.5, help="seconds of a task (default: 0.5)")
    parser.add_argument("--timeout", type=float, default=540.0, help="seconds of the run (default: 540)")
    parser.add_argument("--folder", type=Path, help="an empty folder in which all files are kept")
    parser.add_argument("--json", action="store_true", help="print only the JSON line")
    return parser


def _conditions(options: argparse.Namespace, folder: Path) -> Conditions:
    folder.mkdir(parents=True, exist_ok=True)
    given = {k: v for k, v in vars(options).items() if k not in {"json", "folder", "unique"}}
    if given["emulator_kills"] is None:
        given["emulator_kills"] = given["kills"] // 5
    return Conditions(**given, unique=options.unique == "on", folder=folder)


def main() -> int:
    """Run once and print the results; return 0 if no job was paid twice or lost, else 1."""
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
