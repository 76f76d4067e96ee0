"""What a person sees while a run goes on: a bar on a terminal, a line for each epoch in a log.

Held by ``tests/engine/trainer/test_training.py``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


@dataclass
class Display:
    """Shows how far a run is.

    Args:
        say: Prints a line.
        bar: The bar; ``None`` in a log.
    """

    say: Callable[[str], None]
    bar: Progress | None = None
    _task: TaskID | None = None

    def start(self, label: str, total: int, done: int = 0) -> None:
        """Begin something of ``total`` parts, some of which may be done."""
        if self.bar is None:
            return
        if self._task is not None:
            self.bar.remove_task(self._task)
        self._task = self.bar.add_task(label, total=total, completed=done, figures="")

    def advance(self, parts: int, figures: str) -> None:
        """Some parts are done; ``figures`` stands beside the bar."""
        if self.bar is not None and self._task is not None:
            self.bar.update(self._task, advance=parts, figures=figures)


def silent_display() -> Display:
    """Shows nothing."""
    return Display(lambda _: None)


@contextmanager
def shown_progress(console: Console) -> Iterator[Display]:
    """A bar where the console is a terminal; lines only where it is not."""
    if not console.is_terminal:
        yield Display(lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True))
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield Display(lambda text: console.print(text, markup=False, highlight=False), bar)
