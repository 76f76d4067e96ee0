"""What a replay is asked for: options of ``simulate`` and of ``trady-simulate``. No torch.

Held by ``tests/simulator/test_replay.py``.
"""

from typing import Annotated, TypedDict

from pydantic import Field

from trady.planner.records import Option, Record, Whole


class SimulationKeywords(TypedDict, total=False):
    """The fields of :class:`SimulationOptions`."""

    epochs: int | None
    trials: int
    seed: int
    tail_index: float | None
    workers: int | None


class SimulationOptions(Record):
    """How much is replayed, and how.

    Args:
        epochs: Epochs to replay; the plan's by default, or the recording's.
        trials: Runs to replay.
        seed: Seed of the first run.
        tail_index: Alpha of heavy-tailed gradients; the calibration's by default.
        workers: Processes; one for each processor by default.
    """

    epochs: Annotated[int | None, Option("Epochs to replay.  [default: the plan's, or the recording's]")] = None
    trials: Annotated[Whole, Option("Runs to replay, with seeds from --seed on.", type=int)] = 1000
    seed: Annotated[int, Field(ge=0), Option("Seed of the first run.")] = 0
    tail_index: Annotated[
        float | None, Option("Alpha of heavy-tailed gradients.  [default: the calibration's]", type=float)
    ] = None
    workers: Annotated[Whole | None, Option("Processes.  [default: one for each processor]")] = None
