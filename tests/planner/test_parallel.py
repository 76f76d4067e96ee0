"""Work shared out among processes comes back in order, and nothing is left running."""

import os
import time
from collections.abc import Iterator

import pytest

from trady.planner.parallel import in_processes


def square(number: int) -> int:
    return number * number


def late_if_even(number: int) -> tuple[int, int]:
    time.sleep(0.05 * (number % 2 == 0))
    return number, os.getpid()


def fail_on_three(number: int) -> int:
    if number == 3:
        raise ValueError("three")
    return number


@pytest.mark.parametrize("workers", [1, 2, None])
@pytest.mark.parametrize("number", [0, 1, 9])
def test_results_come_in_the_order_of_the_items(workers: int | None, number: int) -> None:
    assert list(in_processes(square, range(number), workers)) == [item**2 for item in range(number)]


def test_slow_items_hold_their_place_and_processes_are_others() -> None:
    found = list(in_processes(late_if_even, list(range(8)), 2))
    assert [number for number, _ in found] == list(range(8))
    assert os.getpid() not in {process for _, process in found}


def test_items_are_asked_for_as_workers_become_free() -> None:
    asked: list[int] = []

    def items() -> Iterator[int]:
        for number in range(50):
            asked.append(number)
            yield number

    results = in_processes(square, items(), 2)
    assert next(results) == 0
    assert len(asked) < 10
    results.close()
    assert len(asked) < 10


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_worker_is_raised_here(workers: int) -> None:
    with pytest.raises(ValueError, match="three"):
        list(in_processes(fail_on_three, range(6), workers))


def test_workers_started_anew_give_the_same() -> None:
    assert list(in_processes(abs, [-1, 2, -3], 2, anew=True)) == [1, 2, 3]
