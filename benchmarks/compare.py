"""The cost of the same jobs with this package, a raw aiohttp script and other SDKs, in real time.

    python -m benchmarks.compare --json
    python -m benchmarks.compare --concurrent 1,10,100,1000 --runs 5 --json
    python -m benchmarks.compare --distribution bimodal --only kling_expand,script --json

Each client has its own process and its own server. The median duration of a job is 12 s (log-normal, sigma
0.35, or another distribution of `benchmarks.durations`). Of every twelve jobs one falls in each twelfth of
the distribution, and all clients get the same seeds. Each client first runs `--warm` jobs that are not
counted, so that an adaptive client has data to learn from. The figures are medians of `--runs` runs, each
with its own seed.

    requests per job    polls and other requests, except the create
    latency (s)         from the end of a job on the server until its result is returned to the caller
    CPU, peak memory    of the client's process
    failed jobs         jobs for which the client raised an error

All clients have their default settings, with these exceptions. `kling_expand@0.2` has
`AdaptiveSchedule(target_latency=0.2)`. `kling_expand+callbacks` receives signed callbacks, and a suffix such
as `:late` names the way of `benchmarks.callbacks` in which they fail. `benchmarks.virtual` measures
callbacks with many more jobs, in virtual time.

For each peer the second table names our setting that beats it with the fewest requests. A setting beats a
peer if it has fewer requests and a lower latency. It also does with at most a tenth of the requests and no
higher latency.

Several clients run side by side: the more concurrent jobs, the fewer clients. Clients that are not installed
(extra ``bench``) are left out and listed.
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

from benchmarks.durations import DISTRIBUTIONS
from benchmarks.peers import CLIENTS, Run
from benchmarks.reporting import finish, medians, peak_memory, reset_peak_memory, table
from benchmarks.server import Server, serving

ROUNDS = {1: 12, 10: 3}  # by number of concurrent jobs: jobs of each worker, otherwise 1
SIDE_BY_SIDE = {
    1: 40,
    10: 20,
    100: 10,
}  # by number of concurrent jobs: clients that run side by side, otherwise 3
CONCURRENT, CLIENT, PEER = "concurrent jobs", "client", "peer"
REQUESTS, LATENCY = "requests per job", "latency (s)"


async def run_jobs(run: Run, jobs: int, concurrent: int) -> dict[str, float]:
    """Return the time at which the caller got each result; failed jobs are missing."""
    remaining, returned = iter(range(jobs)), {}

    async def worker() -> None:
        for _ in remaining:
            try:
                name = await run()
            except Exception as error:  # noqa: BLE001 - each client has its own exceptions
                print(f"{type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
            else:
                returned[name] = time.time()

    await asyncio.gather(*(worker() for _ in range(concurrent)))
    return returned


async def measure_client(
    client: str, server: Server, jobs: int, concurrent: int, *, warm: int, seed: int
) -> dict[str, float]:
    """Return the figures of one client."""
    async with CLIENTS[client].open(server.url, max(concurrent, warm)) as run:
        await run_jobs(run, warm, warm)
        await asyncio.to_thread(server.reset, seed=seed)
        reset_peak_memory()
        cpu, wall = time.process_time(), time.monotonic()
        returned = await run_jobs(run, jobs, concurrent)
        cpu, wall = time.process_time() - cpu, time.monotonic() - wall
        statistics = await asyncio.to_thread(server.statistics)
    latencies = [moment - statistics["ends"][name] for name, moment in returned.items()]
    return {
        REQUESTS: (sum(statistics["requests"].values()) - jobs) / jobs,
        LATENCY: fmean(latencies),
        "latency p95 (s)": quantiles(latencies, n=20)[-1],
        "CPU per job (ms)": cpu / jobs * 1e3,
        "peak memory (MB)": peak_memory() / 1e6,
        "wall time (s)": wall,
        "failed jobs": float(jobs - len(returned)),
    }


def in_process(
    client: str, seed: int, *, concurrent: int, warm: int, service: tuple[float, str]
) -> dict[str, float]:
    """Return the figures of one client, measured in a new process with a new server."""
    jobs = concurrent * ROUNDS.get(concurrent, 1)
    with serving(*service) as server:
        command = [sys.executable, "-m", "benchmarks.compare", "--client", client, "--url", server.url]
        command += ["--jobs", str(jobs), "--concurrent", str(concurrent)]
        command += ["--warm", str(warm), "--seed", str(seed)]
        process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=_environment())
    found: dict[str, float] = json.loads(process.stdout)
    return found


def _environment() -> dict[str, str]:
    """Return the environment without proxies, which some clients would use even for localhost."""
    return {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}


def measure(
    clients: list[str], concurrent: int, runs: int, *, warm: int, service: tuple[float, str]
) -> list[dict[str, Any]]:
    """Return one row for each client with its medians over the runs.

    The *service* is given by the median and the distribution of the durations in seconds.
    """
    found: dict[str, list[dict[str, float]]] = {client: [] for client in clients}
    one = partial(in_process, concurrent=concurrent, warm=warm, service=service)
    pairs = [(client, 1000 * run + concurrent) for run in range(runs) for client in clients]
    with ThreadPoolExecutor(SIDE_BY_SIDE.get(concurrent, 3)) as pool:
        for (client, _), numbers in zip(pairs, pool.map(lambda pair: one(*pair), pairs), strict=True):
            found[client].append(numbers)
    return [{CONCURRENT: concurrent, CLIENT: client} | medians(rows) for client, rows in found.items()]


def best_settings(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for each peer our setting that beats it with the fewest requests, or None.

    Settings with callbacks do not count, because the peers poll.
    """
    found = []
    for peer in (row for row in rows if CLIENTS[row[CLIENT]].module):
        ours = [row for row in rows if row[CONCURRENT] == peer[CONCURRENT] and _beats(row, peer)]
        best = min(ours, key=itemgetter(REQUESTS), default=dict.fromkeys((CLIENT, REQUESTS, LATENCY)))
        found.append(
            {CONCURRENT: peer[CONCURRENT], PEER: peer[CLIENT]}
            | {REQUESTS: peer[REQUESTS], LATENCY: peer[LATENCY], "our setting": best[CLIENT]}
            | {f"our {REQUESTS}": best[REQUESTS], f"our {LATENCY}": best[LATENCY]}
        )
    return found


