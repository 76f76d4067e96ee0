"""One model or one row of the engine's benchmark, measured in this process; ``engine.py`` starts it.

    python -m benchmarks.engine.rows facts ViT-S --room out/engine/ViT-S
    python -m benchmarks.engine.rows row ViT-S "frozen 256KB" --room out/engine/ViT-S

The last line of stdout is JSON.
"""

import contextlib
import copy
import json
import math
import re
import statistics
import time
import warnings
from pathlib import Path
from typing import Any, Final

import click
import torch
from torch import Tensor, nn

from benchmarks.engine.meter import kept_bytes, seconds_of
from benchmarks.engine.models import Subject, built, subject_named
from benchmarks.engine.rivals import BUDGETS, PEAK, CannotRunError, Contender, Task, dense, rows
from trady.planner.costs import AllocationMeter, peak_of
from trady.planner.errors import TradyError
from trady.planner.ledger import BatchedLedger
from trady.planner.models import Batch, call_model, cross_entropy, input_tensors, map_tensors, set_training_mode
from trady.planner.options import MemoryFormat, NormMode
from trady.planner.plan import Plan
from trady.planner.planning import ModelSource, make_plan

FORMATS: Final = {
    MemoryFormat.CONTIGUOUS: torch.contiguous_format,
    MemoryFormat.CHANNELS_LAST: torch.channels_last,
}
#: Bytes beyond weights and inputs that ``--scope peak`` may take, over those of inference.
PEAK_OVER_INFERENCE: Final = 1.15
#: Share of the dense update bytes that the last budget is.
SHARE: Final = 0.05
EPOCH_STEPS: Final = 100
_DRAWS: Final = 5


@click.group()
@click.option("--threads", type=int, help="Threads of torch; its own choice by default.")
def main(threads: int | None) -> None:
    """Measure in this process."""
    warnings.simplefilter("ignore")
    if threads:
        torch.set_num_threads(threads)


@main.command()
@click.argument("name")
@click.option("--room", type=click.Path(path_type=Path), required=True, help="Folder for the plans.")
@click.option("--device", default="cpu", show_default=True)
def facts(name: str, room: Path, device: str) -> None:
    """What all rows of a model share: memory format, peak of inference, plans."""
    subject = subject_named(name)
    seconds = dense_seconds(subject, device)
    memory_format = min(seconds, key=lambda key: seconds[key])
    model, batch = _on(device, *built(subject, FORMATS[memory_format]))
    inference = inference_peak(model, batch, device)
    plans, refused = make_plans(subject, model, batch, memory_format, device, inference)
    room.mkdir(parents=True, exist_ok=True)
    for budget, plan in plans.items():
        plan.save(room / f"{budget}.plan.json")
    table = next(iter(plans.values())).table
    found = {
        "name": name,
        "batch_size": subject.batch_size,
        "memory_format": memory_format.value,
        "dense_seconds": {key.value: round(value, 4) for key, value in seconds.items()},
        "inference_peak_bytes": inference,
        "weight_bytes": table.weight_bytes,
        "dense_saved_bytes": table.dense_saved_bytes,
        "dense_update_bytes": dense_update_bytes(plans[BUDGETS[0]]),
        "plans": {budget: _summary(plan) for budget, plan in plans.items()},
        "refused": refused,
    }
    (room / "facts.json").write_text(json.dumps(found))
    click.echo(json.dumps(found))


@main.command()
@click.argument("name")
@click.argument("row_name")
@click.option("--room", type=click.Path(path_type=Path), required=True, help="Folder of the plans.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--repeats", default=5, show_default=True, help="Timed steps, each beside a dense one.")
@click.option("--memsave", type=click.Path(path_type=Path), help="Folder that holds memsave_torch.")
@click.option("--paca", type=click.Path(path_type=Path), help="Folder that holds PaCA's fork of peft.")
def row(
    name: str, row_name: str, room: Path, device: str, repeats: int, memsave: Path | None, paca: Path | None
) -> None:
    """One row: bytes, and time beside dense steps."""
    subject = subject_named(name)
    known = json.loads((room / "facts.json").read_text())
    plans = {path.name.removesuffix(".plan.json"): Plan.load(path) for path in room.glob("*.plan.json")}
    model, batch = _on(device, *built(subject, FORMATS[MemoryFormat(known["memory_format"])]))
    paths = {key: path for key, path in (("memsave", memsave), ("paca", paca)) if path is not None}
    task = Task(subject, set_training_mode(model, NormMode.FROZEN), batch.inputs, plans, paths)
    try:
        if row_name == "trady peak" and PEAK in known["refused"]:
            raise CannotRunError(known["refused"][PEAK])
        found = measure(task, row_name, batch, device, repeats)
    except CannotRunError as error:
        found = {"skipped": str(error)}
    click.echo(json.dumps(found))


