"""Fault injection: which faults are planned, and how each is carried out."""
