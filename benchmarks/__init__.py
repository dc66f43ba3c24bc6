"""Benchmarks of the claims in the README, one module each: ``python -m benchmarks.NAME``."""

import os

os.environ["KLING_CACHE_DIR"] = "off"  # so that no run uses the durations of an earlier run
