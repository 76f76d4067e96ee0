"""Holding a plan against one real step of its model.

Held by ``tests/engine/test_cli.py``.
"""

from pathlib import Path

import torch

from trady.engine import Engine
from trady.engine.runtime import Measurement
from trady.engine.trainer.planned_model import PlannedModel, build_planned
from trady.engine.trainer.processes import Processes
from trady.engine.trainer.run_options import DataOptions, VerifyOptions
from trady.engine.trainer.training_data import open_training_data
from trady.planner.errors import EngineError
from trady.planner.models import Batch
from trady.planner.plan import Plan


def verify(plan: Plan, source: str | None, options: VerifyOptions) -> Measurement:
    """Run one real step of a plan and measure every line of its ledger.

    Args:
        plan: The plan.
        source: What :func:`trady.planner.load_model` takes; the plan's own by default.
        options: What else is not the plan's.

    Returns:
        Planned lines beside measured ones, in bytes.

    Raises:
        EngineError: The device is not there.

    Error:
        TradyError: The model or the data is not there, or the plan is of another model.
    """
    place = torch.device(options.device or plan.settings.device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise EngineError(
            "The plan is for CUDA, and this machine has no CUDA device. "
            "Verify where there is one, or measure here with --device cpu."
        )
    planned = build_planned(
        plan,
        source or plan.model.source,
        arch=options.arch,
        loss=options.loss,
        trust_pickle=options.trust_pickle,
        device=place,
    )
    batch = _batch(planned, options.data, options.tokenizer)
    engine = Engine(planned.model, plan, seed=options.seed)
    if options.epoch:
        engine.register(None)
        engine.resample(options.epoch)
    return engine.measure(batch.inputs, batch.targets, planned.loss)


def _batch(planned: PlannedModel, data: str | None, tokenizer: str | Path | None) -> Batch:
    """One batch of the planned size, as the model takes it.

    Raises:
        EngineError: The data does not fill a batch.
    """
    if data is None:
        return Batch(planned.example())
    options = DataOptions(source=data, tokenizer=None if tokenizer is None else str(tokenizer), augment=False)
    opened = open_training_data(options, planned)
    size = planned.plan.settings.batch_size
    found = next(opened.training_batches(options, size, 0, Processes()).epoch(0), None)
    if found is None:
        raise EngineError(f"Data {data!r} does not fill one batch of {size} samples. Give more data.")
    return planned.placed(found)
