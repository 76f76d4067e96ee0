"""Training runs that one process or several can do: ``python parallel_runs.py RANK SIZE FOLDER`` is one of several.

Each process trains on every ``SIZE``-th sample of the global batches and writes what it saw to ``FOLDER/RANK.pt``.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from trady.engine import Engine
from trady.planner import Plan, make_plan
from trady.planner.errors import EngineError
from trady.planner.models.training_step import Batch

EPOCHS: Final = 3
STEPS: Final = 2
Record = dict[str, Any]


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


@cache
def plan_for(strategy: str, **options: Any) -> Plan:
    return make_plan(
        network(), torch.randn(2, 3, 8, 8), budget="9KB", batch_size=8, epochs=EPOCHS, strategy=strategy, **options
    )


def batches(epoch: int, rank: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's share of the global batches of an epoch."""
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(100 * epoch + step)
        x, y = torch.randn(8, 3, 8, 8, generator=generator), torch.randint(5, (8,), generator=generator)
        yield x[rank::size], y[rank::size]


def dense_batches(epoch: int, rank: int, size: int) -> list[Batch]:
    """What this process measures norms on: of two processes each has its shares, one alone has them all."""
    shares = [(rank, size)] if size > 1 else [(0, 2), (1, 2)]
    return [Batch(x, y) for share in shares for x, y in batches(epoch, *share)]


class Inside(nn.Module):
    """An engine as a part of another module."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.engine(x)
        return outputs


def whole_tensor(found: Tensor) -> Tensor:
    return found.full_tensor() if isinstance(found, DTensor) else found


def run(
    rank: int,
    size: int,
    strategy: str,
    *,
    wrap: str = "engine",
    again: bool = False,
    pieces: int = 1,
    weights_by_rank: bool = False,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    clip: float = 0,
    **options: Any,
) -> Record:
    """Train as a user would.

    Args:
        rank: This process.
        size: How many there are; a single one wraps nothing.
        strategy: Planned strategy.
        wrap: What ``DistributedDataParallel`` is put around: the engine, a module it is inside of, a model it is
            attached to; or ``sharded``, for ``fully_shard`` on the latter.
        again: Wrap again after each draw.
        pieces: Micro-batches to a step, all but the last without averaging.
        weights_by_rank: Start each process from weights of its own; the first one's count.
        optimizer: What makes the optimizer.
        clip: Largest gradient norm; 0 for any.
        **options: For the plan.
    """
    model, plan = network(rank if weights_by_rank else 0), plan_for(strategy, **options)
    engine = Engine.attach(model, plan) if wrap in ("attached", "sharded") else Engine(model, plan)
    module = {"engine": engine, "inside": Inside(engine), "attached": model, "sharded": model}[wrap]
    parallel: Any
    if wrap == "sharded" and size > 1:
        parallel = fully_shard(model, ignored_params=engine.drawable_weights())
    else:
        parallel = DistributedDataParallel(module) if size > 1 else module
    whole = [parameter for parameter in engine.parameters() if not isinstance(parameter, DTensor)]
    sharded = [parameter for parameter in engine.parameters() if isinstance(parameter, DTensor)]
    stepper = engine.register(optimizer([{"params": whole}, {"params": sharded}], lr=0.1))
    record: Record = {"channels": [], "norms": [], "weights": []}
    for epoch in range(EPOCHS):
        dense = dense_batches(epoch, rank, size) if strategy == "d-det-rgn" else None
        engine.resample(epoch, batches=dense, loss=F.cross_entropy if dense else None)
        record["channels"].append({name: found.tolist() for name, found in engine.channels.channels.items()})
        if again and size > 1:
            parallel = DistributedDataParallel(module)
        for x, y in batches(epoch, rank, size):
            for number, (part, labels) in enumerate(zip(x.chunk(pieces), y.chunk(pieces), strict=True)):
                waits = wrap != "sharded" and size > 1 and number + 1 < pieces
                with parallel.no_sync() if waits else nullcontext():
                    (F.cross_entropy(parallel(part), labels) / pieces).backward()
            if clip:
                record["norms"].append(nn.utils.clip_grad_norm_(engine.parameters(), clip).item())
            stepper.step()
            stepper.zero_grad()
        record["weights"].append({name: whole_tensor(found).clone() for name, found in model.state_dict().items()})
    return record


def refused(rank: int, size: int, **options: Any) -> Record:
    """What an engine says when its wrapper is not, or no longer, right."""
    try:
        if options.get("wrap") == "sharded whole":
            sharded: Any = fully_shard(network())
            Engine(sharded, plan_for("solver"))
        else:
            run(rank, size, "trady", **options)
    except EngineError as error:
        return {"error": str(error)}
    return {"error": ""}


#: Runs of several processes and, with the same options but for ``again`` and ``wrap``, of a single one.
RUNS: Final[dict[str, dict[str, Any]]] = {
    "solver": {"strategy": "solver", "clip": 0.05},
    "solver, Adam, biases": {"strategy": "solver", "optimizer": torch.optim.Adam, "train_bias": True},
    "solver inside a module": {"strategy": "solver", "wrap": "inside"},
    "solver without a head": {"strategy": "solver", "head": "none"},
    "solver attached": {"strategy": "solver", "wrap": "attached", "clip": 0.05},
    "solver accumulated": {"strategy": "solver", "pieces": 2},
    "trady wrapped again": {"strategy": "trady", "again": True},
    "trady attached": {"strategy": "trady", "wrap": "attached"},
    "trady attached, accumulated": {"strategy": "trady", "wrap": "attached", "pieces": 2},
    "medyate wrapped again": {"strategy": "medyate", "again": True},
    "medyate attached": {"strategy": "medyate", "wrap": "attached"},
    "d-det-rgn wrapped again": {"strategy": "d-det-rgn", "again": True},
    "solver sharded": {"strategy": "solver", "wrap": "sharded"},
    "solver sharded, accumulated": {"strategy": "solver", "wrap": "sharded", "pieces": 2},
    "trady sharded": {"strategy": "trady", "wrap": "sharded"},
    "other weights": {"strategy": "solver", "weights_by_rank": True},
    "other weights, attached": {"strategy": "solver", "wrap": "attached", "weights_by_rank": True},
}
REFUSED: Final[dict[str, dict[str, Any]]] = {
    "engine": {},
    "inside": {"wrap": "inside"},
    "sharded whole": {"wrap": "sharded whole"},
}


def main(rank: int, size: int, folder: Path) -> None:
    """Do all runs as one of several processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=size)
    records = {name: run(rank, size, **options) for name, options in RUNS.items()}
    records |= {f"refused {name}": refused(rank, size, **options) for name, options in REFUSED.items()}
    torch.save(records, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
