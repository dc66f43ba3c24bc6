"""How far are many rows? Counts of how they ended, the newest troubles, and how long the rest will take."""

from collections import deque

from attrs import define, field

from kling_expand.cli.formatting import span
from kling_expand.events import Stats

SHOWN, KEPT = 3, 1000  # troubles on the screen, and listed at the end


@define
class Progress:
    """Of `total` rows each counts once: saved now, `known` (saved before), failed, bad, or not sent."""

    total: int
    expected: int = 0  # rows that an earlier run is known to have saved
    saved: int = 0
    known: int = 0
    failed: int = 0
    bad: int = 0
    unsent: int = 0
    units_before: int = 0
    troubles: deque[str] = field(factory=lambda: deque(maxlen=KEPT))
    untold: int = 0  # troubles that are no longer kept
    widest: int = 1  # tasks that ran at once
    began: bool = False
    interrupted: bool = False

    @property
    def ended(self) -> int:
        """Rows nothing more will come of in this run."""
        return self.saved + self.known + self.failed + self.bad + self.unsent

    @property
    def well(self) -> bool:
        """Whether every row came to its pictures."""
        return self.saved + self.known == self.total

    def trouble(self, text: str) -> None:
        """Remember why a row failed."""
        self.untold += len(self.troubles) == KEPT
        self.troubles.append(text)

    def left(self, stats: Stats) -> float | None:
        """Seconds until the rest is done, by how long tasks held a slot; None while none has ended."""
        self.widest = max(self.widest, stats.running)
        if stats.duration.median is None:
            return None
        skipped = max(self.expected - self.known, 0)
        todo = max(self.total - self.ended - skipped, 0)
        cycle = stats.duration.median + (stats.latency.median or 0.0)  # of a slot
        return todo * cycle / self.widest

    def counts(self) -> str:
        """The ended rows, in words; kinds there are none of are left out, but for the first."""
        kinds = {
            "saved": self.saved,
            "already done": self.known,
            "failed": self.failed,
            "bad": self.bad,
            "not sent": self.unsent,
        }
        return ", ".join(f"{n} {kind}" for kind, n in kinds.items() if n or kind == "saved")

    def progress(self, stats: Stats) -> str:
        """One line to read while it goes on."""
        left = self.left(stats)
        time = f"; about {span(left)} left" if left else ""
        return f"{self.ended} of {self.total} rows: {self.counts()}; {stats.running} running{time}"
