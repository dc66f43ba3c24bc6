"""How is a benchmark run and told? Contestants by turns, medians of their runs, a table, one JSON object."""

import argparse
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

T = TypeVar("T")


def options(question: str, **numbers: float) -> argparse.Namespace:
    """The command line of a benchmark: its *numbers* with their defaults, and ``--json``."""
    parser = argparse.ArgumentParser(description=question)
    for name, default in numbers.items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=type(default), default=default, help=f"({default})")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return parser.parse_args()


def by_turns(contestants: Mapping[str, Callable[[], T]], runs: int) -> dict[str, list[T]]:
    """What each contestant gives, run after run.

    By turns, as a machine that grows slower meanwhile would otherwise be told as a slower contestant.
    """
    found: dict[str, list[T]] = {name: [] for name in contestants}
    for _ in range(runs):
        for name, contestant in contestants.items():
            found[name].append(contestant())
    return found


def medians(results: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The median of each number over several runs."""
    rows = list(results)
    return {name: rounded(median(row[name] for row in rows)) for name in rows[0]}


def rounded(value: float) -> float:
    """To four digits: more would be noise."""
    return float(f"{value:.4g}")


def table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print *rows* under the names of their columns, those of the first row."""
    columns = list(rows[0]) if rows else []
    cells = [columns, *([_shown(row.get(column)) for column in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        padded = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        padded[:1] = [cell.ljust(widths[0]) for cell in line[:1]]
        print("  ".join(padded))


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return "-" if value is None else str(value)


def finish(found: Mapping[str, Any], *, as_json: bool) -> None:
    """The last line, for machines."""
    if as_json:
        print(json.dumps(found))


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resident() -> int:
    """Bytes of memory this process holds now (Linux)."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def picture(side: int = 300, weight: int = 0) -> bytes:
    """A white PNG of *side* by *side* pixels; a private chunk makes it about *weight* bytes heavy."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    pixels = zlib.compress((b"\0" + b"\xff" * side) * side)
    chunks = [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
    if weight:
        chunks.insert(1, (b"ruSt", os.urandom(weight)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, *zip(*chunks, strict=True)))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
