"""SVG charts of the results of `benchmarks.compare` and `benchmarks.schedules`.

    python -m benchmarks.compare --concurrent 1,10,100,1000 --json | tail -1 > compare.json
    python -m benchmarks.schedules --json | tail -1 > schedules.json
    python -m benchmarks.plot compare.json schedules.json --out benchmarks

The file of ``benchmarks.all --json`` may be given instead.

``compare.svg`` shows requests per job over latency, with one panel for each number of concurrent jobs.
``schedules.svg`` shows polls per task over latency, with one panel for each distribution, and the optimum in
hindsight. Points further down and left are better. Both axes are logarithmic.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from html import escape
from math import log10
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from benchmarks.compare import CLIENT, CONCURRENT, LATENCY, REQUESTS
from benchmarks.reporting import finish

WIDTH, HEIGHT, EDGE = 300, 260, 46  # pixels of a panel, and of the margin for its scales
CURVE = "kling_expand"  # has several target latencies, so its points form a curve
COLORS = ("#d7263d", "#6b7280", "#1b6ca8", "#2a9d8f", "#8a4fbf", "#c77d0a", "#444444")
STYLE = "font-family='system-ui,sans-serif' font-size='11' fill='#1f2937'"


@frozen
class Point:
    """The latency in seconds and the requests per job of a client or schedule."""

    name: str
    latency: float
    requests: float


@define
class Panel:
    """One chart with its axes."""

    title: str
    unit: str  # of the vertical axis
    points: Sequence[Point]
    left: float = 0.0
    _lines: list[str] = field(factory=list)

    def draw(self, names: Sequence[str]) -> str:
        """Return the SVG elements of the panel."""
        low = [min(_floor(value), 1.0) for value in self._lowest()]
        high = [max(_ceiling(value), 1.0) for value in self._highest()]
        self._frame(low, high)
        line = []
        for point in sorted(self.points, key=lambda point: point.latency):
            x = self._place(point.latency, low[0], high[0], WIDTH)
            y = HEIGHT - self._place(point.requests, low[1], high[1], HEIGHT)
            color = COLORS[names.index(_family(point.name)) % len(COLORS)]
            if _family(point.name) == CURVE:
                line.append(f"{x:.1f},{y:.1f}")
            label = escape(f"{point.name}: {point.requests:.3g} {self.unit}, latency {point.latency:.2g} s")
            self._lines.append(
                f"<circle cx='{x:.1f}' cy='{y:.1f}' r='5' fill='{color}'><title>{label}</title></circle>"
            )
        self._lines.append(f"<polyline points='{' '.join(line)}' fill='none' stroke='{COLORS[0]}'/>")
        return f"<g transform='translate({self.left:.0f},30)'>" + "".join(self._lines) + "</g>"

    def _lowest(self) -> tuple[float, float]:
        return min(point.latency for point in self.points), min(point.requests for point in self.points)

    def _highest(self) -> tuple[float, float]:
        return max(point.latency for point in self.points), max(point.requests for point in self.points)

    def _place(self, value: float, low: float, high: float, length: int) -> float:
        share = (log10(max(value, low)) - log10(low)) / (log10(high) - log10(low) or 1)
        return EDGE + share * (length - EDGE - 14)

    def _frame(self, low: Sequence[float], high: Sequence[float]) -> None:
        bottom = HEIGHT - EDGE
        self._lines.append(f"<text x='{EDGE}' y='-8' font-weight='600'>{escape(self.title)}</text>")
        for value in _decades(low[0], high[0]):
            x = self._place(value, low[0], high[0], WIDTH)
            self._lines.append(f"<line x1='{x:.1f}' x2='{x:.1f}' y1='14' y2='{bottom}' stroke='#e5e7eb'/>")
            self._lines.append(f"<text x='{x:.1f}' y='{bottom + 16}' text-anchor='middle'>{value:g}</text>")
        for value in _decades(low[1], high[1]):
            y = HEIGHT - self._place(value, low[1], high[1], HEIGHT)
            self._lines.append(
                f"<line x1='{EDGE}' x2='{WIDTH - 14}' y1='{y:.1f}' y2='{y:.1f}' stroke='#e5e7eb'/>"
            )
            self._lines.append(f"<text x='{EDGE - 6}' y='{y + 4:.1f}' text-anchor='end'>{value:g}</text>")
        middle = (EDGE + WIDTH) / 2
        self._lines.append(f"<text x='{middle}' y='{bottom + 32}' text-anchor='middle'>latency (s)</text>")
        self._lines.append(
            f"<text transform='translate(12,{HEIGHT / 2}) rotate(-90)' text-anchor='middle'>"
            f"{escape(self.unit)}</text>"
        )


def _family(name: str) -> str:
    """Return the name without the target latency: ``kling_expand@0.2`` is `kling_expand`."""
    return name.partition("@")[0]


def _floor(value: float) -> float:
    power = 10.0
    while power > max(value, 1e-3):
        power /= 10
    return power


def _ceiling(value: float) -> float:
    power = 0.1
    while power < value:
        power *= 10
    return power


def _decades(low: float, high: float) -> Iterable[float]:
    value = low
    while value <= high * 1.001:
        yield float(f"{value:.1g}")
        value *= 10


def picture(title: str, panels: Sequence[Panel]) -> str:
    """Return an SVG of panels side by side with a legend."""
    names = list(dict.fromkeys(_family(point.name) for panel in panels for point in panel.points))
    for number, panel in enumerate(panels):
        panel.left = number * WIDTH
    width = max(len(panels) * WIDTH, 150 * len(names))
    legend = "".join(
        f"<circle cx='{20 + 150 * number}' cy='{HEIGHT + 44}' r='5' fill='{COLORS[number % len(COLORS)]}'/>"
        f"<text x='{30 + 150 * number}' y='{HEIGHT + 48}'>{escape(name)}</text>"
        for number, name in enumerate(names)
    )
    size = f"viewBox='0 0 {width} {HEIGHT + 60}' width='{width}' height='{HEIGHT + 60}'"
    drawn = "".join(panel.draw(names) for panel in panels)
    heading = f"<title>{escape(title)}</title><rect width='100%' height='100%' fill='white'/>"
    return f"<svg xmlns='http://www.w3.org/2000/svg' {size} {STYLE}>{heading}{drawn}{legend}</svg>\n"


def clients(found: dict[str, Any]) -> str:
    """Draw the results of `benchmarks.compare`, except clients with callbacks, which hardly poll."""
    panels = []
    for number in dict.fromkeys(row[CONCURRENT] for row in found["rows"]):
        rows = [row for row in found["rows"] if row[CONCURRENT] == number and "+" not in row[CLIENT]]
        points = [Point(row[CLIENT], max(row[LATENCY], 1e-3), row[REQUESTS]) for row in rows]
        panels.append(Panel(f"{number} concurrent job{'s' * (number > 1)}", REQUESTS, points))
    return picture("Requests per job over latency, by client", panels)


def schedules(found: dict[str, Any]) -> str:
    """Draw the results of `benchmarks.schedules`."""
    panels = []
    for distribution, rows in found["distributions"].items():
        points = [Point(name, row[LATENCY], row["polls per task"]) for name, row in rows.items()]
        adaptive = rows["adaptive"]
        points.append(Point("optimum", adaptive[LATENCY], adaptive["optimal polls"]))
        panels.append(Panel(distribution, "polls per task", points))
    return picture("Polls per task over latency, by schedule", panels)


def _joined(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Merge the results of several runs: `benchmarks.all` has one for each number of concurrent jobs."""
    rows = [row for each in found for row in each.get("rows", [])]
    return found[0] | {"rows": rows}


def main() -> None:
    """Draw each given file of results."""
    parser = argparse.ArgumentParser(description="Draw the results of benchmarks as SVG.")
    parser.add_argument("results", nargs="+", type=Path, help="files whose last line was written by --json")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the pictures (default: .)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    given = parser.parse_args()
    written = [json.loads(path.read_text().splitlines()[-1]) for path in given.results]
    kept = [found for each in written for found in each.get("results", {"": each}).values()]
    drawn = []
    for name, draw, key in (("compare.svg", clients, "peers"), ("schedules.svg", schedules, "distributions")):
        if found := [each for each in kept if key in each]:
            (given.out / name).write_text(draw(_joined(found)))
            drawn.append(str(given.out / name))
            print(given.out / name)
    finish({"pictures": drawn}, as_json=given.json)


if __name__ == "__main__":
    main()
