"""Parts that reports share: tables, headings, counts and shares as text.

Held by ``tests/planner/reports/test_text_report.py``.
"""

from collections.abc import Mapping
from typing import Final, Literal

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

_JUSTIFY: Final[Mapping[str, Literal["left", "center", "right"]]] = {"<": "left", "^": "center", ">": "right"}


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
