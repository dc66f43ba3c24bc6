"""Fault injection: the plan of faults and their execution."""
