"""Benchmarks of the claims in the README, one module each: ``python -m benchmarks.NAME``."""

import os

os.environ["KLING_CACHE_DIR"] = "off"  # each run begins with the same knowledge, and leaves no file
