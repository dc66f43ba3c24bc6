"""The goals of `benchmarks.all`: each is a figure of a run and its upper or lower bound.

A goal that was missed has a *reason*, with the best possible value if that was computed.
"""

from collections.abc import Callable, Iterator, Mapping
from statistics import fmean
from typing import Any

from attrs import frozen

from benchmarks.durations import DISTRIBUTIONS
from benchmarks.open_tasks import PARTS
from benchmarks.shell_start import COMMANDS

Results = Mapping[str, Any]
Figure = Callable[[Results], float]
NUMBERS = (1, 10, 100, 1000)  # concurrent jobs
FAILING = ("late", "tenth", "stopping")  # kinds of callbacks
BURST = 20  # requests in one second with 1000 jobs, each of which may need a read of its own

CHECKS = (
    "the exchange alone takes as long as raw aiohttp, 107 against 106 microseconds; the rest is spent on the"
    " validated task (5 more than for its JSON), the event, the rate limit and the retries"
)
VALUES = (
    "30 tasks with a picture take 48 microseconds to construct and 97 to validate, in addition to 230 for raw"
    " aiohttp and 25 for a page: a ratio of 1.74 on an idle machine, and of 1.3 without validation"
)
OBJECTS = (
    "the objects of a future take 1,125 bytes: job 168, poll 143, record 128, snapshot 120, request 104,"
    " two ids 151, create 64, future 56, three table entries 125, times and heap 66; one object instead"
    " of four would save 150, and the allocator adds a quarter"
)
SUITE = "the tests take about 480 s of CPU time, so 240 s on two cores that are never idle"


@frozen
class Goal:
    """One figure of the results of a run, and its upper or lower bound."""

    name: str
    run: str
    figure: Figure
    at_most: float | None = None
    at_least: float | None = None
    peer: Callable[[Results], str] | None = None
    reason: str = ""  # why the goal is not met, if it is not

    def row(self, results: Mapping[str, Results]) -> dict[str, Any]:
        """Return the row of the table. A goal whose figure is missing is not met."""
        goal = f"<= {self.at_most:g}" if self.at_most is not None else f">= {self.at_least:g}"
        found = results.get(self.run, {})
        measured, peer = _read(self.figure, found), _read(self.peer, found) if self.peer else None
        met = measured is not None and self._holds(measured)
        return {"what": self.name, "goal": goal, "measured": measured, "best peer": peer, "met": met}

    def _holds(self, measured: float) -> bool:
        return (self.at_most is None or measured <= self.at_most) and (
            self.at_least is None or measured >= self.at_least
        )


def _read(figure: Callable[[Results], Any], found: Results) -> Any:
    try:
        return figure(found)
    except (KeyError, StopIteration, ZeroDivisionError):
        return None


def figure_at(*keys: str) -> Figure:
    """Return the function that reads a figure at a path of keys."""

    def figure(results: Results) -> float:
        found: Any = results
        for key in keys:
            found = found[key]
        return float(found)

    return figure


def in_row(name: str, **cells: object) -> Figure:
    """Return the function that reads a figure of the row with these *cells*; underscores stand for blanks."""

    def figure(results: Results) -> float:
        return float(_row(results, cells)[name])

    return figure


def _row(results: Results, cells: Mapping[str, object]) -> Results:
    wanted = {name.replace("_", " "): value for name, value in cells.items()}
    found: Results = next(row for row in results["rows"] if row.items() >= wanted.items())
    return found


def _share(part: Figure, whole: Figure) -> Figure:
    return lambda results: part(results) / whole(results)


def _fewest(results: Results) -> str:
    """Describe the peer that makes the fewest requests for a job, with its latency."""
    rows = [row for row in results["rows"] if not row["client"].startswith("kling_expand")]
    best = min(rows, key=lambda row: float(row["requests per job"]))
    return f"{best['client']}: {best['requests per job']:g} at {best['latency (s)']:g} s"


# ---------------------------------------------------------------------------- requests and latency


def _callback_goals() -> Iterator[Goal]:
    for number in NUMBERS:
        for name in ("requests per job", "latency (s)"):
            cells = {"callbacks": "arriving", "concurrent_jobs": number}
            yield Goal(f"callbacks, {number} at once: {name}", "callbacks", in_row(name, **cells), 0.05)
            real = in_row(name, client="kling_expand+callbacks")
            yield Goal(f"callbacks in real time, {number} at once: {name}", f"compare {number}", real, 0.05)
    for kind in FAILING:
        for number in NUMBERS:
            yield from _failing_callback_goals(kind, number)


