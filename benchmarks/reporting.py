"""Shared parts of the benchmarks: options, alternating runs, medians, output and memory readings."""

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


def options(description: str, **defaults: float | str) -> argparse.Namespace:
    """Parse the command line of a benchmark: its options with their *defaults*, and ``--json``."""
    parser = argparse.ArgumentParser(description=description)
    for name, default in defaults.items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=type(default), default=default, help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return parser.parse_args()


def interleaved(candidates: Mapping[str, Callable[[], T]], runs: int) -> dict[str, list[T]]:
    """Run all candidates *runs* times in turn and return the results of each.

    If each had all its runs in a row, a machine that slows down would disadvantage the last ones.
    """
    found: dict[str, list[T]] = {name: [] for name in candidates}
    for _ in range(runs):
        for name, candidate in candidates.items():
            found[name].append(candidate())
    return found


def medians(results: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the median of each number over several runs."""
    rows = list(results)
    return {name: rounded(median(row[name] for row in rows)) for name in rows[0]}


def rounded(value: float) -> float:
    """Round to four significant digits: more would be noise."""
    return float(f"{value:.4g}")


def table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print *rows* below the names of the columns of the first row."""
    columns = list(rows[0]) if rows else []
    cells = [columns, *([_formatted(row.get(column)) for column in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        padded = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        padded[:1] = [cell.ljust(widths[0]) for cell in line[:1]]
        print("  ".join(padded))


def _formatted(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return "-" if value is None else str(value)


def finish(found: Mapping[str, Any], *, as_json: bool) -> None:
    """Print the results as one line of JSON if *as_json* is true."""
    if as_json:
        print(json.dumps(found))


def resident_memory() -> int:
    """Return the resident memory of this process in bytes (Linux)."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def reset_peak_memory() -> None:
    """Start a new measurement of `peak_memory` (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Return the highest resident memory since `reset_peak_memory`, in bytes (Linux).

    Raises:
        RuntimeError: the system does not report it.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status must contain VmHWM; run this benchmark on Linux")


def picture(side: int = 300, weight: int = 0) -> bytes:
    """Return a white PNG of *side* by *side* pixels, padded by a private chunk of *weight* bytes."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    pixels = zlib.compress((b"\0" + b"\xff" * side) * side)
    chunks = [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
    if weight:
        chunks.insert(1, (b"ruSt", os.urandom(weight)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, *zip(*chunks, strict=True)))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
