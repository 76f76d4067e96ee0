"""Ctrl-C and termination, noted for the loop to stop at a point it can go on from."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Interrupts:
    """Which signal came, if any.

    Args:
        received: Its number; ``None`` so long as none did.
    """

    received: int | None = None

    def __bool__(self) -> bool:
        return self.received is not None


@contextmanager
def noted_interrupts() -> Iterator[Interrupts]:
    """Note the first signal; let a second one do what it did before. Handlers are put back on any exit."""
    noted = Interrupts()
    before: dict[int, Any] = {}

    def note(number: int, _: FrameType | None) -> None:
        noted.received = number
        _restore(before)

    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            before[number] = signal.signal(number, note)
    try:
        yield noted
    finally:
        _restore(before)


def ignore_interrupts(_: int = 0) -> None:
    """For helper processes that decode data: the loop that feeds on them decides when to stop."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)


def _restore(before: dict[int, Any]) -> None:
    while before:
        number, handler = before.popitem()
        signal.signal(number, handler)
