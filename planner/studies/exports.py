"""The files beside a study's rows: Parquet, the page, figures; each as far as what it needs is installed.

Held by ``tests/planner/studies/test_runs.py``.
"""

import io
import json
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from trady.planner.files import write_atomically
from trady.planner.studies.folders import PARQUET, TABLE
from trady.planner.studies.runs import Study

PAGE: Final = "study.html"
FIGURES: Final = ("study.svg", "study.png")
_NEEDS: Final = {PARQUET: ("pandas", "pyarrow"), FIGURES[0]: ("matplotlib",), PAGE: ("plotly",)}


def check_extras() -> dict[str, str]:
    """What cannot be written here, before the work: file -> note; empty where everything is installed."""
    missing = {name: [need for need in needs if find_spec(need) is None] for name, needs in _NEEDS.items()}
    return {
        name: f'{name} is left out: {" and ".join(needs)} not installed. Run: pip install "trady[study]"'
        for name, needs in missing.items()
        if needs
    }


def write_views(study: Study, folder: Path, left_out: Collection[str]) -> list[Path]:
    """Write what can be written; the paths of all files made for people.

    Args:
        study: The study.
        folder: Where its rows lie.
        left_out: Files not to write, as :func:`check_extras` found them.

    Returns:
        The files written.
    """
    written = [folder / TABLE]
    if PARQUET not in left_out and study.rows:
        write_parquet(study, folder / PARQUET)
        written.append(folder / PARQUET)
    if FIGURES[0] not in left_out and study.answers.curves:
        from trady.planner.studies.figures import plot_study

        figures = [folder / name for name in FIGURES]
        plot_study(study, *figures)
        written += figures
    if PAGE not in left_out and study.rows:
        from trady.planner.studies.pages import write_study_page

        write_study_page(study, folder / PAGE)
        written.append(folder / PAGE)
    return written


def write_parquet(study: Study, path: Path) -> None:
    """All rows as Parquet: the columns of :meth:`Study.to_dataframe`, the layers as JSON text."""
    frame = study.to_dataframe()
    frame["layers"] = [json.dumps(layers) if layers else None for layers in frame["layers"]]
    content = io.BytesIO()
    frame.to_parquet(content, index=False)
    write_atomically(path, content.getvalue())
