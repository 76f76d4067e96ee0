"""The files beside a study's rows: Parquet, the page, figures; each as far as what it needs is installed."""

from importlib.util import find_spec
from pathlib import Path

from trady.planner.studies.folders import PARQUET, TABLE
from trady.planner.studies.runs import Study

PAGE = "study.html"
FIGURES = ("study.svg", "study.png")
_NEEDS = {PARQUET: ("pandas", "pyarrow"), PAGE: ("plotly",), FIGURES[0]: ("matplotlib",)}


def check_extras() -> list[str]:
    """What cannot be written here, before the work: one note each, none where everything is installed."""
    missing = {name: [need for need in needs if find_spec(need) is None] for name, needs in _NEEDS.items()}
    return [
        f'{name} is left out: {" and ".join(needs)} not installed. Run: pip install "trady[study]"'
        for name, needs in missing.items()
        if needs
    ]


def write_views(study: Study, folder: Path, missing: list[str]) -> list[Path]:
    """Write what can be written; the paths of all files made for people.

    Args:
        study: The study.
        folder: Where its rows lie.
        missing: What :func:`check_extras` found.
    """
    left_out = {note.split()[0] for note in missing}
    written = [folder / TABLE]
    if PARQUET not in left_out and study.rows:
        write_parquet(study, folder / PARQUET)
        written.append(folder / PARQUET)
    if FIGURES[0] not in left_out and study.answers.curves:
        from trady.planner.studies.figures import plot_study

        for name in FIGURES:
            plot_study(study, folder / name)
            written.append(folder / name)
    if PAGE not in left_out and study.rows:
        from trady.planner.files import write_atomically
        from trady.planner.studies.pages import study_page

        write_atomically(folder / PAGE, study_page(study))
        written.append(folder / PAGE)
    return written


def write_parquet(study: Study, path: Path) -> None:
    """All rows as Parquet: the columns of :meth:`Study.to_dataframe`, the layers as JSON text."""
    import io
    import json

    from trady.planner.files import write_atomically

    frame = study.to_dataframe()
    frame["layers"] = [json.dumps(layers) if layers else None for layers in frame["layers"]]
    content = io.BytesIO()
    frame.to_parquet(content, index=False)
    write_atomically(path, content.getvalue())