def _failing_callback_goals(kind: str, number: int) -> Iterator[Goal]:
    """Yield the goals of callbacks that fail, compared with the same jobs without callbacks."""
    what = f"callbacks {kind}, {number} at once"
    mean, highest = "latency (s)", "highest latency (s)"

    def later(name: str) -> Figure:
        cells = {"durations": "log-normal", "client": "kling_expand", "concurrent_jobs": number}
        usual = in_row(name, callbacks="lost", **cells)
        return lambda results: in_row(name, callbacks=kind, **cells)(results) - usual(results)

    yield Goal(f"{what}: later than without callbacks, mean (s)", "callbacks", later(mean), 5)
    reason = (
        "the first missing callback is noticed once all but 2 % of tasks would have ended: noticing each"
        " within 5 s would take a read every 5 s, or 1.5 for each job"
    )
    yield Goal(
        f"{what}: later than without callbacks, highest (s)", "callbacks", later(highest), 5, reason=reason
    )
    most = in_row("most requests in 1 s", callbacks=kind, concurrent_jobs=number)
    yield Goal(f"{what}: most requests in 1 s", "callbacks", most, BURST)
    if number < 1000 or kind == "stopping":
        real = in_row(mean, client=f"kling_expand+callbacks:{kind}")
        yield Goal(f"callbacks {kind} in real time, {number} at once: {mean}", f"compare {number}", real, 5.6)


def _distribution_goals() -> Iterator[Goal]:
    for distribution in DISTRIBUTIONS:
        figure = figure_at("distributions", distribution, "adaptive", "ratio")
        yield Goal(f"polls alone, {distribution}, optimum in hindsight = 1", "schedules", figure, 1.3)
    for number in (10, 100):
        for distribution in DISTRIBUTIONS:
            yield Goal(
                f"better of requests and latency, {distribution}, {number} at once, sweep = 1",
                "distributions",
                _better(distribution, number),
                1,
            )


def _better(distribution: str, number: int) -> Figure:
    """Return the function that compares both figures with a sweep's; above 1 both are worse."""
    cells = {"durations": distribution, "concurrent_jobs": number, "callbacks": "lost"}

    def figure(results: Results) -> float:
        ours, sweep = (_row(results, cells | {"client": name}) for name in ("kling_expand", "sweep"))
        names = ("requests per job", "latency (s)")
        return min(float(ours[name]) / float(sweep[name]) for name in names if sweep[name])

    return figure


def _client_goals() -> Iterator[Goal]:
    for number, most in {1: 8.0, 10: 2.0, 100: 0.5, 1000: 0.2}.items():
        reads, late = (in_row(name, client="kling_expand") for name in ("requests per job", "latency (s)"))
        run = f"compare {number}"
        yield Goal(f"requests of a job, {number} at once", run, reads, most, peer=_fewest)
        yield Goal(f"latency of a job, {number} at once (s)", run, late, 0.6, peer=_fewest)


# ---------------------------------------------------------------------------- cost


def _cost_goals() -> Iterator[Goal]:
    for run, job in {"overhead": 0.75, "overhead with [fast]": 0.6}.items():
        for name, most in {"query": 1.10, "page": 1.10, "list": 1.5, "job": job}.items():
            figure, reason = figure_at("calls", name), VALUES if name == "list" else CHECKS
            yield Goal(f"CPU of a {name}, {run}, raw aiohttp = 1", run, figure, most, reason=reason)
    figure = figure_at("bytes_per_future")
    yield Goal("memory of an open future (bytes)", "memory", figure, 1024, reason=OBJECTS)
    yield Goal("growth of map over a million jobs (MB)", "memory", figure_at("map_growth_mb"), 20)
    yield Goal("growth by an upload of 10 MB (MB)", "memory", figure_at("upload_growth_mb"), 2)
    for part in PARTS:
        figure = figure_at("ratios", part)
        yield Goal(f"CPU of one {part}, 10,000 open tasks against 100", "open_tasks", figure, 1.3)
    yield Goal("writes of a job to the journal (ms)", "journal", figure_at("ms_per_job"), 0.3)
    yield Goal("loop blocked by the journal (ms)", "journal", figure_at("longest_block_ms"), 5)
    yield Goal("loop blocked by an upload (ms)", "upload", figure_at("blocked_ms"), 5)
    speed = figure_at("clients", "script", "jobs per second")
    yield Goal(
        "throughput of map, script = 1",
        "throughput",
        figure_at("ratio"),
        at_least=0.8,
        peer=lambda results: f"script: {speed(results):g} jobs/s",
    )


