"""The folder of a study: rows stream to disk as they are found, so that an interrupted study goes on where it was.

Held by ``tests/planner/studies/test_runs.py``.
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from trady.planner.errors import StudyError
from trady.planner.files import write_atomically
from trady.planner.studies.rows import Setting, StudyRow

#: What a study is, to recognise it by; its rows, one JSON object a line; the same as tables.
DEFINITION: Final = "study.json"
ROWS: Final = "rows.jsonl"
TABLE: Final = "rows.csv"
PARQUET: Final = "rows.parquet"


class StudyFolder:
    """A folder that holds one study.

    Args:
        path: The folder; made where it is missing.
        definition: What the study is: models, axes, versions. JSON values alone.

    Raises:
        StudyError: The folder holds another study, or cannot be written.
    """

    def __init__(self, path: str | Path, definition: dict[str, Any]) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StudyError(
                f"Output {self.path} cannot be a folder: {error.strerror}. Choose another place."
            ) from error
        self._definition = json.loads(json.dumps(definition))
        self._check_same()
        write_atomically(self.path / DEFINITION, json.dumps(self._definition, indent=1) + "\n")
        self.known = {row.setting: row for row in self._rows() if row.status != "failed"}
        self._rewrite(self.known.values())

    def add(self, rows: Iterable[StudyRow]) -> None:
        """Write rows down; a kill leaves whole lines and at most one half."""
        with (self.path / ROWS).open("a", encoding="utf-8") as file:
            for row in rows:
                file.write(row.model_dump_json() + "\n")

    def finish(self, rows: Sequence[StudyRow]) -> None:
        """All rows in their final order, and the same as CSV."""
        self._rewrite(rows)
        write_atomically(self.path / TABLE, csv_text(rows))

    def _rewrite(self, rows: Iterable[StudyRow]) -> None:
        write_atomically(self.path / ROWS, "".join(row.model_dump_json() + "\n" for row in rows))

    def _rows(self) -> list[StudyRow]:
        return read_rows(self.path) if (self.path / ROWS).exists() else []

    def _check_same(self) -> None:
        """The folder's study must be this one, or none.

        Raises:
            StudyError: With the first thing that differs.
        """
        found = read_definition(self.path)
        if found is None or found == self._definition:
            return
        differing = [
            key for key in sorted(found.keys() | self._definition.keys()) if found.get(key) != self._definition.get(key)
        ]
        key = differing[0]
        raise StudyError(
            f"Folder {self.path} holds another study: {key} {_short(found.get(key))} there, "
            f"{_short(self._definition.get(key))} asked for. Give another folder with -o, or remove it."
        )


def read_definition(folder: Path) -> dict[str, Any] | None:
    """What the folder's study is; ``None`` where it holds none.

    Raises:
        StudyError: The file is no definition.
    """
    try:
        found = json.loads((folder / DEFINITION).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StudyError(
            f"Folder {folder}: {DEFINITION} cannot be read: {error}. Give another folder with -o."
        ) from error
    if not isinstance(found, dict):
        raise StudyError(f"Folder {folder}: {DEFINITION} is no study. Give another folder with -o.")
    return found


def read_rows(folder: Path) -> list[StudyRow]:
    """The rows of a folder; a last line that was cut off while it was written is left out.

    Raises:
        StudyError: The file cannot be read, or a line is no row; it is named.
    """
    path = folder / ROWS
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError as error:
        raise StudyError(f"Study {path}: {error.strerror}. Make one with trady-study -o {folder}.") from error
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    return [_row(path, number, line) for number, line in enumerate(lines, start=1)]


def _row(path: Path, number: int, line: str) -> StudyRow:
    try:
        return StudyRow.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "content"
        raise StudyError(
            f"{path}, line {number} is no row of a study: {where}: {first['msg']}. Remove the line, or the file."
        ) from error


def csv_text(rows: Sequence[StudyRow]) -> str:
    """One line a row; the chosen layers as a JSON object in the last field."""
    flat = [row.flat() for row in rows]
    file = io.StringIO()
    writer = csv.DictWriter(file, list(flat[0]) if flat else list(Setting.model_fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(row | {"layers": json.dumps(row["layers"]) if row["layers"] else ""} for row in flat)
    return file.getvalue()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."