def measure(task: Task, row_name: str, batch: Batch, device: str, repeats: int) -> dict[str, Any]:
    """All figures of a row."""
    judge = _Judge(dense(_copied(task)), batch, device)
    expected = judge.first_step()
    tracing = contextlib.nullcontext() if "compile" in row_name else AllocationMeter(device)
    started = time.perf_counter()
    with tracing as resident:
        contender = rows(task.subject)[row_name](task)
        subject = _Judge(contender, batch, device)
        loss = subject.first_step()
    seconds = round(time.perf_counter() - started, 2)
    found: dict[str, Any] = {"first_step_seconds": seconds, "loss": loss, "dense_loss": expected}
    found |= {"trained_bytes": _trained_bytes(contender, task), "without_gradient": subject.without_gradient}
    _check_gradients(task.subject, subject)
    _check_loss(loss, expected, contender)
    found |= subject.bytes_of(0 if resident is None else resident.left_bytes, task)
    found |= times(subject, judge, repeats)
    if contender.resample is not None:
        found |= resample_seconds(contender, found["seconds"])
    return found | {"last_loss": subject.loss_now(), "note": contender.note}


class _Judge:
    """Steps of one contender on the batch."""

    def __init__(self, contender: Contender, batch: Batch, device: str) -> None:
        self.contender, self.batch, self.device = contender, batch, device
        self.without_gradient: list[str] = []
        self.not_finite: list[str] = []

    def forward(self) -> Tensor:
        return cross_entropy(call_model(self.contender.model, self.batch.inputs), self.batch.targets)

    def step(self) -> None:
        """Forward, backward, optimizer."""
        self.forward().backward()
        self.contender.optimizer.step()
        self.contender.optimizer.zero_grad(set_to_none=True)

    def first_step(self) -> float:
        """Warm up and look at every gradient; gives the loss, the same noise in all rows."""
        torch.manual_seed(1)
        loss = self.forward()
        loss.backward()
        for name, tensor in self.contender.trained.items():
            if tensor.grad is None:
                self.without_gradient.append(name)
            elif not bool(tensor.grad.isfinite().all()):
                self.not_finite.append(name)
        self.contender.optimizer.step()
        self.contender.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def loss_now(self) -> float:
        """The loss at the end; it must be finite."""
        loss = float(self.forward().detach())
        if not math.isfinite(loss):
            raise ArithmeticError(f"The loss became {loss}.")
        return loss

    def bytes_of(self, resident: int, task: Task) -> dict[str, Any]:
        """Peak of a step and what is held when the loss exists, both with what the row keeps between steps."""
        with AllocationMeter(self.device) as alive:
            loss = self.forward()
        del loss
        with AllocationMeter(self.device) as whole:
            self.step()
        kept = None
        if not self.contender.compiled:
            model = self.contender.model
            known = [*model.parameters(), *model.buffers(), *task.model.parameters(), *task.model.buffers()]
            kept = kept_bytes(self.forward, [*known, *input_tensors([self.batch.inputs, self.batch.targets])])
        return {
            "resident_bytes": resident,
            "peak_bytes": resident + whole.peak_bytes,
            "held_bytes": resident + alive.left_bytes,
            "left_bytes": whole.left_bytes,
            "kept_bytes": kept,
        }


def _check_gradients(subject: Subject, judge: _Judge) -> None:
    """Every parameter that trains must have got a finite gradient."""
    missing = [name for name in judge.without_gradient if not re.fullmatch(subject.unused, name)]
    if missing:
        raise ArithmeticError(f"{len(missing)} parameters got no gradient: {', '.join(missing[:3])}")
    if judge.not_finite:
        raise ArithmeticError(f"{len(judge.not_finite)} gradients are not finite: {', '.join(judge.not_finite[:3])}")


def _check_loss(loss: float, expected: float, contender: Contender) -> None:
    """All rows start from the same model and noise; compiled ones make their own noise."""
    if not contender.compiled and not math.isclose(loss, expected, rel_tol=0.01):
        raise ArithmeticError(f"The first loss is {loss:.5f}, that of dense training {expected:.5f}.")


def times(subject: _Judge, judge: _Judge, repeats: int) -> dict[str, Any]:
    """Medians of steps taken in turn with dense ones; which goes first changes each time.

    ``time_over_dense`` is the median ratio of neighbours' wall times, ``cpu_over_dense`` that of their CPU times, which
    say the same on a quiet machine and more on a busy one.
    """
    found: dict[_Judge, list[tuple[float, float]]] = {subject: [], judge: []}
    for turn in range(-1, repeats):
        for runner in (subject, judge) if turn % 2 else (judge, subject):
            seconds = seconds_of(runner.step, runner.device)
            if turn >= 0:
                found[runner].append(seconds)
    wall, processor = (
        [mine[clock] / theirs[clock] for mine, theirs in zip(found[subject], found[judge], strict=True)]
        for clock in (0, 1)
    )
    return {
        "seconds": round(statistics.median(wall for wall, _ in found[subject]), 5),
        "dense_seconds": round(statistics.median(wall for wall, _ in found[judge]), 5),
        "time_over_dense": round(statistics.median(wall), 4),
        "cpu_over_dense": round(statistics.median(processor), 4),
        "ratios": [round(ratio, 4) for ratio in wall],
    }


