"""One run of the accuracy benchmark: plan, train through the engine, measure the bytes, score."""

import hashlib
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn

from benchmarks.accuracy.lora import adapted
from benchmarks.accuracy.tasks import CACHE, NETWORKS, Task, open_task
from trady.engine import Engine
from trady.engine.optim import make_optimizer
from trady.engine.runtime import autocast
from trady.engine.trainer import evaluate, learning_rate_at
from trady.planner import Plan, calibrate, make_plan
from trady.planner.files import write_atomically
from trady.planner.ledger import BatchedLedger
from trady.planner.models import Batch, call_model, fit_head, replace_head
from trady.planner.options import DType, OptimizerKind, Scope, Strategy
from trady.planner.priorities import Priorities

_HEAD: Final = "classifier"
_CALIBRATION_BATCHES: Final = 16
_NORM_BATCHES: Final = 8
_EVALUATED_AT_ONCE: Final = 50
#: Policies whose bytes follow from what they train, and a budget that whole networks fit into.
_UNBOUNDED: Final = ("full", Strategy.SU)
_EVERYTHING: Final = "1TB"
#: Steps that are only timed change next to nothing.
_NO_RATE: Final = 1e-6


@dataclass(frozen=True)
class Policy:
    """What trains, by name.

    Args:
        name: As the tables show it.
        strategy: The planner's strategy; ``head``, ``bias`` and ``full`` are no strategies but bounds, ``lora`` is
            peft's.
        plan: Further options of ``make_plan``; of ``lora``, the rank.
        value: What a channel is worth to the solver: its gradient ``norm``, or the ``square`` of it.
        optimizer: What trains; the plan is charged for its state.
        draws_per_epoch: Draws in each epoch; 0 for one draw that stays.
    """

    name: str
    strategy: str
    plan: Mapping[str, Any] = field(default_factory=dict)
    value: str = "norm"
    optimizer: OptimizerKind = OptimizerKind.SGD
    draws_per_epoch: int = 1


@dataclass(frozen=True)
class Recipe:
    """How long and how fast.

    Args:
        size: Pixels of a side, or tokens of a text.
        epochs: Epochs, each ending in a draw.
        samples: Samples of an epoch, at random from the training data.
        batch_size: Samples of an optimizer step.
        micro_batch: Samples the bytes are planned and measured for; gradients of so many are accumulated.
        warmup: Epochs of warm-up.
    """

    size: int
    epochs: int
    samples: int
    batch_size: int = 32
    micro_batch: int = 1
    warmup: float = 0.5


@dataclass(frozen=True)
class Cell:
    """One run.

    Args:
        network: Its name.
        data: Its name.
        budget: Elements, as the papers count.
        policy: What trains.
        recipe: How.
        rate: Peak learning rate.
        seed: Of draws, order and augmentation.
        choosing: Trains without a part of the training data, which it is scored on: to choose a learning rate.
    """

    network: str
    data: str
    budget: int
    policy: Policy
    recipe: Recipe
    rate: float
    seed: int = 0
    choosing: bool = False

    @property
    def key(self) -> str:
        """What tells this run from any other."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Contender:
    """What a policy trains.

    Args:
        model: Called in training: the engine, or the model itself.
        optimizer: Steps what trains.
        row: What the results say of it.
        draw: Draws the channels of a number of the run; ``None`` where nothing is drawn.
        amp: Autocast element type.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    row: Mapping[str, Any]
    draw: Callable[[int], object] | None = None
    amp: DType | None = None

    def step(self, batch: Batch) -> None:
        """One optimizer step."""
        with autocast(torch.device("cpu"), self.amp):
            loss = F.cross_entropy(call_model(self.model, batch.inputs), batch.targets)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def run(cell: Cell) -> dict[str, Any]:
    """Train and score; a row of the results."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    task = open_task(NETWORKS[cell.network], cell.data, cell.recipe.size)
    if cell.choosing:
        task = task.held_out()
    contender = _contender(cell, task)
    seconds = _train(contender, cell, task)
    return {
        "network": cell.network,
        "data": cell.data,
        "budget_elements": cell.budget,
        "policy": asdict(cell.policy),
        "recipe": asdict(cell.recipe),
        "rate": cell.rate,
        "seed": cell.seed,
        "choosing": cell.choosing,
        **_scores(contender.model, task),
        **contender.row,
        "step_ms": round(1000 * seconds, 2),
        "seconds": round(time.perf_counter() - started, 1),
        "torch": torch.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "key": cell.key,
    }


def step_times(cells: Sequence[Cell], rounds: int) -> dict[str, float]:
    """Median time of an optimizer step of each cell's policy in milliseconds, one thread, the policies in turn.

    Args:
        cells: Runs of one network and task; none is trained to its end.
        rounds: Steps of each, on the same batch, after one to warm up.
    """
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {cell.policy.name: [] for cell in cells}
    with _larger_batches():
        steps = {cell.policy.name: _stepping(cell) for cell in cells}
        for _ in range(rounds):
            for name, step in steps.items():
                started = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - started)
    return {name: round(1000 * float(np.median(found)), 1) for name, found in seconds.items()}


def _stepping(cell: Cell) -> Callable[[], None]:
    """Takes one step of a policy, each time on the same batch; warmed up."""
    task = open_task(NETWORKS[cell.network], cell.data, cell.recipe.size)
    contender = _contender(replace(cell, rate=_NO_RATE), task)
    batch = task.batch(task.train, torch.arange(cell.recipe.batch_size))
    contender.model.train()
    contender.step(batch)
    return partial(contender.step, batch)


@contextmanager
def _larger_batches() -> Iterator[None]:
    """The bytes are those of a micro-batch. Norms are frozen, so its accumulated gradients are the whole batch's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A batch of")
        yield


