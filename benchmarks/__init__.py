"""Benchmarks of the claims in the README, one module each: ``python -m benchmarks.NAME``."""
