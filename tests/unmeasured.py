"""Surroundings for a process in which coverage does not run: up to six times as fast, and less is loaded."""

import os


def surroundings() -> dict[str, str]:
    """Those of this process, without what starts coverage."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
