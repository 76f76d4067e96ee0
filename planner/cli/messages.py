"""What the commands share: how errors are told, where output may go, how progress is shown.

Held by ``tests/planner/cli/test_plan.py``.
"""

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console

from trady.planner.errors import TradyError
from trady.planner.files import check_writable

_INTERRUPTED: Final = 130
CONTEXT: Final = {"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 110}


def output_path() -> object:
    """Type of an option that names a file to write."""
    return click.Path(dir_okay=False, path_type=Path)


def read_scheme(scheme: str | None) -> dict[str, float] | str | None:
    """A published scheme's name as it is, a JSON file as layer -> ratio.

    Returns:
        Ratios by layer, or the name of a published scheme; ``None`` where none is asked for.

    Raises:
        TradyError: The file is no JSON object of names and numbers.
    """
    if scheme is None or not scheme.endswith(".json"):
        return scheme
    try:
        found = json.loads(Path(scheme).read_text())
        return {str(name): float(ratio) for name, ratio in found.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise TradyError(f"Scheme {scheme} is no JSON object of layer names and ratios: {error}.") from error


def check_outputs(*paths: Path | None) -> None:
    """Fail before the work where a file cannot be written."""
    for path in paths:
        if path is not None:
            check_writable(path)


def tell_written(*paths: Path | None) -> None:
    """Name the files that were written."""
    for path in paths:
        if path is not None:
            click.echo(f"Wrote {path}", err=True)


@contextmanager
def stages() -> Iterator[Callable[[str], None]]:
    """Say on stderr what is being done: a spinner on a terminal, lines in a log."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda text: click.echo(f"{text} ...", err=True)
        return
    with console.status("Starting") as status:
        yield lambda text: status.update(text)


@contextmanager
def errors_told(interrupted: str = "Interrupted: nothing was written.") -> Iterator[None]:
    """Tell what the user can mend in one message and exit with 1; warnings become notes.

    Args:
        interrupted: What to say on Ctrl-C, which leaves no half file.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="torchvision")
            warnings.showwarning = _note
            yield
    except TradyError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        click.echo(interrupted, err=True)
        sys.exit(_INTERRUPTED)


def _note(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"Note: {message}", err=True)
