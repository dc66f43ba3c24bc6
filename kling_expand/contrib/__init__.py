"""Adapters, one framework a file; each imports that framework and no other."""
