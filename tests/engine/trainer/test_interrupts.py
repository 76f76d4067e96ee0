"""Signals: the first is noted, the second does what it did before."""

import os
import signal

import pytest

from trady.engine.trainer.interrupts import noted_interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_handlers_come_back(number: int) -> None:
    before = signal.getsignal(number)
    with noted_interrupts() as interrupts:
        assert not interrupts
        os.kill(os.getpid(), number)
        assert interrupts.received == number
        assert signal.getsignal(number) is before
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_stops_at_once() -> None:
    # A shell's background job starts with Ctrl-C ignored, and Python then installs no handler of its own.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), noted_interrupts():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_handlers_come_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="stop"), noted_interrupts():
        raise ValueError("stop")
    assert signal.getsignal(signal.SIGTERM) is before
