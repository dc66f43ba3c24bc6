"""What does it cost? One module for each claim: ``python -m benchmarks.NAME``."""
