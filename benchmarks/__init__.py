"""Measurements against named rivals: run from the repository's root, as ``python -m benchmarks.study``."""
