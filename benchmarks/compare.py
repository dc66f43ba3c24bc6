"""What does the same work cost with each client? N jobs at once, real time, each client by its own protocol.

    python -m benchmarks.compare --json
    python -m benchmarks.compare --at 1,10,100,1000 --runs 5 --json

Every client is a process of its own with a server of its own, whose jobs last 12 s in the median
(log-normal, sigma 0.35; of every twelve one falls in each twelfth of it; the same seeds for all). Before
the count each brings `--warm` jobs to their end, so that who learns has something to learn from. Medians of
`--runs`, each with a seed of its own.

*reads* are requests beyond the creates, per job; *late* is the time from a job's end on the server to the
result in the caller's hand; CPU and peak memory are those of the client's process; *failed* jobs are those it
gave up. Peers are at their defaults, and so is `kling_expand`; `kling_expand@0.2` was told to be 0.2 s late
(`AdaptiveSchedule(latency=0.2)`). The second table says for each peer which of ours takes fewer reads and is
less late, or takes ten times fewer reads and is no later.

Few jobs leave room for many clients side by side, 1000 for one. A client that is not installed (extra
``bench``) is named.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import itemgetter
from statistics import fmean, quantiles
from typing import Any

from benchmarks.memory import forget_highest, highest
from benchmarks.peers import CONTESTANTS, Run
from benchmarks.reporting import finish, medians, table
from benchmarks.server import Server, serving

ROUNDS = {1: 12, 10: 3}  # jobs one after another in each place; 1 beyond
SIDE_BY_SIDE = {1: 12, 10: 6, 100: 3}  # clients; 1 beyond


async def work(run: Run, jobs: int, at_once: int) -> dict[str, float]:
    """When the result of each job was in the caller's hand; a job whose client raises is missing."""
    left, held = iter(range(jobs)), {}

    async def worker() -> None:
        for _ in left:
            try:
                name = await run()
            except Exception as error:  # noqa: BLE001 - whatever a client gives up with
                print(f"{type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
            else:
                held[name] = time.time()

    await asyncio.gather(*(worker() for _ in range(at_once)))
    return held


async def measured(
    client: str, server: Server, jobs: int, at_once: int, *, warm: int, seed: int
) -> dict[str, float]:
    """One client's numbers."""
    async with CONTESTANTS[client].opened(server.url, max(at_once, warm)) as run:
        await work(run, warm, warm)
        await asyncio.to_thread(server.forget, seed=seed)
        forget_highest()
        cpu, wall = time.process_time(), time.monotonic()
        held = await work(run, jobs, at_once)
        cpu, wall = time.process_time() - cpu, time.monotonic() - wall
        account = await asyncio.to_thread(server.account)
    late = [moment - account["ends"][name] for name, moment in held.items()]
    return {
        "reads": (sum(account["requests"].values()) - jobs) / jobs,
        "late s": fmean(late),
        "late p95 s": quantiles(late, n=20)[-1],
        "CPU ms": cpu / jobs * 1e3,
        "peak MB": highest() / 1e6,
        "wall s": wall,
        "failed": float(jobs - len(held)),
    }


def alone(client: str, at_once: int, warm: int, seconds: float, seed: int) -> dict[str, float]:
    """The same, in a process of its own, against a server of its own."""
    jobs = at_once * ROUNDS.get(at_once, 1)
    with serving(seconds) as server:
        command = [sys.executable, "-m", "benchmarks.compare", "--client", client, "--url", server.url]
        command += ["--jobs", str(jobs), "--at", str(at_once), "--warm", str(warm), "--seed", str(seed)]
        told = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=_environment()
        ).stdout
    found: dict[str, float] = json.loads(told)
    return found


def _environment() -> dict[str, str]:
    """Without a proxy: some of the clients would ask one even for this machine."""
    return {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}


def measure(
    clients: list[str], at_once: int, runs: int, *, warm: int, seconds: float
) -> list[dict[str, Any]]:
    """A row for every client: medians over the runs, in each of which all of them take their turn."""
    found: dict[str, list[dict[str, float]]] = {client: [] for client in clients}
    with ThreadPoolExecutor(SIDE_BY_SIDE.get(at_once, 1)) as pool:
        for run in range(runs):
            work = partial(alone, at_once=at_once, warm=warm, seconds=seconds, seed=1000 * run + at_once)
            for client, numbers in zip(clients, pool.map(work, clients), strict=True):
                found[client].append(numbers)
    return [{"at once": at_once, "client": client} | medians(rows) for client, rows in found.items()]


def better(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each peer, at each number of jobs, that of ours which beats it with the fewest reads, if any."""
    found = []
    for peer in (row for row in rows if CONTESTANTS[row["client"]].module):
        ours = [row for row in rows if row["at once"] == peer["at once"] and _beats(row, peer)]
        best = min(ours, key=itemgetter("reads"), default={"client": None, "reads": None, "late s": None})
        found.append(
            {"at once": peer["at once"], "peer": peer["client"], "its reads": peer["reads"]}
            | {"its late s": peer["late s"], "ours": best["client"]}
            | {"reads": best["reads"], "late s": best["late s"]}
        )
    return found


def _beats(row: dict[str, Any], peer: dict[str, Any]) -> bool:
    if not row["client"].startswith("kling_expand") or row["failed"]:
        return False
    if 10 * row["reads"] <= peer["reads"] and row["late s"] <= peer["late s"]:
        return True
    return bool(row["reads"] < peer["reads"] and row["late s"] < peer["late s"])


def options() -> argparse.Namespace:
    """The command line; some of it is for a client's own process."""
    parser = argparse.ArgumentParser(description="What does the same work cost with each client?")
    parser.add_argument("--at", default="10", help="numbers of jobs at once, such as 1,10,100,1000 (10)")
    parser.add_argument("--warm", type=int, default=32, help="jobs before the count (32)")
    parser.add_argument("--runs", type=int, default=1, help="of which the medians are told (1)")
    parser.add_argument("--median", type=float, default=12.0, help="seconds a job takes (12)")
    parser.add_argument("--only", default=",".join(CONTESTANTS), help="these clients (all)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    for name in ("--client", "--url", "--jobs", "--seed"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure, and say it in words or as one JSON object; or be one of the clients."""
    given = options()
    if given.client:
        work = partial(measured, given.client, Server(given.url), int(given.jobs), int(given.at))
        print(json.dumps(asyncio.run(work(warm=given.warm, seed=int(given.seed)))))
        return
    chosen = given.only.split(",")
    present = [name for name in chosen if CONTESTANTS[name].present]
    rows: list[dict[str, Any]] = []
    for word in given.at.split(","):
        rows += measure(present, int(word), given.runs, warm=given.warm, seconds=given.median)
    table(rows)
    print()
    beaten = better(rows)
    table(beaten)
    absent = [name for name in chosen if name not in present]
    print(
        f"not installed: {', '.join(absent) or 'none'}; jobs of {given.median:g} s in the median, real time"
    )
    finish({"rows": rows, "against": beaten, "absent": absent}, as_json=given.json)


if __name__ == "__main__":
    main()
