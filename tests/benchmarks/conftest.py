"""Benchmarks are scripts beside each other: their folder is on the path while their tests run."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
for folder in ("benchmarks", "examples"):
    if str(ROOT / folder) not in sys.path:
        sys.path.append(str(ROOT / folder))
