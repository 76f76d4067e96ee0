"""Rows of the accuracy benchmark: one run each, as they lie in its results."""

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
#: Network, data, budget in elements, seed, recipe: what two policies must have in common to be compared.
Where = tuple[str, str, int, int, str]


class RowsError(ValueError):
    """The results cannot be read."""


def read_rows(results: Path) -> list[Row]:
    """Rows of a file, none where there is none; a last line that was cut off while it was written is left out.

    Raises:
        RowsError: A line is no row; it is named.
    """
    if not results.exists():
        return []
    lines = results.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    return [_row(results, number, line) for number, line in enumerate(lines, start=1)]


def _row(results: Path, number: int, line: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise RowsError(
            f"{results}, line {number} is no run: {error}. Take it out, or the whole file from git."
        ) from error
    if not isinstance(row, dict) or "key" not in row:
        raise RowsError(f"{results}, line {number} is no run. Take it out, or the whole file from git.")
    return row


def append_row(results: Path, row: Row) -> None:
    """Add a run to the file, behind whole lines only: what an earlier stop cut off goes."""
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a+b") as file:
        _cut_to_whole_lines(file)
        file.write(json.dumps(row).encode() + b"\n")


def _cut_to_whole_lines(file: Any) -> None:
    """Reads the whole file only where its last line was cut off."""
    if file.seek(0, os.SEEK_END) == 0:
        return
    file.seek(-1, os.SEEK_END)
    if file.read() != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def latest(rows: Iterable[Row]) -> list[Row]:
    """The judged runs; where a cell was run at several learning rates, the last of them."""
    found: dict[tuple[str, Where], Row] = {}
    for row in rows:
        if not row["choosing"]:
            found[row["policy"]["name"], where(row)] = row
    return list(found.values())


def where(row: Row) -> Where:
    """What a policy was run on."""
    return row["network"], row["data"], row["budget_elements"], row["seed"], json.dumps(row["recipe"], sort_keys=True)


def is_smallest(row: Row, rows: Sequence[Row]) -> bool:
    """Whether a row has the smallest budget of its network."""
    return bool(row["budget_elements"] == min(r["budget_elements"] for r in rows if r["network"] == row["network"]))


def scores_by_policy(rows: Iterable[Row]) -> dict[str, dict[Where, float]]:
    """Accuracy in percent by what each policy was run on."""
    found: dict[str, dict[Where, float]] = defaultdict(dict)
    for row in rows:
        found[row["policy"]["name"]][where(row)] = 100 * row["accuracy"]
    return found