def _shell_goals() -> Iterator[Goal]:
    yield Goal("CPU of the import, aiohttp = 1", "import_time", figure_at("ratio"), 1.15)
    for command, (base, most) in COMMANDS.items():
        yield Goal(f"start of {command!r}, imports of {base} = 1", "shell_start", figure_at(command), most)
    yield Goal("bulk --dry-run of 2,000 photos of 5 MB (s)", "bulk", figure_at("dry run (s)"), 3)
    yield Goal("speed of hashing, sha256sum = 1", "bulk", figure_at("hashing ratio"), at_least=0.8)
    for kind in ("photos", "noisy photos"):
        yield Goal(f"report of 400 jobs, {kind} (s)", "report_page", figure_at(kind), 30)
    yield Goal("steps of library that went wrong", "library", figure_at("wrong steps"), 0)


def _picture_goals() -> Iterator[Goal]:
    yield Goal("composites whose photo is unchanged, share", "composite", _identical, at_least=1)
    yield Goal("CPU of a composite, script = 1", "composite", figure_at("ratios", "CPU (s)"), 1.5)
    yield Goal("memory of a composite, script = 1", "composite", figure_at("ratios", "peak (MB)"), 1.2)
    yield Goal("broken pictures that are found, share", "inspect_pictures", figure_at("found"), at_least=0.95)
    yield Goal("false alarms, share", "inspect_pictures", figure_at("false alarms"), 0.02)


def _identical(results: Results) -> float:
    return fmean(bool(photo["identical"]) for photo in results["photos"])


# ---------------------------------------------------------------------------- fleet, faults and emulator


def _fleet_goals() -> Iterator[Goal]:
    full = "workers, PostgreSQL and the emulator share two cores, which are full"
    for number in (2, 4):
        yield Goal(
            f"jobs per second of {number} workers, {number} times one = 1",
            "fleet_scale",
            _scaling(number),
            at_least=0.85,
            reason=full,
        )
    cost = figure_at("engine", "cpu_ms_per_job")
    yield Goal("CPU of a job of the fleet (ms)", "fleet_scale", cost, 2.5)
    rate = figure_at("engine", "enqueue_per_second")
    yield Goal("jobs per second of submit_many", "fleet_scale", rate, at_least=20_000)
    for verb, few in {"results": "10,000", "status": "1,000", "top": "1,000"}.items():
        figure = figure_at("queue", verb, "ratio")
        yield Goal(f"{verb}, 100,000 queued against {few}", "fleet_scale", figure, 1.3)
    used = figure_at("simulation", "utilization")
    yield Goal("slots in use with 100 workers, simulated", "fleet_scale", used, at_least=0.85)
    few = "the workers' heartbeats and reads add 2 to 3 statements per job at 9 slots and tasks of 10 s"
    yield Goal("statements of a job of the fleet", "fleet", figure_at("statements_per_job"), 10, reason=few)
    yield Goal("limit of the fleet in use", "fleet", figure_at("utilization"), at_least=0.85)
    yield Goal("standstill of the fleet (s)", "fleet", figure_at("standstill"), 45)
    yield Goal("peak of the fleet, limit = 1", "fleet", _share(figure_at("peak"), figure_at("limit")), 1)
    for name in ("fleet", "chaos", "chaos of two passes"):
        yield Goal(f"jobs paid for twice, {name}", name, figure_at("duplicates"), 0)
        yield Goal(f"jobs lost, {name}", name, figure_at("lost"), 0)
    yield Goal("unknown limit in use", "limits", figure_at("busy"), at_least=0.9)
    yield Goal("creates refused at an unknown limit, share", "limits", figure_at("refused"), 0.05)
    yield Goal("worst recovery, oracle = 1", "limits", figure_at("worst recovery"), 1.3)


def _scaling(number: int) -> Figure:
    def figure(results: Results) -> float:
        rates = {row["workers"]: float(row["jobs_per_second"]) for row in results["workers"]}
        return rates[number] / rates[1] / number

    return figure


def _emulator_goals() -> Iterator[Goal]:
    ready, rate = figure_at("ready (ms)"), figure_at("jobs per second")
    yield Goal("emulator and client ready (ms)", "emulator", ready, 30)
    yield Goal("jobs per second of the emulator", "emulator", rate, at_least=500)
    growth = figure_at("growth for each expired task (bytes)")
    yield Goal("memory kept of an expired task (bytes)", "emulator", growth, 10)


def goals() -> list[Goal]:
    """Return the goals in the order of the table."""
    return [
        *_callback_goals(),
        *_distribution_goals(),
        *_client_goals(),
        *_cost_goals(),
        *_shell_goals(),
        *_picture_goals(),
        *_fleet_goals(),
        *_emulator_goals(),
        Goal("all tests (s)", "suite", figure_at("seconds"), 180, reason=SUITE),
    ]
