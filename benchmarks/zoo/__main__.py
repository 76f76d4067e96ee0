"""Saved bytes predicted and real over a zoo of architectures.

Each row traces a model at batches 1, 2 and 3, reads its saved bytes at 1 and 4, and runs that very step with PyTorch:
the distinct storages autograd packs and still holds when the loss exists, parameters, buffers and batch left out.

Then the engine runs one planned step at batch 4: what it keeps beside what the plan says, and the gradients of the
drawn slices beside dense autograd's.

    python -m benchmarks.zoo                 # what is missing in benchmarks/results/zoo.json
    python -m benchmarks.zoo --only swin --fresh
    python -m benchmarks.zoo --steps         # only the engine's steps, of rows that have none
"""

import json
import multiprocessing
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import click
import torch
from torch import Tensor, nn

from benchmarks.commands import command, machine
from benchmarks.zoo.members import Member, members
from benchmarks.zoo.steps import planned_step
from trady.engine.runtime import saved_tensors, storage_bytes
from trady.planner.costs import build_cost_table
from trady.planner.errors import TracingError
from trady.planner.ledger import BatchedLedger
from trady.planner.models import (
    StepOptions,
    call_model,
    input_tensors,
    map_tensors,
    own_loss,
    set_training_mode,
    step_loss,
    synthetic_targets,
)
from trady.planner.options import NormMode, OptimizerKind, Scope
from trady.planner.priorities import uniform_priorities
from trady.planner.solver import Limits, solve
from trady.planner.tracing import Capture, FakeModel, Recordings, trace

BUDGET_BYTES: Final = 256_000
#: Of a gradient, relative to the largest entry: float32 sums in another order.
MOST_ERROR: Final = 1e-3
TRACED: Final = (1, 2, 3)
JUDGED: Final = (4, 1)
ROOT: Final = Path(__file__).resolve().parents[2]
RESULTS: Final = ROOT / "benchmarks" / "results" / "zoo.json"
TABLE: Final = ROOT / "docs" / "zoo.md"

Row = dict[str, Any]


@click.command()
@click.option("--only", default="", help="Rows whose name contains this text.")
@click.option("--fresh", is_flag=True, help="Measure again the rows that are there.")
@click.option("--steps", is_flag=True, help="Only the engine's planned step, of the rows that are there.")
def main(only: str, fresh: bool, steps: bool) -> None:
    """Measure the zoo; example: python -m benchmarks.zoo --only torchvision."""
    known = {row["name"]: row for row in _read_rows()}
    import_all()
    for member in members():
        row = known.get(member.name)
        wanted = only in member.name and (fresh or row is None or (steps and "step" not in row))
        if wanted:
            step = measured_apart(member, _measure_step)
            if not steps or row is None:
                row = measured_apart(member, _measure_all)
            known[member.name] = row | {"step": step}
            click.echo(_line(known[member.name]), err=True)
            order = [other.name for other in members()]
            write(sorted((known[name] for name in known if name in order), key=lambda row: order.index(row["name"])))
    wrong = [row["name"] for row in known.values() if row["error"] or row["difference"] or _is_wrong(row.get("step"))]
    click.echo(f"{len(known)} architectures, {len(wrong)} not equal" + "".join(f"\n  {name}" for name in wrong))
    sys.exit(1 if wrong else 0)


def _is_wrong(step: Row | None) -> bool:
    if step is None or step.get("error"):
        return True
    return bool(step["difference"] or step["without_gradient"] or step["gradient_error"] > MOST_ERROR)


def import_all() -> None:
    """Import the libraries and trace once, so that forked children need not; nothing is computed before the fork."""
    import timm  # noqa: F401
    import torchvision.models  # noqa: F401
    import transformers  # noqa: F401

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    trace(net, torch.zeros(2, 3, 8, 8))


