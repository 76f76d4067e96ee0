"""What a file imports, and what an import brings along."""

import ast
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parents[1]
HEAVY: Final = (
    "torch",
    "ortools",
    "numpy",
    "pydantic",
    "networkx",
    "fvcore",
    "transformers",
    "torchvision",
    "timm",
    "rich",
)


def files_of(package: str) -> list[Path]:
    """Python files of a package of this repository."""
    return sorted((REPOSITORY / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Modules that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def modules_after(code: str, watched: Iterable[str]) -> set[str]:
    """Which of some modules a fresh process has after running a line."""
    program = f"import sys; {code}; print(*({set(watched)!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())
