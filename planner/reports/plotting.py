"""What every figure needs: matplotlib with settings of its own, files of the same bytes each time, bytes on an axis."""

import io
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from trady.planner.errors import TradyError
from trady.planner.files import check_writable, write_atomically
from trady.planner.units import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

FIGURE_SUFFIXES: Final = (".png", ".svg")
DPI: Final = 120
#: Okabe and Ito's colours, told apart with any colour vision; their yellow is left out, which is pale on white.
COLOURS: Final = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
_UNITS: Final = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def check_suffix(path: Path, known: Sequence[str] = FIGURE_SUFFIXES, subject: str = "Figure") -> None:
    """Refuse a file whose name says no format that can be written.

    Raises:
        TradyError: With the suffixes that are known.
    """
    if path.suffix not in known:
        found = f"suffix {path.suffix!r} is not known" if path.suffix else "the name has no suffix"
        raise TradyError(f"{subject} {path}: {found}. Use {' or '.join(known)}.")


def check_figure_path(path: str | Path) -> None:
    """Fail before the work: an unknown suffix, a place that cannot be written, or no matplotlib.

    Error:
        TradyError: With what to do about it.
    """
    check_suffix(Path(path))
    check_writable(Path(path))
    with matplotlib_ready():
        pass


@contextmanager
def matplotlib_ready() -> Iterator[None]:
    """Matplotlib with text as text in SVG and the same bytes each time; its settings are as before afterwards.

    Raises:
        TradyError: It is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise TradyError('Drawing needs matplotlib, which is not installed. Run: pip install "trady[plot]"') from error
    settings = {"svg.fonttype": "none", "svg.hashsalt": "trady", "font.family": "DejaVu Sans"}
    with matplotlib.rc_context(settings), _without_font_warnings():
        yield


@contextmanager
def _without_font_warnings() -> Iterator[None]:
    """Axes of powers of ten look for every font of formulas and warn of each that is not installed; we write none."""
    logger = logging.getLogger("matplotlib.font_manager")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def save_figure(figure: "Figure", path: Path, dpi: float = DPI) -> None:
    """Write a figure, whole or not at all; the same figure gives the same bytes.

    Args:
        figure: Of matplotlib.
        path: ``.png`` or ``.svg``.
        dpi: Pixels per inch of a ``.png``.

    Error:
        TradyError: The file cannot be written.
    """
    content = io.BytesIO()
    metadata = {"Date": None} if path.suffix == ".svg" else {}
    figure.savefig(content, format=path.suffix[1:], dpi=dpi, metadata=metadata)
    write_atomically(path, content.getvalue())


def tidy_axes(axes: "Axes") -> None:
    """No frame above and on the right, a faint grid behind."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.6)
    axes.set_axisbelow(True)


def label_bytes(axis: "Axis") -> None:
    """Sizes in readable units along an axis, each with the digits it needs to differ from the next."""
    axis.set_major_formatter(lambda value, _: _tick_text(round(value)))
    axis.set_minor_formatter("")


def _tick_text(num_bytes: int) -> str:
    unit = format_bytes(num_bytes).split()[1]
    return f"{num_bytes / _UNITS[unit]:.6g} {unit}"


def thinned_labels(num_places: int, wanted: Sequence[int], most: int) -> list[int]:
    """Positions to label: all of them where there is room, else the wanted ones first, none too near another."""
    if num_places <= most:
        return list(range(num_places))
    gap = math.ceil(num_places / most)
    chosen: list[int] = []
    for index in (*wanted, *range(0, num_places, gap)):
        if all(abs(index - other) >= gap for other in chosen):
            chosen.append(index)
    return sorted(chosen)


def spread(heights: Sequence[float], gap: float, highest: float) -> list[float]:
    """Ascending heights moved apart, as little as need be: none nearer to the next than ``gap``, none above a limit."""
    groups: list[tuple[float, int]] = []
    for height in heights:
        centre, count = height, 1
        while groups and centre - groups[-1][0] < gap * (count + groups[-1][1]) / 2:
            other, members = groups.pop()
            centre, count = (centre * count + other * members) / (count + members), count + members
        groups.append((centre, count))
    apart = [centre + gap * (place - (count - 1) / 2) for centre, count in groups for place in range(count)]
    return [min(height, highest - gap * place) for place, height in zip(range(len(apart))[::-1], apart, strict=True)]