def _contender(cell: Cell, task: Task) -> _Contender:
    """A policy on the pre-trained network with its fitted head, bytes measured, ready to train."""
    model = _with_head(cell, task)
    torch.manual_seed(cell.seed)
    return (_adapted if cell.policy.strategy == "lora" else _engaged)(cell, task, model)


def _engaged(cell: Cell, task: Task, model: nn.Module) -> _Contender:
    plan = _planned(cell, task, model)
    engine = Engine(model, plan, seed=cell.seed)
    row = {
        "layers": len(plan.chosen),
        "channels": sum(plan.counts),
        "value": plan.solver.value,
        **_measured(engine, task, cell),
    }
    optimizer = engine.register(make_optimizer(engine.parameters(), cell.policy.optimizer, learning_rate=cell.rate))
    assert optimizer is not None

    def draw(number: int) -> None:
        batches = None
        if cell.policy.strategy == Strategy.D_DET_RGN:
            batches = _random_batches(task, _NORM_BATCHES, cell.recipe.batch_size, seed=cell.seed + number)
        engine.resample(number, batches=batches)

    return _Contender(engine, optimizer, row, draw, plan.settings.amp)


def _adapted(cell: Cell, task: Task, model: nn.Module) -> _Contender:
    first = task.batch(task.train, torch.arange(cell.recipe.micro_batch))
    found = adapted(
        model,
        first,
        head=_HEAD,
        budget_bytes=4 * cell.budget,
        optimizer=OptimizerKind(cell.policy.optimizer),
        **cell.policy.plan,
    )
    trained = [parameter for parameter in found.model.parameters() if parameter.requires_grad]
    row: dict[str, Any] = {
        "layers": len(found.layers),
        "channels": 0,
        "value": None,
        "planned_update_bytes": found.update_bytes,
        "measured_update_bytes": found.update_bytes,
        "measured_training_bytes": found.training_bytes,
        "exceeded": [],
    }
    return _Contender(found.model, make_optimizer(trained, cell.policy.optimizer, learning_rate=cell.rate), row)


def _with_head(cell: Cell, task: Task) -> nn.Module:
    """The pre-trained network under a head fitted to the frozen features: where every run starts from."""
    model = task.network.build()
    replace_head(model, _HEAD, task.classes)
    path = CACHE / "heads" / f"{_trained_on(cell)}.st"
    if not path.exists():
        whole = len(task.train) // _EVALUATED_AT_ONCE
        fit_head(model, _HEAD, islice(task.batches(task.train, _EVALUATED_AT_ONCE), whole))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, save(model.get_submodule(_HEAD).state_dict()))
    model.get_submodule(_HEAD).load_state_dict(load_file(path))
    return model


def _trained_on(cell: Cell) -> str:
    """What heads and gradient norms depend on: runs that choose a rate do not see the part they are scored on."""
    return f"{cell.network}-{cell.data}-{cell.recipe.size}-{'part' if cell.choosing else 'all'}"


def _planned(cell: Cell, task: Task, model: nn.Module) -> Plan:
    policy, recipe = cell.policy, cell.recipe
    inputs = task.batch(task.train, torch.arange(recipe.micro_batch)).inputs
    options: dict[str, Any] = {
        "budget": _EVERYTHING if policy.strategy in _UNBOUNDED else 4 * cell.budget,
        "batch_size": recipe.micro_batch,
        "strategy": policy.strategy if policy.strategy in list(Strategy) else Strategy.SOLVER,
        "priorities": _worth(_priorities(cell, task, model), policy.value),
        "memory_format": "channels_last" if task.network.reads_pictures else "contiguous",
        "head": _HEAD,
        "optimizer": policy.optimizer,
    }
    bound: dict[str, Any] = {"train": "*bias"} if policy.strategy in ("full", "bias") else {}
    if policy.strategy == Strategy.SU:
        bound = _scheme(cell, model)
    plan = make_plan(model, inputs, **options | bound | dict(policy.plan))
    return _without_draws(plan) if policy.strategy in ("head", "bias") else plan


