"""The allocator's figures against tensors whose size we know."""

import os

import pytest
import torch
import torch.nn.functional as F

from trady.planner.costs.allocator import AllocationMeter, peak_of, peaks_of

MIB = 2**20


def mebibytes(number: int) -> torch.Tensor:
    return torch.empty(number * MIB, dtype=torch.uint8)


def test_the_peak_is_the_most_that_lives_at_once() -> None:
    def run() -> torch.Tensor:
        first = mebibytes(3)
        del first
        second, third = mebibytes(2), mebibytes(2)
        del second
        return third

    assert peak_of(run) == 4 * MIB


def test_what_is_left_and_what_was_there_before() -> None:
    before = mebibytes(5)
    with AllocationMeter() as meter:
        kept = mebibytes(2)
        more = mebibytes(4)
        del more
    assert (meter.peak_bytes, meter.left_bytes) == (6 * MIB, 2 * MIB)
    assert before.numel() + kept.numel() == 7 * MIB


def test_nothing_allocated_is_nothing() -> None:
    assert peak_of(lambda: None) == 0
    assert peaks_of([]) == []


def test_laps_are_told_apart_and_start_at_zero() -> None:
    kept = []
    functions = [lambda: kept.append(mebibytes(1)), lambda: mebibytes(3), lambda: [mebibytes(2), mebibytes(2)]]
    assert peaks_of(functions) == [1 * MIB, 3 * MIB, 4 * MIB]


def test_backward_is_watched_in_autograds_own_threads() -> None:
    x = torch.zeros(MIB // 4, requires_grad=True)
    loss = (x * x).sum()
    with AllocationMeter() as meter:
        loss.backward()
    assert meter.left_bytes >= MIB
    assert x.grad is not None


def test_a_kernels_workspace_counts() -> None:
    x, weight = torch.zeros(2, 16, 32, 32), torch.zeros(32, 16, 3, 3)
    F.conv2d(x, weight)
    assert peak_of(lambda: F.conv2d(x, weight)) >= 2 * 32 * 30 * 30 * 4


def test_an_error_inside_is_passed_on_and_the_next_run_measures() -> None:
    with pytest.raises(ZeroDivisionError, match="division"), AllocationMeter():
        raise ZeroDivisionError("division")
    assert peak_of(lambda: mebibytes(1)) == MIB


def test_the_profiler_says_nothing_and_the_run_may(capfd: pytest.CaptureFixture[str]) -> None:
    peak_of(lambda: os.write(2, b"from inside\n"))
    assert capfd.readouterr().err == "from inside\n"
