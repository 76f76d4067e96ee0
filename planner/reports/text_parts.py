"""Parts that reports share: tables, headings, counts and shares as text."""

from collections.abc import Mapping
from typing import Final, Literal

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

_JUSTIFY: Final[Mapping[str, Literal["left", "center", "right"]]] = {"<": "left", "^": "center", ">": "right"}


def format_share(share: float, digits: int = 2) -> str:
    """A share in percent, never rounded to nothing or to all: ``"99.98 %"``, ``"< 0.01 %"``."""
    least = 10.0**-digits
    percent = 100 * share
    if 0 < percent < least:
        return f"< {least:.{digits}f} %"
    if 100 - least < percent < 100:
        return f"> {100 - least:.{digits}f} %"
    return f"{percent:.{digits}f} %"


def format_count(count: int) -> str:
    """A count, to the unit below 10,000: ``"9,999"``, ``"6.8 M"``."""
    if abs(count) < 10_000:
        return f"{count:,}"
    value, unit = count / 1e3, "k"
    for larger in ("M", "G", "T", "P"):
        if abs(value) < 999.95:
            break
        value, unit = value / 1e3, larger
    return f"{value:.1f} {unit}"


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun: ``"1 layer"``, ``"2,000 layers"``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def shorten(name: str, width: int) -> str:
    """A module path without its beginning where it is too long: its end tells layers apart."""
    return name if len(name) <= width else "..." + name[-max(1, width - 3) :]


def headed_table(*columns: tuple[str, str]) -> Table:
    """A table with a rule under its head; columns are ``(name, "<", "^" or ">")``."""
    found = Table(box=box.HORIZONTALS, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for name, side in columns:
        found.add_column(name, justify=_JUSTIFY[side], no_wrap=True, overflow="crop")
    return found


def heading(text: str) -> RenderableType:
    """The title of a part of a report."""
    return Text(text, style="bold cyan")


def item(text: str) -> RenderableType:
    """A paragraph with a dash before it; the text is shown as it is, never as markup."""
    grid = Table.grid(padding=(0, 1))
    grid.add_row("-", Text(text))
    return grid