def measured_apart(member: Member, measured: Callable[[Member], Row]) -> Row:
    """What is measured of a member in a forked process: its memory is given back."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_and_send, args=(member, measured, sender))
    process.start()
    sender.close()
    try:
        row: Row = receiver.recv()
    except EOFError:
        row = _row(member, error="the process died")
    process.join()
    return row


def _measure_and_send(member: Member, measured: Callable[[Member], Row], sender: Connection) -> None:
    sender.send(measured(member))


def _measure_all(member: Member) -> Row:
    try:
        start = time.perf_counter()
        row = measure(member)
        row["seconds"] = round(time.perf_counter() - start, 1)
    except Exception as error:
        row = _row(member, error=f"{type(error).__name__}: {error}")
    return row


def _measure_step(member: Member) -> Row:
    """The engine's planned step, or why there is none."""
    torch.manual_seed(0)
    try:
        return planned_step(*member.build(), JUDGED[0])
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _row(member: Member, **values: Any) -> Row:
    return {
        "name": member.name,
        "input": member.input,
        "difference": None,
        "modes": {},
        "plan": {},
        "error": "",
        "seconds": 0.0,
    } | values


def measure(member: Member) -> Row:
    """One architecture: norms frozen, and trained where it has running statistics."""
    torch.manual_seed(0)
    model, inputs = member.build()
    plan = planned(model, inputs)
    modes = {norm.value: judge(model, inputs, norm) for norm in norm_modes(model)}
    differences = [abs(found["difference"]) for mode in modes.values() for found in mode.values()]
    return _row(
        member,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        difference=max(differences),
        modes=modes,
        plan=plan,
    )


def norm_modes(model: nn.Module) -> tuple[NormMode, ...]:
    """Both modes for models with running statistics; for others they are the same."""
    has_statistics = any(getattr(module, "running_mean", None) is not None for module in model.modules())
    return (NormMode.FROZEN, NormMode.TRAIN) if has_statistics else (NormMode.FROZEN,)


def judge(model: nn.Module, inputs: Any, norm: NormMode) -> dict[str, Any]:
    """Predicted and real saved bytes by batch size."""
    fake = FakeModel(model, StepOptions(norm=norm))
    recordings = Recordings({size: _captured(fake, inputs, size) for size in TRACED})
    return {str(size): judge_at(model, inputs, norm, recordings, size) for size in JUDGED}


def _captured(fake: FakeModel, inputs: Any, batch_size: int) -> Capture | TracingError:
    try:
        return fake.capture(inputs, batch_size)
    except TracingError as error:
        return error


def judge_at(model: nn.Module, inputs: Any, norm: NormMode, recordings: Recordings, batch_size: int) -> dict[str, Any]:
    """Predicted against real saved bytes; a step that PyTorch refuses must be refused by the trace."""
    predicted: int | None
    try:
        predicted = recordings.at(batch_size).saved_bytes
    except TracingError as error:
        predicted, refusal = None, error
    try:
        real = real_saved_bytes(model, inputs, batch_size, norm)
    except (RuntimeError, ValueError) as error:
        if predicted is not None:
            raise
        return {"predicted": None, "real": None, "difference": 0, "refused": str(error)}
    if predicted is None:
        raise refusal
    return {"predicted": predicted, "real": real, "difference": predicted - real}