def _scheme(cell: Cell, model: nn.Module) -> dict[str, Any]:
    """MIT's scheme of the budget: ratios of the layers, and the biases of the last convolutions."""
    network = NETWORKS[cell.network]
    scheme, num_biases = network.schemes[network.budgets.index(cell.budget)]
    convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    return {"scheme": scheme, "train": [f"{name}.bias" for name in convolutions[-num_biases:]]}


def _without_draws(plan: Plan) -> Plan:
    """The same plan with nothing drawn: what always trains is left."""
    none = (0,) * len(plan.counts)
    return plan.model_copy(update={"counts": none, "ledger": BatchedLedger(plan.table).of(none)})


@cache
def _read_priorities(path: Path) -> Priorities:
    return Priorities.load(path)


def _priorities(cell: Cell, task: Task, model: nn.Module) -> Priorities:
    """Gradient norms on some of the training data, measured once for a network, task and size."""
    path = CACHE / "priorities" / f"{_trained_on(cell)}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        found = calibrate(model, _random_batches(task, _CALIBRATION_BATCHES, 16, seed=0), origin=cell.data)
        found.save(path)
    return _read_priorities(path)


def _random_batches(task: Task, number: int, size: int, seed: int) -> Iterator[Batch]:
    order = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(seed))
    return (task.batch(task.train, index) for index in order[: number * size].split(size))


def _worth(priorities: Priorities, value: str) -> Priorities:
    if value == "norm":
        return priorities
    layers = [
        layer.model_copy(update={"channel_norms": tuple(norm**2 for norm in layer.channel_norms)})
        for layer in priorities.layers
    ]
    return Priorities.model_validate(priorities.model_dump(exclude={"layers"}) | {"layers": tuple(layers)})


def _measured(engine: Engine, task: Task, cell: Cell) -> dict[str, Any]:
    """Bytes of a real step with the first draw, beside the planned ones."""
    first = task.batch(task.train, torch.arange(cell.recipe.micro_batch))
    found = engine.measure(first.inputs, first.targets)
    return {
        "planned_update_bytes": engine.ledger.scopes.update,
        "always_trained_bytes": engine.ledger.lines.always_trained,
        "measured_update_bytes": found.scope_bytes(Scope.UPDATE),
        "measured_training_bytes": found.scope_bytes(Scope.TRAINING),
        "measured_peak_bytes": found.scope_bytes(Scope.PEAK),
        "exceeded": [text for text in found.exceeded if not text.startswith("peak")],
    }


def _train(contender: _Contender, cell: Cell, task: Task) -> float:
    """Train as the recipe says; returns the median time of a step in seconds."""
    recipe, generator = cell.recipe, torch.Generator().manual_seed(cell.seed)
    steps = recipe.samples // recipe.batch_size
    total = recipe.epochs * steps
    steps_of_draw = steps // cell.policy.draws_per_epoch if cell.policy.draws_per_epoch else total
    order = torch.empty(0, dtype=torch.int64)
    seconds = []
    contender.model.train()
    with _larger_batches():
        for step in range(total):
            if contender.draw and step % steps_of_draw == 0:
                contender.draw(step // steps_of_draw)
            if len(order) < recipe.batch_size:
                order = torch.cat([order, torch.randperm(len(task.train), generator=generator)])
            index, order = order[: recipe.batch_size], order[recipe.batch_size :]
            batch = task.batch(task.train, index, generator)
            for group in contender.optimizer.param_groups:
                group["lr"] = learning_rate_at(
                    step, peak=cell.rate, warmup_steps=recipe.warmup * steps, total_steps=total
                )
            started = time.perf_counter()
            contender.step(batch)
            seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


def _scores(model: nn.Module, task: Task) -> dict[str, float | None]:
    """Accuracy and mean cross-entropy on the test data."""

    def forward(module: nn.Module, batch: Batch) -> tuple[Any, Tensor]:
        logits = call_model(module, batch.inputs)
        return logits, F.cross_entropy(logits, batch.targets)

    found = evaluate(model, task.batches(task.test, _EVALUATED_AT_ONCE), forward)
    return {"accuracy": found.accuracy, "loss": round(found.loss, 5)}
