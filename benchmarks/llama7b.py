"""A 7-billion-parameter Llama planned without its weights: seconds and peak resident memory of the process.

python -m benchmarks.llama7b
"""

import json
import resource
import time
from pathlib import Path
from typing import Any

import click
import torch
import transformers

from benchmarks.commands import command, machine
from trady.planner.planning import ModelSource, make_plan
from trady.planner.priorities import uniform_priorities
from trady.planner.tracing import trace

RESULTS = Path(__file__).resolve().parent / "results" / "llama7b.json"
TOKENS = 128


@click.command()
@click.option("--budget", default="64MB", show_default=True, help="Bytes of scope update.")
def main(budget: str) -> None:
    """Trace and plan; example: python -m benchmarks.llama7b --budget 64MB."""
    imported = _peak_bytes()
    found = [measured(dtype, budget) for dtype in (torch.float32, torch.bfloat16)]
    document = {"command": command(), **machine(), "imports_peak_bytes": imported, "rows": found}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    click.echo(json.dumps(document, indent=1))


def measured(dtype: torch.dtype, budget: str) -> dict[str, Any]:
    """One element type: trace, plan, peak so far."""
    config = transformers.LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        vocab_size=32000,
        use_cache=False,
        dtype=dtype,
    )
    start = time.perf_counter()
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM._from_config(config, dtype=dtype)
    built = time.perf_counter()
    inputs = {name: torch.zeros(1, TOKENS, dtype=torch.int64) for name in ("input_ids", "labels")}
    traced = trace(model, inputs, batch_sizes=(1,))
    recorded = time.perf_counter()
    priorities = uniform_priorities(traced)
    source = ModelSource("llama7b", has_weights=False)
    plan = make_plan(model, inputs, budget=budget, priorities=priorities, traced=traced, source=source)
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens": TOKENS,
        "budget": budget,
        "layers": len(traced.layers),
        "saved_bytes": traced.saved_bytes,
        "build_seconds": round(built - start, 2),
        "trace_seconds": round(recorded - built, 2),
        "plan_seconds": round(time.perf_counter() - recorded, 2),
        "status": plan.solver.status,
        "gap": plan.solver.gap,
        "update_bytes": plan.ledger.scopes.update,
        "peak_bytes": _peak_bytes(),
    }


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