def _beats(row: dict[str, Any], peer: dict[str, Any]) -> bool:
    if not row[CLIENT].startswith("kling_expand") or "+callbacks" in row[CLIENT] or row["failed jobs"]:
        return False
    if 10 * row[REQUESTS] <= peer[REQUESTS] and row[LATENCY] <= peer[LATENCY]:
        return True
    return bool(row[REQUESTS] < peer[REQUESTS] and row[LATENCY] < peer[LATENCY])


def options() -> argparse.Namespace:
    """Parse the command line, with hidden options for the process that measures one client."""
    parser = argparse.ArgumentParser(description="The cost of the same jobs with each client.")
    parser.add_argument(
        "--concurrent", default="10", help="numbers of concurrent jobs, such as 1,10,100,1000 (default: 10)"
    )
    parser.add_argument("--warm", type=int, default=32, help="jobs that are not counted (default: 32)")
    parser.add_argument("--runs", type=int, default=1, help="runs for the medians (default: 1)")
    parser.add_argument(
        "--median", type=float, default=12.0, help="median duration of a job in seconds (default: 12)"
    )
    parser.add_argument(
        "--distribution", choices=DISTRIBUTIONS, default="log-normal", help="distribution of the durations"
    )
    parser.add_argument("--only", default=",".join(CLIENTS), help="names of clients (default: all)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    for name in ("--client", "--url", "--jobs", "--seed"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure and print the results, or with ``--client`` measure that client in this process."""
    given = options()
    if given.client:
        server, jobs, seed = Server(given.url), int(given.jobs), int(given.seed)
        concurrent = int(given.concurrent)
        work = measure_client(given.client, server, jobs, concurrent, warm=given.warm, seed=seed)
        print(json.dumps(asyncio.run(work)))
        return
    chosen = given.only.split(",")
    installed = [name for name in chosen if CLIENTS[name].installed]
    rows: list[dict[str, Any]] = []
    for number in given.concurrent.split(","):
        service = given.median, given.distribution
        rows += measure(installed, int(number), given.runs, warm=given.warm, service=service)
    table(rows)
    print()
    peers = best_settings(rows)
    table(peers)
    missing = [name for name in chosen if name not in installed]
    print(f"not installed: {', '.join(missing) or 'none'}; median duration of a job: {given.median:g} s")
    finish({"rows": rows, "peers": peers, "not_installed": missing}, as_json=given.json)


if __name__ == "__main__":
    main()
