"""Which runs the accuracy benchmark makes: policies, presets, and the learning rates a policy may choose from."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypedDict

from benchmarks.accuracy.runs import Cell, Policy, Recipe
from benchmarks.accuracy.tasks import NETWORKS, is_here
from trady.planner.options import OptimizerKind

#: Rates tried beyond the end of those a policy begins with.
_MOST_BEYOND: Final = 2
#: Seed of the runs that choose a learning rate; those that are judged have 0, 1, 2...
_CHOOSING_SEED: Final = 100
#: The solver without the stem, which reads the batch and so is free in scope ``update``, but drags the backward pass.
_SOLVER: Final = {"exclude": "stem", "horizon": 4.0}
_WEIGHTED_16: Final = {"exclude": "stem", "horizon": 16.0, "inclusion": "weighted"}
_ADAMW: Final = OptimizerKind.ADAMW
_SINKGD: Final = OptimizerKind.SINKGD

POLICIES: Final[Mapping[str, Policy]] = {
    policy.name: policy
    for policy in (
        Policy("full", "full"),
        Policy("head", "head"),
        Policy("bias", "bias"),
        Policy("su", "su"),
        Policy("s-full-random", "s-full-random"),
        Policy("s-topk-random", "s-topk-random"),
        Policy("d-full-random", "d-full-random"),
        Policy("s-det-rgn", "s-det-rgn"),
        Policy("d-det-rgn", "d-det-rgn"),
        Policy("trady", "trady"),
        Policy("lara-trady", "lara-trady"),
        Policy("medyate", "medyate"),
        Policy("solver", "solver", _SOLVER),
        Policy("solver E=1", "solver", _SOLVER | {"horizon": 1.0}),
        Policy("solver E=16", "solver", _SOLVER | {"horizon": 16.0}),
        Policy("solver E=64", "solver", _SOLVER | {"horizon": 64.0}),
        Policy("solver weighted", "solver", _SOLVER | {"inclusion": "weighted"}),
        Policy("solver squared", "solver", _SOLVER, value="square"),
        Policy("solver with stem", "solver", {"horizon": 4.0}),
        Policy("solver 20 layers", "solver", {"horizon": 4.0, "max_depth": 20}),
        Policy("solver 10 layers", "solver", {"horizon": 4.0, "max_depth": 10}),
        Policy("solver 4 draws", "solver", _SOLVER, draws_per_epoch=4),
        Policy("solver 1 draw", "solver", _SOLVER, draws_per_epoch=0),
        Policy("solver momentum", "solver", _SOLVER, optimizer=OptimizerKind.MOMENTUM),
        Policy("trady momentum", "trady", optimizer=OptimizerKind.MOMENTUM),
        Policy("solver bfloat16", "solver", _SOLVER | {"amp": "bfloat16"}),
        Policy("full, norms train", "full", {"norm": "train", "train": ("*bias", "*norm.weight")}),
        Policy("trady, norms train", "trady", {"norm": "train"}),
        Policy("solver, norms train", "solver", {"norm": "train", "horizon": 4.0, "exclude": "stem*"}),
        Policy("full SinkGD", "full", optimizer=_SINKGD),
        Policy("head SinkGD", "head", optimizer=_SINKGD),
        Policy("trady SinkGD", "trady", optimizer=_SINKGD),
        Policy("medyate SinkGD", "medyate", optimizer=_SINKGD),
        Policy("s-det-rgn SinkGD", "s-det-rgn", optimizer=_SINKGD),
        Policy("solver SinkGD", "solver", _SOLVER, optimizer=_SINKGD),
        Policy("solver E=16 SinkGD", "solver", _SOLVER | {"horizon": 16.0}, optimizer=_SINKGD),
        Policy("solver weighted SinkGD", "solver", _SOLVER | {"inclusion": "weighted"}, optimizer=_SINKGD),
        Policy("solver weighted E=16 SinkGD", "solver", _WEIGHTED_16, optimizer=_SINKGD),
        Policy("full AdamW", "full", optimizer=_ADAMW),
        Policy("head AdamW", "head", optimizer=_ADAMW),
        Policy("LoRA r=2 AdamW", "lora", {"rank": 2}, optimizer=_ADAMW),
        Policy("trady AdamW", "trady", optimizer=_ADAMW),
        Policy("medyate AdamW", "medyate", optimizer=_ADAMW),
        Policy("d-full-random AdamW", "d-full-random", optimizer=_ADAMW),
        Policy("s-det-rgn AdamW", "s-det-rgn", optimizer=_ADAMW),
        Policy("d-det-rgn AdamW", "d-det-rgn", optimizer=_ADAMW),
        Policy("solver AdamW", "solver", _SOLVER, optimizer=_ADAMW),
        Policy("solver E=1 AdamW", "solver", _SOLVER | {"horizon": 1.0}, optimizer=_ADAMW),
        Policy("solver E=16 AdamW", "solver", _SOLVER | {"horizon": 16.0}, optimizer=_ADAMW),
        Policy("solver weighted AdamW", "solver", _SOLVER | {"inclusion": "weighted"}, optimizer=_ADAMW),
        Policy("solver weighted E=16 AdamW", "solver", _WEIGHTED_16, optimizer=_ADAMW),
    )
}

#: Peak learning rates that a policy chooses from, by its optimizer.
RATES: Final[Mapping[OptimizerKind, tuple[float, ...]]] = {
    OptimizerKind.SGD: (0.01, 0.02, 0.04),
    OptimizerKind.SINKGD: (1e-3, 2e-3, 4e-3),
    OptimizerKind.MOMENTUM: (0.001, 0.002, 0.004),
    OptimizerKind.ADAMW: (1e-3, 2.5e-3, 6e-3),
}
#: The same for dense training, which wants smaller ones.
DENSE_RATES: Final[Mapping[OptimizerKind, tuple[float, ...]]] = {
    OptimizerKind.SGD: (0.002, 0.005, 0.01),
    OptimizerKind.SINKGD: (2.5e-4, 5e-4, 1e-3),
    OptimizerKind.ADAMW: (3e-4, 1e-3, 2.5e-3),
}


@dataclass(frozen=True)
class Block:
    """Every combination of networks, data, budgets, policies and seeds.

    Args:
        networks: Names.
        data: Names.
        budgets: Places in the networks' lists of budgets.
        policies: Names.
        seeds: How many.
        recipe: How each run trains.
        choose_on: Data whose held-out part chooses the learning rates; by default each task's own.
        choosing_epochs: Epochs of a run that chooses.
        rates: Learning rates to choose from; by default those of the policy's optimizer.
        fixed_rate: The one learning rate, where none is to be chosen.
    """

    networks: Sequence[str]
    data: Sequence[str]
    budgets: Sequence[int]
    policies: Sequence[str]
    seeds: int
    recipe: Recipe
    choose_on: str | None = None
    choosing_epochs: int = 2
    rates: Sequence[float] = ()
    fixed_rate: float | None = None

    def judged(self) -> Iterator[Cell]:
        """The runs that are judged, their rates not chosen yet: the first seed of everything first."""
        for seed in range(self.seeds):
            for data in filter(is_here, self.data):
                for policy in self.policies:
                    for network in self.networks:
                        for budget in self.budgets:
                            elements = NETWORKS[network].budgets[budget]
                            yield Cell(network, data, elements, POLICIES[policy], self.recipe, 0.0, seed)

    def first_rates(self, policy: Policy) -> Sequence[float]:
        """Learning rates that a policy tries first."""
        known = DENSE_RATES if policy.strategy == "full" else RATES
        return self.rates or known[OptimizerKind(policy.optimizer)]

    def choosing(self, cell: Cell, rate: float) -> Cell:
        """The run that tries a learning rate for a judged run."""
        recipe = replace(cell.recipe, epochs=self.choosing_epochs)
        data = self.choose_on or cell.data
        return replace(cell, data=data, recipe=recipe, seed=_CHOOSING_SEED, choosing=True, rate=rate)


def rates_to_try(first: Sequence[float], losses: Mapping[float, float]) -> list[float]:
    """Learning rates to try next: the first ones, then beyond the end at which the best one lies, twice at the most.

    Args:
        first: Rates to begin with.
        losses: Loss on what was held out by rate tried; ``nan`` where training diverged.
    """
    missing = [rate for rate in first if rate not in losses]
    if missing or len(losses) >= len(first) + _MOST_BEYOND:
        return missing
    best = best_rate(losses)
    if best == min(losses):
        return [best / 2]
    return [best * 2] if best == max(losses) else []


def best_rate(losses: Mapping[float, float]) -> float:
    """The rate with the lowest loss on what was held out; ties take the smaller one."""
    return _by_loss(losses)[0]


def chosen_rate(losses: Mapping[float, float]) -> float:
    """The smaller of the two best rates: runs that choose are short, and longer ones want smaller rates."""
    return min(_by_loss(losses)[:2])


def _by_loss(losses: Mapping[float, float]) -> list[float]:
    """Rates from the lowest loss on; those that diverged come last."""
    return sorted(losses, key=lambda rate: (math.inf if math.isnan(losses[rate]) else losses[rate], rate))


_THREE: Final = ("mbv2-w0.35", "mcunet-5fps", "proxyless-w0.3")
_PICTURES: Final = ("food10", "cifar10-sub", "catdog")
_TEXTS: Final = ("trec", "sst2")
_PUBLISHED: Final = (
    "head",
    "bias",
    "su",
    "s-full-random",
    "s-topk-random",
    "d-full-random",
    "s-det-rgn",
    "d-det-rgn",
    "trady",
    "lara-trady",
    "medyate",
    "full",
)
#: What is varied of the solver on one network.
_VARIED: Final = (
    "solver with stem",
    "solver 20 layers",
    "solver 10 layers",
    "solver 1 draw",
    "solver weighted",
    "solver E=1",
)
#: Static and dynamic forms of the same rules, each at a rate of its own.
_STATIC_OR_NOT: Final = ("s-topk-random", "d-full-random", "s-full-random", "s-det-rgn", "d-det-rgn")
#: Relatives of the paper's rule, run at the learning rate that it chose.
_AS_TRADY: Final = ("s-topk-random", "d-full-random", "s-full-random", "lara-trady", "head", "bias")
#: What a machine with the hours runs beside the published policies and the solver.
_ALSO: Final = (
    *_VARIED,
    "solver squared",
    "solver 4 draws",
    "solver E=64",
    "solver momentum",
    "trady momentum",
    "solver bfloat16",
    "LoRA r=2 AdamW",
)
_SHORT: Final = Recipe(96, 6, 2048)
_SHORT_TEXT: Final = Recipe(24, 3, 768)
#: The paper's epochs for Food and CIFAR-100; the whole training data in each.
_LONG: Final = Recipe(128, 50, 50_000, warmup=5.0)

#: Policies whose steps reach back to different depths.
DEPTHS: Final = (
    "solver with stem",
    "solver",
    "solver SinkGD",
    "solver 20 layers",
    "solver 10 layers",
    "trady",
    "full",
    "head",
)


def depth_cells() -> list[Cell]:
    """Runs of mbv2-w0.35 on food10 at its smallest budget, one of each depth."""
    network = NETWORKS["mbv2-w0.35"]
    return [Cell(network.name, "food10", network.budgets[0], POLICIES[name], _SHORT, 0.01) for name in DEPTHS]


class _Where(TypedDict, total=False):
    """Networks and data of a block."""

    networks: Sequence[str]
    data: Sequence[str]


def _on_pictures(
    *policies: str,
    networks: Sequence[str] = _THREE,
    data: Sequence[str] = ("food10", "cifar10-sub"),
    budgets: Sequence[int] = (0,),
    seeds: int = 1,
    rates: Sequence[float] = (),
    fixed_rate: float | None = None,
) -> Block:
    """Short runs whose learning rates are chosen on food10."""
    return Block(
        networks, data, budgets, policies, seeds, _SHORT, choose_on="food10", rates=rates, fixed_rate=fixed_rate
    )


def _on_texts(*policies: str, seeds: int = 1) -> Block:
    """Short runs of MiniLM whose learning rates are chosen on TREC."""
    return Block(("minilm-l6",), _TEXTS, (1,), policies, seeds, _SHORT_TEXT, choose_on="trec", choosing_epochs=1)


#: On one cell.
_ONE: Final[_Where] = {"networks": _THREE[:1], "data": ("food10",)}
_WITH_NORMS: Final[_Where] = {"networks": ("mbv2-w0.35 with norms",), "data": ("food10",)}

PRESETS: Final[Mapping[str, tuple[Block, ...]]] = {
    "quick": (Block(_THREE[:1], ("food10",), (0,), ("trady", "medyate", "solver", "solver SinkGD"), 2, _SHORT),),
    "desk": (
        _on_texts(
            "trady AdamW",
            "s-det-rgn AdamW",
            "solver E=16 AdamW",
            "solver weighted AdamW",
            "solver weighted E=16 AdamW",
        ),
        _on_pictures("trady", "medyate", "solver"),
        _on_pictures("solver E=16"),
        _on_pictures(*_VARIED, **_ONE, fixed_rate=0.01),
        _on_pictures(*_AS_TRADY, **_ONE, fixed_rate=0.02),
        _on_pictures("trady", "medyate", "solver", seeds=2),
        _on_pictures("solver AdamW", seeds=2),
        _on_pictures(*_PUBLISHED, **_ONE),
        _on_pictures("trady", "medyate", "solver", "solver AdamW", data=("catdog",)),
        _on_pictures("trady", "solver", **_ONE, budgets=(1, 2)),
        _on_pictures("trady", **_WITH_NORMS),
        _on_pictures(
            "full, norms train", "trady, norms train", "solver, norms train", **_WITH_NORMS, rates=(0.02, 0.05, 0.125)
        ),
        _on_pictures("solver SinkGD", "trady SinkGD", seeds=2),
        _on_pictures("solver SinkGD", "trady SinkGD", data=("catdog",)),
        _on_texts(
            "s-det-rgn SinkGD",
            "trady SinkGD",
            "solver SinkGD",
            "solver weighted SinkGD",
            "solver weighted E=16 SinkGD",
            seeds=3,
        ),
        _on_texts("s-det-rgn", "trady", "solver", "solver weighted", "d-det-rgn AdamW", "head AdamW"),
        _on_texts("s-det-rgn", seeds=3),
        _on_pictures(*_STATIC_OR_NOT),
        _on_texts(
            "LoRA r=2 AdamW",
            "trady AdamW",
            "s-det-rgn AdamW",
            "solver weighted AdamW",
            "solver weighted E=16 AdamW",
            seeds=3,
        ),
        _on_pictures("LoRA r=2 AdamW", "solver momentum"),
        _on_pictures("medyate SinkGD"),
        _on_pictures("full SinkGD", "head SinkGD", **_ONE),
        _on_pictures("trady", "solver", "solver SinkGD", networks=("efficientnet-lite0",), data=("food10",)),
        _on_pictures("solver 4 draws", "solver squared", "solver E=64", **_ONE),
        _on_pictures("solver E=16 SinkGD"),
        _on_pictures("trady momentum", "lara-trady", "su", "bias"),
    ),
    "paper": (
        Block(
            _THREE,
            (*_PICTURES, "cifar10", "cifar100", "flowers102", "pets", "food101", "cub", "vww"),
            (0, 1, 2),
            (*_PUBLISHED, "solver", "solver SinkGD", "trady SinkGD", "solver E=16", "solver AdamW"),
            3,
            _LONG,
            choosing_epochs=5,
        ),
        Block(_THREE, _PICTURES, (0,), _ALSO, 3, _LONG, choosing_epochs=5),
        Block(
            ("efficientnet-lite0",),
            _PICTURES,
            (0, 1),
            ("trady", "medyate", "solver"),
            3,
            replace(_LONG, size=224),
            choosing_epochs=5,
        ),
        Block(
            ("minilm-l6",),
            _TEXTS,
            (0, 1, 2),
            tuple(name for name in POLICIES if name.endswith(("AdamW", "SinkGD"))),
            3,
            Recipe(64, 5, 50_000),
            choosing_epochs=1,
        ),
    ),
}