def resample_seconds(contender: Contender, step_seconds: float) -> dict[str, Any]:
    """Median time of a draw, and its share of an epoch of 100 steps."""
    resample = contender.resample
    assert resample is not None
    found = []
    for epoch in range(1, _DRAWS + 1):
        start = time.perf_counter()
        resample(epoch)
        found.append(time.perf_counter() - start)
    seconds = statistics.median(found)
    return {"resample_seconds": round(seconds, 5), "resample_share": round(seconds / (EPOCH_STEPS * step_seconds), 5)}


def dense_seconds(subject: Subject, device: str) -> dict[MemoryFormat, float]:
    """Best of three dense steps in each memory format, taken in turn; one format where nothing is four-dimensional."""
    judges: dict[MemoryFormat, _Judge] = {}
    for key, memory_format in FORMATS.items():
        model, batch = _on(device, *built(subject, memory_format))
        task = Task(subject, set_training_mode(model, NormMode.FROZEN), batch.inputs, {}, {})
        judges[key] = _Judge(dense(task), batch, device)
        judges[key].first_step()
        if all(tensor.dim() != 4 for tensor in (*model.parameters(), *input_tensors(batch.inputs))):
            break
    rounds = [{key: seconds_of(judge.step, device)[0] for key, judge in judges.items()} for _ in range(3)]
    return {key: min(found[key] for found in rounds) for key in judges}


def inference_peak(model: nn.Module, batch: Batch, device: str) -> int:
    """Peak of a forward pass in evaluation mode, beyond weights and inputs."""
    model.eval()
    with torch.no_grad():
        call_model(model, batch.inputs)
        return peak_of(lambda: call_model(model, batch.inputs), device)


def make_plans(
    subject: Subject, model: nn.Module, batch: Batch, memory_format: MemoryFormat, device: str, inference: int
) -> tuple[dict[str, Plan], dict[str, str]]:
    """Plans by budget, and why there is none."""

    def plan(budget: int | str, scope: str = "update") -> Plan:
        source = ModelSource(subject.name, has_weights=subject.has_weights)
        return make_plan(
            model,
            batch.inputs,
            budget=budget,
            scope=scope,
            optimizer="sgd",
            device=device,
            memory_format=memory_format,
            source=source,
        )

    first = plan(BUDGETS[0])
    beyond = first.table.weight_bytes + first.table.input_bytes
    wanted: dict[str, tuple[int | str, str]] = {BUDGETS[1]: (BUDGETS[1], "update")}
    wanted[BUDGETS[2]] = (int(SHARE * dense_update_bytes(first)), "update")
    if not subject.like_relu:
        wanted[PEAK] = (beyond + int(PEAK_OVER_INFERENCE * inference), "peak")
    plans, refused = {BUDGETS[0]: first}, {}
    for name, (budget, scope) in wanted.items():
        try:
            plans[name] = plan(budget, scope)
        except TradyError as error:
            refused[name] = str(error)
    return plans, refused


def dense_update_bytes(plan: Plan) -> int:
    """Stored inputs and weight gradients when all channels of all layers train."""
    lines = BatchedLedger(plan.table).of([layer.in_channels for layer in plan.table.layers]).lines
    return lines.saved_activations + lines.gradients


def _summary(plan: Plan) -> dict[str, Any]:
    scopes = plan.ledger.scopes
    return {
        "budget_bytes": plan.settings.budget_bytes,
        "layers": len(plan.chosen),
        "channels": sum(plan.counts),
        "update_bytes": scopes.update,
        "training_bytes": scopes.training,
        "peak_bytes": scopes.peak,
    }


def _trained_bytes(contender: Contender, task: Task) -> int:
    """Bytes of what trains beside the head."""
    heads = _head_names(task)
    return sum(
        tensor.numel() * tensor.element_size()
        for name, tensor in contender.trained.items()
        if not name.removeprefix("_orig_mod.").removeprefix("model.").startswith(heads)
    )


def _head_names(task: Task) -> tuple[str, ...]:
    return tuple({f"{name}." for plan in task.plans.values() for name in plan.model.head.layers})


def _copied(task: Task) -> Task:
    return Task(task.subject, copy.deepcopy(task.model), task.inputs, task.plans, task.paths)


def _on(device: str, model: nn.Module, batch: Batch) -> tuple[nn.Module, Batch]:
    inputs, targets = (map_tensors(lambda tensor: tensor.to(device), item) for item in (batch.inputs, batch.targets))
    return model.to(device), Batch(inputs, targets)


if __name__ == "__main__":
    main()
