"""Jobs that are paid for twice or lost when the script and the service are killed and the network fails.

    python -m benchmarks.chaos --jobs 2000 --kills 20 --faults 0.10 --seed 1
    python -m benchmarks.chaos --baseline naive
    python -m benchmarks.chaos --jobs 400 --kills 6 --harsh
    python -m benchmarks.chaos --jobs 200 --kills 8 --passes 2

All parts are real processes: an emulator with its state in SQLite, and a script (`benchmarks.chaos_worker`)
that runs all jobs through a proxy (`benchmarks.proxy`), which injects faults into a share of the requests.
The script and the emulator receive SIGKILL at random moments and are restarted. At the end the emulator
restarts from its file, and its tasks are compared with the files of the script:

    created     tasks at the service
    duplicates  jobs with more than one task, or with ``--passes 2`` more than two
    billed      units billed for all tasks
    due         units that the necessary tasks cost
    verified    jobs whose file equals the one that the service serves, byte for byte
    lost        all other jobs
    repeated    duplicates that have one task from before the journal was deleted and one from after it

With ``--harsh`` half of the faults are responses that arrive after 70 s, a task can be looked up by its
`external_task_id` only 30 s after its create, and the script's clock is set back an hour at each restart.
Three runs follow one another:

=============  =================  ==================  =================================================
journal        ids are unique     delayed creates     goal
=============  =================  ==================  =================================================
kept           no                 after up to 2 s     no duplicates, none lost
deleted once   yes                after up to 70 s    no duplicates, none lost
deleted once   no                 after up to 2 s     no duplicates, none lost
=============  =================  ==================  =================================================

In the last run neither the service nor the new journal refuses an id that was used before, so the script
must find its tasks in the list. In the first and last runs the script cannot distinguish a create that takes
effect after the script has stopped waiting for it from one that never does. Hence their delays are short.

With ``--passes 2`` each job is a portrait that becomes 16:9 in two tasks, one after the other.

``--scale 10`` divides the 70 s, the 30 s and the script's `create_timeout` of 30 s by ten, so the runs take
less time at the same proportions. All other durations stay the same, including the 5 s of `APPEAR_TIMEOUT`.
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
from attrs import evolve, frozen

from benchmarks.chaos_worker import photo, picture, prompt
from benchmarks.processes import Emulator, Process
from benchmarks.proxy import DELAYS, HARSH_KINDS, KINDS, Proxy

UNITS = 8  # price of one picture
CREATE_TIMEOUT = 30.0  # seconds, the SDK's default
SLOW, LOOKUP_LAG = 70.0, 30.0  # seconds, under harsh conditions
CLOCK_STEP = 3600.0  # seconds by which the script's clock goes back at each restart


@frozen(kw_only=True)
class Conditions:
    """The parameters of a run, which is stopped after `timeout` seconds."""

    jobs: int
    passes: int
    kills: int
    emulator_kills: int
    faults: float
    seed: int
    baseline: str | None
    unique: bool
    delete_journal: str
    harsh: bool
    scale: float
    slots: int
    work_seconds: float
    timeout: float
    folder: Path

    def kill_points(self, target: str, count: int) -> list[float]:
        """Return sorted shares of the whole work at which *target* is killed."""
        rng = Random(f"{self.seed} {target}")
        return sorted(rng.uniform(0.01, 0.95) for _ in range(count))


def harsh_runs(conditions: Conditions) -> list[Conditions]:
    """Return the conditions of the three harsh runs, each with a folder of its own."""
    kinds = [("kept", False, "never"), ("unique", True, "once"), ("deleted", False, "once")]
    return [
        evolve(conditions, folder=conditions.folder / name, unique=unique, delete_journal=delete)
        for name, unique, delete in kinds
    ]


def network(conditions: Conditions, upstream: str) -> Proxy:
    """Return the proxy for these conditions."""
    common: dict[str, Any] = {"probability": conditions.faults, "seed": conditions.seed}
    if not conditions.harsh:
        return Proxy(upstream, kinds=KINDS, **common)
    slow = SLOW / conditions.scale
    delays = (DELAYS[0], slow if conditions.unique else DELAYS[1])
    lag = LOOKUP_LAG / conditions.scale
    return Proxy(upstream, kinds=HARSH_KINDS, delays=delays, slow=slow, lookup_lag=lag, **common)


def emulator(conditions: Conditions) -> Emulator:
    """Return an emulator for these conditions."""
    options = [f"--slots={conditions.slots}", f"--work-seconds={conditions.work_seconds}"]
    options += [] if conditions.unique else ["--allow-duplicates"]
    return Emulator(conditions.folder, "--queue-seconds=0.1", *options)


class Run:
    """One run, from the first start of the script to its last end."""

    def __init__(self, conditions: Conditions, service: Emulator, proxy: Proxy) -> None:
        self.conditions = conditions
        self.kills = self.emulator_kills = 0
        self.deleted_at: float | None = None  # Unix seconds of the last deletion of the journal
        self._service = service
        self._proxy = proxy
        script = conditions.baseline or "sdk"
        arguments = (proxy.url, conditions.folder, conditions.jobs, conditions.slots)
        worker = ("-m", "benchmarks.chaos_worker", script, *arguments, "--passes", conditions.passes)
        self._script = Process(conditions.folder / "script.log", *worker)

    async def finish(self) -> bool:
        """Restart the script until it reports success, and return False if that takes too long."""
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
                pass  # the script ended by itself before it was due to be killed
            self.kills += 1
            middle = self.kills == (self.conditions.kills + 1) // 2
            if self.conditions.delete_journal == "always" or (
                self.conditions.delete_journal == "once" and middle
            ):
                await self._delete_journal()
        while await (await self._start()).wait() != 0:
            pass

    async def _delete_journal(self) -> None:
        """Delete the journal once each task of the killed script exists, so that `repeated` is exact."""
        await self._proxy.idle()
        for file in self.conditions.folder.glob("run.db*"):
            file.unlink()
        self.deleted_at = time.time()

    async def _killed(self, due: asyncio.Task[None]) -> bool:
        """Start the script, kill it when *due* is done, and return whether it was still running."""
        process = await self._start()
        ended = asyncio.create_task(process.wait())
        await asyncio.wait([ended, due], return_when=asyncio.FIRST_COMPLETED)
        return await self._script.kill()

    async def _start(self) -> asyncio.subprocess.Process:
        """Start the script: with the SDK it signs its tokens, and without the SDK it has a static key."""
        names = ("api_key",) if self.conditions.baseline else ("access_key", "secret_key")
        keys = {f"KLING_{name.upper()}": self._service.keys[name] for name in names}
        options: list[object] = []
        if self.conditions.harsh:
            options += ["--create-timeout", CREATE_TIMEOUT / self.conditions.scale]
            options += ["--clock-back", CLOCK_STEP * self.kills]
        return await self._script.start(*options, **keys)

    async def _kill_service(self) -> None:
        rng = Random(f"{self.conditions.seed} downtimes")
        for share in self.conditions.kill_points("service", self.conditions.emulator_kills):
            await self._reached(share, rng.uniform(0, 1))
            await self._service.kill()
            self.emulator_kills += 1
            await asyncio.sleep(rng.uniform(0, 2))
            await self._service.start()

    async def _reached(self, share: float, seconds: float) -> None:
        """Wait until the service has done a *share* of the work, and then for *seconds*."""
        work = 2 * self.conditions.jobs * self.conditions.passes  # each pass is a task and a picture
        await self._proxy.reached(share * work)
        await asyncio.sleep(seconds)


async def audit(conditions: Conditions, url: str, deleted_at: float | None) -> dict[str, int]:
    """Compare the tasks of the service with the files on disk."""
    async with aiohttp.ClientSession(url, raise_for_status=True) as http:
        # Running tasks are billed when they end.
        async with http.post("/_emulator/advance", json={"seconds": 3600}) as response:
            account = (await response.json())["data"]["account"]
        async with http.get("/_emulator/tasks") as response:
            tasks = (await response.json())["data"]
        of_job = defaultdict(list)
        for task in tasks:
            of_job[task["prompt"]].append(task)
        semaphore = asyncio.Semaphore(8)

        async def verified(number: int) -> bool:
            file = picture(conditions.folder, number)
            if not file.exists():
                return False
            digest = hashlib.sha256(file.read_bytes()).digest()
            made = sorted(of_job[prompt(number)], key=lambda task: float(task["created_at"]))
            for task in made[conditions.passes - 1 :]:
                async with semaphore, http.get(f"/files/{task['task_id']}/0.png") as served:
                    if hashlib.sha256(await served.read()).digest() == digest:
                        return True
            return False

        good = sum(await asyncio.gather(*map(verified, range(conditions.jobs))))
    return {
        "jobs": conditions.jobs,
        "created": len(tasks),
        "duplicates": sum(len(made) > conditions.passes for made in of_job.values()),
        "repeated": sum(_repeated(made, deleted_at) for made in of_job.values()),
        "lost": conditions.jobs - good,
        "billed": account["units_billed"],
        "due": UNITS * conditions.jobs * conditions.passes,
        "verified": good,
    }


def _repeated(made: list[dict[str, Any]], deleted_at: float | None) -> bool:
    """Return whether a job has one task from before the deletion, one from after it and no other."""
    if deleted_at is None or len(made) != 2:
        return False
    return [task["created_at"] < deleted_at for task in made].count(True) == 1


async def chaos(conditions: Conditions) -> dict[str, Any]:
    """Run everything and return the figures."""
    from PIL import Image  # in the same extra as the emulator

    conditions.folder.mkdir(parents=True, exist_ok=True)
    size = (750, 300) if conditions.passes == 1 else (400, 900)
    Image.new("RGB", size, (90, 120, 160)).save(photo(conditions.folder))
    service = emulator(conditions)
    begin = time.monotonic()
    try:
        await service.start()
        async with network(conditions, service.url) as proxy:
            run = Run(conditions, service, proxy)
            finished = await run.finish()
            seconds = time.monotonic() - begin
        await service.kill()  # the audit uses only the state on disk
        await service.start()
        numbers = await audit(conditions, service.url, run.deleted_at)
    finally:
        await service.kill()
    return numbers | {
        "kills": run.kills,
        "emulator_kills": run.emulator_kills,
        "faults": {"total": proxy.faults.total(), **dict(sorted(proxy.faults.items()))},
        "seed": conditions.seed,
        "passes": conditions.passes,
        "baseline": conditions.baseline,
        "unique": conditions.unique,
        "delete_journal": conditions.delete_journal,
        "harsh": conditions.harsh,
        "finished": finished,
        "seconds": round(seconds, 1),
        "seconds_with_audit": round(time.monotonic() - begin, 1),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Jobs paid for twice or lost under kills and faults.")
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument(
        "--passes", type=int, choices=[1, 2], default=1, help="tasks of each job (default: 1)"
    )
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
    parser.add_argument(
        "--delete-journal",
        choices=["never", "once", "always"],
        default="never",
        help="delete the journal after no kill, the middle kill or every kill (default: never)",
    )
    parser.add_argument("--harsh", action="store_true", help="make the three harsh runs")
    parser.add_argument(
        "--scale", type=float, default=10.0, help="divisor of the durations of --harsh (default: 10)"
    )
    parser.add_argument("--slots", type=int, default=64, help="slots of the account (default: 64)")
    parser.add_argument(
        "--work-seconds", type=float, default=0.5, help="duration of a task in seconds (default: 0.5)"
    )
    parser.add_argument(
        "--timeout", type=float, default=540.0, help="stop the run after so many seconds (default: 540)"
    )
    parser.add_argument("--folder", type=Path, help="keep all files in this empty folder")
    parser.add_argument("--json", action="store_true", help="print only the JSON line")
    return parser


def _conditions(options: argparse.Namespace, folder: Path) -> Conditions:
    given = {k: v for k, v in vars(options).items() if k not in {"json", "folder", "unique"}}
    if given["emulator_kills"] is None:
        given["emulator_kills"] = given["kills"] // 5
    return Conditions(**given, unique=options.unique == "on", folder=folder)


def main() -> int:
    """Run and print the results, and return 0 if no job was lost or needlessly paid for twice, else 1."""
    options = _parser().parse_args()
    bad = 0
    with tempfile.TemporaryDirectory() as temporary:
        conditions = _conditions(options, options.folder or Path(temporary))
        for each in harsh_runs(conditions) if options.harsh else [conditions]:
            found = asyncio.run(chaos(each))
            if not options.json:
                print(f"{found['jobs']} jobs, {found['kills']} kills:", end=" ")
                print(f"{found['duplicates']} paid for twice ({found['repeated']} repeated),", end=" ")
                print(f"{found['lost']} lost, {found['verified']} verified in {found['seconds']} s")
            print(json.dumps(found), flush=True)
            bad += found["duplicates"] - found["repeated"] + found["lost"]
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
