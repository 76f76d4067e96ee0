"""Benchmarks use the networks of the examples, which are scripts beside each other: their folder is on the path."""

import sys

from imports import REPOSITORY

if str(REPOSITORY / "examples") not in sys.path:
    sys.path.append(str(REPOSITORY / "examples"))