def real_saved_bytes(model: nn.Module, inputs: Any, batch_size: int, norm: NormMode) -> int:
    """What autograd holds when the loss of a real step exists."""
    set_training_mode(model, norm)
    generator = torch.Generator().manual_seed(0)

    def batched(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            return torch.randn((batch_size, *tensor.shape[1:]), generator=generator)
        return tensor[torch.arange(batch_size) % tensor.shape[0]]

    batch = map_tensors(batched, inputs)
    with saved_tensors() as held:
        outputs = call_model(model, batch)
        targets = None if own_loss(outputs) is not None else synthetic_targets(outputs, generator)
        loss = step_loss(outputs, targets, None)
    del outputs
    assert loss.requires_grad
    known = [*model.parameters(), *model.buffers(), *input_tensors([batch, targets])]
    return sum(storage_bytes(held(), left_out=known).values())


def planned(model: nn.Module, inputs: Any) -> dict[str, Any]:
    """A plan at 256 kB in scope update with uniform priorities: trace, cost table, search."""
    start = time.perf_counter()
    traced = trace(model, inputs, batch_sizes=(JUDGED[0],))
    moments = [time.perf_counter()]
    values = [layer.norm_sum for layer in uniform_priorities(traced).layers]
    table = build_cost_table(traced, traced.layers, optimizer=OptimizerKind.SGD)
    moments.append(time.perf_counter())
    selection = solve(BatchedLedger(table), values, Limits(BUDGET_BYTES, Scope.UPDATE))
    return {
        "layers": len(traced.layers),
        "unaccounted": sorted(traced.unaccounted),
        "trace_seconds": round(moments[0] - start, 3),
        "table_seconds": round(moments[1] - moments[0], 3),
        "solve_seconds": round(time.perf_counter() - moments[1], 3),
        "status": selection.status.value,
        "gap": round(selection.gap, 6),
    }


def _read_rows() -> list[Row]:
    return json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []


def write(rows: list[Row]) -> None:
    """Results and the table made of them."""
    document = {"command": command(), **machine(), "rows": rows}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text("\n".join(table_lines(rows)) + "\n")


def table_lines(rows: list[Row]) -> Iterator[str]:
    """The markdown table."""
    versions = machine()
    yield "# The zoo"
    yield ""
    yield from __doc__.strip().splitlines()[2:4]
    yield (
        f"Made by `python -m benchmarks.zoo` (torch {versions['torch']}, torchvision {versions['torchvision']}, "
        f"timm {versions['timm']}, transformers {versions['transformers']}; {versions['machine']}). "
        "Bytes at batch 4, in bytes; *difference* is predicted minus real at batches 4 and 1, the larger. "
        "*Trace* is one batch size, as `trady-plan` does it; *solve* and *gap* are of a plan of 256 kB in scope "
        "`update` with uniform priorities. *Lean* is what the engine's step keeps for backward with the plan's "
        "channels, *off plan* how far that is from the plan, and *error* the largest error of a drawn slice's gradient "
        "relative to the largest entry of the dense one."
    )
    yield ""
    yield (
        "| model | input | norm | layers | predicted (B) | real (B) | difference (B) | lean (B) | off plan (B) | error "
        "| trace (s) | solve (s) | gap |"
    )
    yield "| --- | --- | --- | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: |"
    for row in rows:
        yield from _table_rows(row)
    notes = [note for row in rows for note in _notes(row)]
    if notes:
        yield ""
        yield from notes


def _table_rows(row: Row) -> Iterator[str]:
    if row["error"]:
        yield f"| {row['name']} | {row['input']} | | | | | not traced, see below | | | | | | |"
    plan = row["plan"]
    for norm, mode in row["modes"].items():
        shown = mode[str(JUDGED[0])]
        worst = max((found["difference"] for found in mode.values()), key=abs)
        yield (
            f"| {row['name']} | {row['input']} | {norm} | {plan['layers']} | {shown['predicted']:,} | "
            f"{shown['real']:,} | {worst} | {_step_cells(row, norm)} | {plan['trace_seconds']:.2f} | "
            f"{plan['solve_seconds']:.2f} | {plan['gap']:.3%} |"
        )


def _step_cells(row: Row, norm: str) -> str:
    """The engine's columns; its step runs with frozen norms."""
    step = row.get("step")
    if norm != NormMode.FROZEN.value or step is None:
        return "| |"
    if step.get("error"):
        return "see below | |"
    return f"{step['measured']:,} | {step['difference']} | {step['gradient_error']:.0e}"


def _notes(row: Row) -> Iterator[str]:
    if row["error"]:
        yield f"* {row['name']}: {row['error']}"
    if row.get("step", {}).get("error"):
        yield f"* {row['name']}, the engine's step: {row['step']['error']}"
    if row["plan"].get("unaccounted"):
        yield f"* {row['name']}: unaccounted workspaces beside these bytes: {', '.join(row['plan']['unaccounted'])}"
    for norm, mode in row["modes"].items():
        for size, found in mode.items():
            if found.get("refused"):
                yield f"* {row['name']}, norm {norm}, batch {size}: refused by PyTorch and by the trace."


def _line(row: Row) -> str:
    if row["error"]:
        return f"{row['name']}: {row['error'][:300]}"
    modes = (f"{norm} {[found['difference'] for found in mode.values()]}" for norm, mode in row["modes"].items())
    plan = ", ".join(f"{name} {value}" for name, value in row["plan"].items())
    return f"{row['name']}: {'; '.join(modes)}; {plan}; {row['seconds']:.1f} s in all"


if __name__ == "__main__":
    main()
