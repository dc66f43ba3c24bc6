"""How do the numbers look? Draws what `benchmarks.compare` and `benchmarks.pacing` found, as SVG, by hand.

    python -m benchmarks.compare --at 1,10,100,1000 --json | tail -1 > compare.json
    python -m benchmarks.pacing --json | tail -1 > pacing.json
    python -m benchmarks.plot compare.json pacing.json --out benchmarks

Each file of results becomes one picture beside which nothing else is needed: ``compare.svg`` with reads
per job against lateness, one panel for each number of jobs at once, and ``pacing.svg`` with the paces of
each law and the fewest looks hindsight could do with. Down and left is better. Both axes are logarithmic.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from html import escape
from math import log10
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from benchmarks.reporting import finish

WIDTH, HEIGHT, EDGE = 300, 260, 46  # of a panel, and the room its scales take
DIALLED = "kling_expand"  # may be told how late to be, and so is a curve
COLOURS = ("#d7263d", "#6b7280", "#1b6ca8", "#2a9d8f", "#8a4fbf", "#c77d0a", "#444444")
STYLE = "font-family='system-ui,sans-serif' font-size='11' fill='#1f2937'"


@frozen
class Point:
    """One client at one place: seconds late, reads per job."""

    name: str
    late: float
    reads: float


@define
class Panel:
    """One pair of axes, and what lies between them."""

    title: str
    points: Sequence[Point]
    left: float = 0.0
    _lines: list[str] = field(factory=list)

    def draw(self, names: Sequence[str]) -> str:
        """Its elements."""
        low = [min(_floor(value), 1.0) for value in self._lowest()]
        high = [max(_ceiling(value), 1.0) for value in self._highest()]
        self._frame(low, high)
        line = []
        for point in sorted(self.points, key=lambda point: point.late):
            x = self._place(point.late, low[0], high[0], WIDTH)
            y = HEIGHT - self._place(point.reads, low[1], high[1], HEIGHT)
            colour = COLOURS[names.index(_family(point.name)) % len(COLOURS)]
            if _family(point.name) == DIALLED:
                line.append(f"{x:.1f},{y:.1f}")
            label = escape(f"{point.name}: {point.reads:.3g} reads, {point.late:.2g} s late")
            self._lines.append(
                f"<circle cx='{x:.1f}' cy='{y:.1f}' r='5' fill='{colour}'><title>{label}</title></circle>"
            )
        self._lines.append(f"<polyline points='{' '.join(line)}' fill='none' stroke='{COLOURS[0]}'/>")
        return f"<g transform='translate({self.left:.0f},30)'>" + "".join(self._lines) + "</g>"

    def _lowest(self) -> tuple[float, float]:
        return min(point.late for point in self.points), min(point.reads for point in self.points)

    def _highest(self) -> tuple[float, float]:
        return max(point.late for point in self.points), max(point.reads for point in self.points)

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
        self._lines.append(f"<text x='{middle}' y='{bottom + 32}' text-anchor='middle'>seconds late</text>")
        self._lines.append(
            f"<text transform='translate(12,{HEIGHT / 2}) rotate(-90)' text-anchor='middle'>"
            "reads per job</text>"
        )


def _family(name: str) -> str:
    """The client, whatever it was told: ``kling_expand@0.2`` is `kling_expand`."""
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
    """An SVG of panels side by side, and what each colour stands for."""
    names = list(dict.fromkeys(_family(point.name) for panel in panels for point in panel.points))
    for number, panel in enumerate(panels):
        panel.left = number * WIDTH
    width = max(len(panels) * WIDTH, 150 * len(names))
    legend = "".join(
        f"<circle cx='{20 + 150 * number}' cy='{HEIGHT + 44}' r='5' fill='{COLOURS[number % len(COLOURS)]}'/>"
        f"<text x='{30 + 150 * number}' y='{HEIGHT + 48}'>{escape(name)}</text>"
        for number, name in enumerate(names)
    )
    size = f"viewBox='0 0 {width} {HEIGHT + 60}' width='{width}' height='{HEIGHT + 60}'"
    drawn = "".join(panel.draw(names) for panel in panels)
    heading = f"<title>{escape(title)}</title><rect width='100%' height='100%' fill='white'/>"
    return f"<svg xmlns='http://www.w3.org/2000/svg' {size} {STYLE}>{heading}{drawn}{legend}</svg>\n"


def compared(found: dict[str, Any]) -> str:
    """What `benchmarks.compare` found."""
    panels = []
    for at_once in dict.fromkeys(row["at once"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["at once"] == at_once]
        points = [Point(row["client"], max(row["late s"], 1e-3), row["reads"]) for row in rows]
        panels.append(Panel(f"{at_once} at once", points))
    return picture("Reads per job against lateness, by client", panels)


def paced(found: dict[str, Any]) -> str:
    """What `benchmarks.pacing` found."""
    panels = []
    for law, paces in found["laws"].items():
        points = [Point(name, row["lateness s"], row["looks"]) for name, row in paces.items()]
        learned = paces["learned"]
        points.append(Point("hindsight", learned["lateness s"], learned["hindsight looks"]))
        panels.append(Panel(law, points))
    return picture("Looks against lateness, by pace", panels)


def main() -> None:
    """Draw every file of results that is given."""
    parser = argparse.ArgumentParser(description="Draws what the benchmarks found.")
    parser.add_argument("results", nargs="+", type=Path, help="files that --json wrote")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the pictures (.)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    given = parser.parse_args()
    drawn = []
    for path in given.results:
        found = json.loads(path.read_text().splitlines()[-1])
        name, svg = ("pacing.svg", paced(found)) if "laws" in found else ("compare.svg", compared(found))
        (given.out / name).write_text(svg)
        drawn.append(str(given.out / name))
        print(given.out / name)
    finish({"pictures": drawn}, as_json=given.json)


if __name__ == "__main__":
    main()
