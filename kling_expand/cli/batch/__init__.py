"""The batch engine behind `expand`, `bulk`, `wait`, `download` and `resume`."""
