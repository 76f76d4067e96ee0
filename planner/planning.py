"""From a model and a budget to a Plan."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

import ortools
import torch
from torch import Tensor, nn

from trady.planner.calibration import (
    available_bytes,
    calibrate,
    calibration_peak_bytes,
    synthetic_batches,
    uniform_priorities,
)
from trady.planner.costing import build_cost_table
from trady.planner.errors import BudgetError, PlanError, StrategyError, TradyError
from trady.planner.layers import Layer
from trady.planner.ledger import CostTable, Ledger
from trady.planner.options import DType, MemoryFormat, NormMode, OptimizerKind, Scope, Strategy, choose
from trady.planner.plan import (
    HeadRecord,
    ModelRecord,
    Plan,
    PriorityRecord,
    Settings,
    SolverRecord,
    StrategyRecord,
    TensorSpec,
)
from trady.planner.priorities import TRUST, LayerPriority, Priorities, PrioritySource
from trady.planner.schedule import draw
from trady.planner.schemes import scheme_named
from trady.planner.solving import Limits, Selection, SolverStatus, coverage_value, solve
from trady.planner.strategies import STRATEGIES, LayerRule, eligible_layers, scheme_counts
from trady.planner.tracing import Trace, trace
from trady.planner.training_step import Inputs, LossFunction, batch_size_of, input_tensors
from trady.planner.units import format_bytes, parse_bytes

#: Draws the solver's value looks ahead: the best of the first experiments, see DESIGN and docs.
DEFAULT_HORIZON: Final = 4.0
_SYNTHETIC_BATCHES: Final = 4


@dataclass(frozen=True)
class ModelSource:
    """How a model came to be, for the plan's record.

    Args:
        source: What was loaded, as typed; the class by default.
        arch: Factory that built the module of a state dict.
        replaced_classes: Outputs of the head that was put in place of the model's own.
        has_weights: Whether the weights are trained ones; gradients of random weights say little.
    """

    source: str = ""
    arch: str = ""
    replaced_classes: int | None = None
    has_weights: bool = True


def make_plan(
    model: nn.Module,
    inputs: Inputs,
    *,
    budget: int | str,
    scope: Scope | str = Scope.UPDATE,
    batch_size: int | None = None,
    optimizer: OptimizerKind | str = OptimizerKind.SGD,
    epochs: int = 50,
    strategy: Strategy | str = Strategy.SOLVER,
    priorities: Priorities | None = None,
    loss: LossFunction | None = None,
    targets: Any = None,
    norm: NormMode | str = NormMode.FROZEN,
    dtype: DType | str | None = None,
    amp: DType | str | None = None,
    device: str = "cpu",
    memory_format: MemoryFormat | str = MemoryFormat.CONTIGUOUS,
    head: str = "auto",
    train: Sequence[str] = (),
    train_bias: bool = False,
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
    max_depth: int | None = None,
    max_backward_macs: int | None = None,
    min_channels: int = 1,
    horizon: float | None = None,
    scheme: Mapping[str, float] | str | None = None,
    source: ModelSource | None = None,
    traced: Trace | None = None,
    progress: Callable[[str], None] | None = None,
) -> Plan:
    """Choose what to train within a budget.

    Args:
        model: The module, its head already the wanted one (:func:`trady.planner.heads.replace_head`).
        inputs: Example inputs: a tensor ``[B, ...]``, positional arguments, or keyword arguments.
        budget: Bytes, or text such as ``"256KB"``.
        scope: What the budget holds: ``"update"`` (the drawn channels' own memory) or ``"training"`` (all that
            training adds to inference's weights).
        batch_size: Samples of a micro-batch; by default those of ``inputs``.
        optimizer: ``"sgd"``, ``"momentum"``, ``"adam"`` or ``"adamw"``.
        epochs: Planned epochs: the value of a layer looks ahead over at most so many draws.
        strategy: ``"solver"``, or one of the papers' by name.
        priorities: Gradient norms; measured on synthetic inputs by default, uniform where nothing can be measured.
        loss: ``loss(outputs, targets)``; by default the model's own, else cross-entropy.
        targets: Example targets for ``loss``.
        norm: ``"frozen"`` or ``"train"``.
        dtype: Element type to cast the model to; ``"int8"`` is accounting in scope ``update``.
        amp: Autocast element type.
        device: Device planned for.
        memory_format: ``"contiguous"`` or ``"channels_last"``.
        head: ``"auto"``, ``"none"`` or a layer's name: what is always trained and never drawn.
        train: Patterns of parameters that are always trained too.
        train_bias: Train the bias of each drawn layer.
        only: Patterns of layer names to draw from.
        exclude: Patterns of layer names not to draw from.
        max_depth: Draw from the last so many layers only.
        max_backward_macs: Most multiply-adds of a backward pass.
        min_channels: Fewest channels of a chosen layer.
        horizon: Draws the solver's value looks ahead; 4 by default, 1 prefers nothing but the largest norms.
        scheme: For ``su``: layer name -> ratio, or the name of a published scheme.
        source: Record of how the model was built.
        traced: A trace of this very model with these settings, to save tracing it again.
        progress: Called with a line of text before each stage.

    Raises:
        BudgetError: The budget trains no layer; the smallest that does is named.
        PlanError: Options contradict each other, or leave no layer to train.
        TracingError: The step cannot be followed.
    """
    request = _Request(
        budget_bytes=parse_bytes(budget),
        scope=choose(Scope, scope, "Scope"),
        optimizer=choose(OptimizerKind, optimizer, "Optimizer"),
        strategy=choose(Strategy, strategy, "Strategy"),
        dtype=None if dtype is None else choose(DType, dtype, "Element type"),
        epochs=epochs,
        min_channels=min_channels,
    )
    request.check()
    say = progress or _silent
    size = batch_size or batch_size_of(inputs)
    if traced is None:
        say("Tracing one training step")
        traced = trace(
            model,
            inputs,
            norm=norm,
            loss=loss,
            targets=targets,
            dtype=dtype,
            amp=amp,
            device=device,
            memory_format=memory_format,
            head=head,
            train=tuple(train),
            batch_sizes=(size,),
        )
    traced = traced.at(size)
    origin = source or ModelSource()
    if priorities is None:
        say("Measuring gradient norms on synthetic inputs")
        priorities = _without_data(model, inputs, traced, loss, origin.has_weights)
    layers = _candidates(traced, priorities, only, exclude, max_depth)
    table = build_cost_table(traced, layers, optimizer=request.optimizer, dtype=request.dtype, train_bias=train_bias)
    found = [priorities.by_weight[layer.weight_name] for layer in layers]
    settings = Settings(
        budget_bytes=request.budget_bytes,
        scope=request.scope,
        batch_size=size,
        epochs=epochs,
        optimizer=request.optimizer,
        norm=traced.settings.norm,
        dtype=request.dtype,
        amp=None if amp is None else choose(DType, amp, "Autocast type"),
        device=device,
        memory_format=traced.settings.memory_format,
        train_bias=train_bias,
        train=tuple(train),
        torch_version=torch.__version__,
    )
    say("Choosing layers and channels")
    draft = _Draft(table, found, request, model)
    solved = request.strategy is Strategy.SOLVER
    chosen = draft.solved(horizon, max_backward_macs) if solved else draft.by_rule(scheme)
    plan = Plan(
        model=_model_record(model, inputs, traced, origin),
        settings=settings,
        strategy=chosen.strategy,
        priorities=PriorityRecord(
            source=priorities.source,
            origin=priorities.origin,
            num_batches=priorities.num_batches,
            tail_index=priorities.tail_index,
            digest=priorities.digest,
        ),
        solver=chosen.solver,
        counts=chosen.counts,
        ledger=table.ledger(chosen.counts),
        norms=tuple(_short(layer.channel_norms) for layer in found),
        table=table,
        not_drawn=traced.not_drawn,
        unaccounted=traced.unaccounted,
        notes=_notes(traced, priorities, settings),
    )
    return plan if solved else _with_first_draw(plan)


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the names, shapes and types of a model's parameters and buffers."""
    lines = [f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in sorted(model.state_dict().items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class _Request:
    budget_bytes: int
    scope: Scope
    optimizer: OptimizerKind
    strategy: Strategy
    dtype: DType | None
    epochs: int
    min_channels: int

    def check(self) -> None:
        problems = []
        if self.scope is Scope.PEAK:
            problems.append(
                "Scope 'peak' is not predicted yet: the workspace line needs the engine's measurements. "
                "Use 'training', which leaves out weights, the batch and the workspace."
            )
        if self.dtype is DType.INT8 and self.scope is not Scope.UPDATE:
            problems.append("Element type 'int8' is accounting for scope 'update' only. Use --scope update.")
        if self.epochs < 1:
            problems.append(f"Epochs must be 1 or more, got {self.epochs}.")
        if self.min_channels < 1:
            problems.append(f"Fewest channels of a layer must be 1 or more, got {self.min_channels}.")
        if problems:
            raise PlanError(" ".join(problems))


@dataclass(frozen=True)
class _Chosen:
    strategy: StrategyRecord
    solver: SolverRecord
    counts: tuple[int, ...]


@dataclass(frozen=True)
class _Draft:
    """The choice of layers and channels, before it is a plan."""

    table: CostTable
    priorities: Sequence[LayerPriority]
    request: _Request
    model: nn.Module

    def solved(self, horizon: float | None, max_backward_macs: int | None) -> _Chosen:
        looked_ahead = min(DEFAULT_HORIZON if horizon is None else horizon, float(self.request.epochs))
        limits = Limits(
            self.request.budget_bytes,
            self.request.scope,
            min_channels=self.request.min_channels,
            max_backward_macs=max_backward_macs,
            horizon=looked_ahead,
        )
        selection = solve(self.table, [layer.norm_sum for layer in self.priorities], limits)
        if selection.status is SolverStatus.INFEASIBLE:
            raise _too_small(self.table, self.request, max_backward_macs)
        strategy = StrategyRecord(name=Strategy.SOLVER, eligible=tuple(range(len(self.table.layers))))
        return _Chosen(strategy, _solver_record(selection, looked_ahead), selection.counts)

    def by_rule(self, scheme: Mapping[str, float] | str | None) -> _Chosen:
        rule = STRATEGIES[self.request.strategy]
        nothing = (0,) * len(self.table.layers)
        solver = SolverRecord(status="drawn", value=0.0, bound=1.0, gap=0.0, horizon=1.0, ortools_version="")
        if rule.layers is LayerRule.SCHEME:
            counts = self._scheme_counts(scheme)
            eligible = tuple(index for index, count in enumerate(counts) if count)
            channels = {
                self.table.layers[index].name: largest_weights(self.model, self.table, index, counts[index])
                for index in eligible
            }
            record = StrategyRecord(name=self.request.strategy, eligible=eligible, fixed_channels=channels)
            return _Chosen(record, solver, tuple(counts))
        pool = eligible_layers(rule.layers, self.table, self.priorities, self.request.budget_bytes)
        return _Chosen(StrategyRecord(name=self.request.strategy, eligible=tuple(pool)), solver, nothing)

    def _scheme_counts(self, scheme: Mapping[str, float] | str | None) -> list[int]:
        if scheme is None:
            raise StrategyError(
                "Strategy 'su' needs a scheme: layer names and ratios in a JSON file, or a published name such as "
                "'mbv2-49kb' (--scheme)."
            )
        if isinstance(scheme, str):
            published = scheme_named(scheme)
            convolutions = [layer for layer in self.table.layers if "conv" in layer.kind]
            missing = [place for place in published.layers if place >= len(convolutions)]
            if missing:
                raise StrategyError(
                    f"Scheme {scheme!r} trains convolution {missing[0]}, but the model has {len(convolutions)} of them."
                )
            scheme = {
                convolutions[place].name: ratio for place, ratio in zip(published.layers, published.ratios, strict=True)
            }
        counts = scheme_counts(self.table, scheme)
        needed = self.table.scope_bytes(counts, self.request.scope)
        if needed > self.request.budget_bytes:
            raise BudgetError(
                f"Scheme needs {needed} B in scope {self.request.scope.value!r}, above the budget of "
                f"{self.request.budget_bytes} B. Raise --budget to {needed}B."
            )
        return counts


def largest_weights(model: nn.Module, table: CostTable, index: int, count: int) -> tuple[int, ...]:
    """MIT's choice inside a layer: the input channels whose weights have the largest norm.

    Source:
        Sparse Update (Lin et al., NeurIPS 2022).
    """
    layer = table.layers[index]
    weight = model.get_parameter(layer.weight_name).detach().float()
    order = _weight_norms(weight, layer.channel_dim, layer.groups).argsort(descending=True, stable=True)
    return tuple(sorted(order[:count].tolist()))


def _weight_norms(weight: Tensor, channel_dim: int, groups: int) -> Tensor:
    if groups > 1 and channel_dim == 1:
        return weight.reshape(groups, -1, weight.shape[1], weight[0, 0].numel()).square().sum(dim=(1, 3)).flatten()
    return weight.square().sum(dim=[dim for dim in range(weight.dim()) if dim != channel_dim])


def _with_first_draw(plan: Plan) -> Plan:
    """Counts, value and ledger of the first epoch, for strategies that fill the budget anew each epoch."""
    first = draw(plan, 0)
    counts = first.counts(plan.table)
    if not any(counts):
        request = _Request(
            plan.settings.budget_bytes, plan.settings.scope, plan.settings.optimizer, plan.strategy.name, None, 1, 1
        )
        raise _too_small(plan.table, request, None, plan.strategy.eligible)
    total = sum(plan.layer_values)
    value = sum(
        norms * coverage_value(count / layer.in_channels, 1.0)
        for norms, count, layer in zip(plan.layer_values, counts, plan.table.layers, strict=True)
    )
    solver = plan.solver.model_copy(update={"value": value / total if total else 0.0})
    return plan.model_copy(update={"counts": counts, "ledger": first.ledger(plan.table), "solver": solver})


def _candidates(
    traced: Trace, priorities: Priorities, only: Sequence[str], exclude: Sequence[str], max_depth: int | None
) -> list[Layer]:
    layers = list(traced.layers)
    if not layers:
        raise PlanError(
            "The model has no layer to draw from: no convolution or linear operation beside the head uses a parameter "
            "that requires a gradient as its weight." + _first_reason(traced)
        )
    if max_depth is not None:
        if max_depth < 1:
            raise PlanError(f"Depth must be 1 layer or more, got {max_depth}.")
        layers = layers[-max_depth:]
    names = [layer.name for layer in layers]
    kept = [layer for layer in layers if (not only or _matches(layer.name, only)) and not _matches(layer.name, exclude)]
    if not kept:
        raise PlanError(
            f"No layer is left after --only {list(only)} and --exclude {list(exclude)}. "
            f"Layers are for instance: {', '.join(names[-5:])}."
        )
    missing = [layer.name for layer in kept if layer.weight_name not in priorities.by_weight]
    wrong = [
        layer.name
        for layer in kept
        if layer.weight_name in priorities.by_weight
        and len(priorities.by_weight[layer.weight_name].channel_norms) != layer.in_channels
    ]
    if missing or wrong:
        raise PlanError(
            f"The priorities are of another model: layers without matching norms: {', '.join((missing + wrong)[:5])}. "
            "Make them with trady-profile from this model."
        )
    return kept


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _first_reason(traced: Trace) -> str:
    for name, reason in traced.not_drawn.items():
        return f" For instance {name!r} {reason}."
    return ""


def _without_data(
    model: nn.Module, inputs: Inputs, traced: Trace, loss: LossFunction | None, has_weights: bool
) -> Priorities:
    """Gradients of synthetic inputs; uniform norms where there are no weights, no memory or no way to make a batch."""
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    available = available_bytes()
    too_large = available is not None and calibration_peak_bytes(traced) > available
    if on_meta or not has_weights or too_large or loss is not None:
        return uniform_priorities(traced)
    batches = synthetic_batches(model, inputs, _SYNTHETIC_BATCHES)
    return calibrate(
        model,
        batches,
        norm=NormMode.FROZEN,
        source=PrioritySource.SYNTHETIC,
        origin="normal noise, random targets",
    )


def _too_small(
    table: CostTable, request: _Request, max_backward_macs: int | None, eligible: Sequence[int] | None = None
) -> TradyError:
    """Which layer comes cheapest, and what it takes."""

    def least(index: int) -> int:
        counts = [0] * len(table.layers)
        counts[index] = min(request.min_channels, table.layers[index].in_channels)
        return table.scope_bytes(counts, request.scope)

    cheapest = min(eligible or range(len(table.layers)), key=least)
    layer, needed = table.layers[cheapest], least(cheapest)
    if needed <= request.budget_bytes:
        return PlanError(
            f"No layer fits --max-backward-macs {max_backward_macs} (a frozen pass needs "
            f"{table.backward_macs([0] * len(table.layers))} MACs). Raise it, or use --max-depth."
        )
    counts = [0] * len(table.layers)
    counts[cheapest] = min(request.min_channels, layer.in_channels)
    parts = _parts(table.ledger(counts), request.scope)
    channels = f"{counts[cheapest]} channel" + ("s" if counts[cheapest] > 1 else "")
    return BudgetError(
        f"Budget {format_bytes(request.budget_bytes)} trains no layer: the cheapest, {layer.name!r}, needs "
        f"{format_bytes(needed)} ({needed} B) for {channels} ({parts}). Raise --budget or lower --batch-size."
    )


def _parts(ledger: Ledger, scope: Scope) -> str:
    lines = ["saved_activations", "gradients", "optimizer_state", "draw_index"]
    if scope is Scope.TRAINING:
        lines += ["active_weights", "always_trained", "residuals"]
    amounts = ((name, getattr(ledger.lines, name)) for name in lines)
    return ", ".join(f"{name.replace('_', ' ')} {format_bytes(amount)}" for name, amount in amounts if amount)


def _solver_record(selection: Selection, horizon: float) -> SolverRecord:
    return SolverRecord(
        status="optimal" if selection.status is SolverStatus.OPTIMAL else "feasible",
        value=_rounded(selection.value),
        bound=_rounded(selection.bound),
        gap=_rounded(selection.gap),
        horizon=horizon,
        ortools_version=ortools.__version__,
    )


def _rounded(value: float) -> float:
    return float(f"{value:.9g}")


def _short(norms: tuple[float, ...]) -> tuple[float, ...] | float:
    return norms[0] if len(set(norms)) == 1 else norms


def _model_record(model: nn.Module, inputs: Inputs, traced: Trace, source: ModelSource) -> ModelRecord:
    named = inputs.items() if isinstance(inputs, Mapping) else enumerate(input_tensors(inputs))
    specs = tuple(
        TensorSpec(name=str(name), shape=tuple(tensor.shape[1:]), dtype=str(tensor.dtype).removeprefix("torch."))
        for name, tensor in named
        if isinstance(tensor, Tensor)
    )
    return ModelRecord(
        source=source.source or type(model).__name__,
        arch=source.arch,
        inputs=specs,
        head=HeadRecord(layers=traced.head_names, classes=source.replaced_classes),
        loss=traced.loss_name,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        fingerprint=fingerprint(model),
    )


def _notes(traced: Trace, priorities: Priorities, settings: Settings) -> tuple[str, ...]:
    notes = [f"Priorities {TRUST[priorities.source]}."]
    if not traced.head_names:
        notes.append("No head was found: nothing but the drawn channels trains. Name it with --head.")
    if settings.device == "cuda" and not torch.cuda.is_available():
        notes.append("Planned for CUDA without a CUDA device: kernels there may keep other workspaces.")
    if settings.dtype is DType.INT8:
        notes.append("int8 is accounting: PyTorch trains in floating point.")
    return tuple(notes)


def _silent(_: str) -> None:
    return None
