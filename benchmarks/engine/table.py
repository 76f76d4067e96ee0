"""The table of the engine's benchmark."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from trady.planner.units import format_bytes

Found = Mapping[str, Any]

_INTRODUCTION: Final = """\
Made by `python -m benchmarks.engine`: one training step (forward, backward, SGD without momentum), float32,
cross-entropy, random inputs and labels, the same memory format in every row of a model. Norms with running statistics
are frozen except in *dense, norms trained*.

* *peak*: the most the allocator held during a step beyond weights and inputs, what the row keeps between steps (compact
  slices, adapters) included; *over inference* divides it by the peak of a forward pass in evaluation mode.
* *kept*: distinct storages that autograd packed and holds when the loss exists; parameters, buffers and the batch left
  out. *held*: all that the allocator then holds, where saved tensors are hidden from hooks too.
* *time*: median ratio to a dense step taken right before or after in the same process; *CPU*: the same of CPU time, the
  steadier of the two on a shared machine, as this one was.
* *trained*: bytes of what trains beside the head.

*frozen B*: `requires_grad=False` on all but the layers that Trady draws from at budget B and the head. *checkpoint*:
`torch.utils.checkpoint` on each block. *compile s*: `torch.compile` with `activation_memory_budget = s`. *memsave*:
memsave_torch on *frozen*. *lora*: adapters on those same layers, as many trainable elements as Trady's. *paca*: its
authors' fork of peft on those of the layers that are linear, as many channels. *trady B*: `trady-plan --budget B`;
5 % is of what fine-tuning everything stores and computes for weights. *trady peak*: `--scope peak` at 1.15 times the
peak of inference.
"""


def table_lines(document: Found) -> Iterator[str]:
    """The page, one table for each model and device."""
    yield "# The engine beside its rivals"
    yield ""
    yield from _INTRODUCTION.splitlines()
    for device, run in document.items():
        yield ""
        yield f"## {run.get('gpu') or run['processor']} ({device})"
        yield ""
        yield (
            f"torch {run['torch']}, torchvision {run['torchvision']}, timm {run['timm']}, peft {run['peft']}, "
            f"{run['threads']} threads."
        )
        for name, model in run["models"].items():
            yield from _model_lines(name, model)


def _model_lines(name: str, model: Found) -> Iterator[str]:
    facts = model["facts"]
    yield ""
    yield f"### {name}"
    yield ""
    if "error" in facts:
        yield f"Not measured: {facts['error']}"
        return
    yield (
        f"Batch {facts['batch_size']}, {facts['memory_format']}; "
        f"inference peaks at {format_bytes(facts['inference_peak_bytes'])} "
        f"beyond weights ({format_bytes(facts['weight_bytes'])}) and inputs."
    )
    yield ""
    yield "| row | trained | peak | over inference | kept | held | time | CPU |"
    yield "| --- | --: | --: | --: | --: | --: | --: | --: |"
    for row_name, row in model["rows"].items():
        if "peak_bytes" in row:
            yield _row_line(row_name, row, facts["inference_peak_bytes"])
    yield ""
    yield from _notes(model)


def _row_line(name: str, row: Found, inference: int) -> str:
    kept = "n/a" if row["kept_bytes"] is None else format_bytes(row["kept_bytes"])
    cells = (
        name,
        format_bytes(row["trained_bytes"]),
        format_bytes(row["peak_bytes"]),
        f"{row['peak_bytes'] / inference:.2f}",
        kept,
        format_bytes(row["held_bytes"]),
        f"{row['time_over_dense']:.2f}",
        f"{row['cpu_over_dense']:.2f}",
    )
    return f"| {' | '.join(cells)} |"


def _notes(model: Found) -> Iterator[str]:
    for name, row in model["rows"].items():
        note = row.get("note") or row.get("skipped") or row.get("error")
        if "resample_share" in row:
            note = f"{note}; a draw takes {row['resample_share']:.2%} of an epoch of 100 steps"
        if note:
            yield f"* {name}: {'failed: ' if 'error' in row else ''}{note}"
