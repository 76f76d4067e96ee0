"""From a model and a budget to a Plan."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from trady.planner.costs import RefinedTable, StepMemory, build_cost_table
from trady.planner.errors import PlanError
from trady.planner.ledger import FORWARD_CONVOLUTIONS, CostTable
from trady.planner.models import (
    Inputs,
    LossFunction,
    batch_size_of,
    fingerprint,
    input_tensors,
    is_on_meta,
    tensor_lines,
)
from trady.planner.options import (
    DEFAULT_OPTIMIZER,
    DType,
    Inclusion,
    MemoryFormat,
    NormMode,
    OptimizerKind,
    Scope,
    Strategy,
    choose,
    read_patterns,
)
from trady.planner.plan import HeadRecord, ModelRecord, PictureRecord, Plan, PriorityRecord, Settings, TensorSpec
from trady.planner.planning.replanning import with_first_draw
from trady.planner.planning.requests import Request
from trady.planner.planning.selection import (
    candidate_layers,
    check_some_layer_fits,
    choose_channels,
    priorities_of,
    scheme_counts_of,
)
from trady.planner.priorities import (
    TRUST,
    Priorities,
    PrioritySource,
    priorities_without_data,
)
from trady.planner.sampling import draw
from trady.planner.tracing import Layer, Trace, trace
from trady.planner.units import parse_bytes

#: Concentration of the norms from which drawing by norm is suggested: MiniLM has 0.43, the papers' convolutional
#: networks 0.09 to 0.14.
_CONCENTRATED: Final = 1 / 3


@dataclass(frozen=True)
class ModelSource:
    """How a model came to be, for the plan's record.

    Args:
        source: What was loaded, as typed; the class by default.
        arch: Factory that built the module of a state dict.
        replaced_classes: Outputs of the head that was put in place of the model's own.
        has_weights: Whether the weights are trained ones; gradients of random weights say little.
        pictures: How pictures become inputs; ``None`` for other inputs.
    """

    source: str = ""
    arch: str = ""
    replaced_classes: int | None = None
    has_weights: bool = True
    pictures: PictureRecord | None = None


def make_plan(
    model: nn.Module,
    inputs: Inputs,
    *,
    budget: int | str,
    scope: Scope | str = Scope.UPDATE,
    batch_size: int | None = None,
    optimizer: OptimizerKind | str = DEFAULT_OPTIMIZER,
    epochs: int = 50,
    strategy: Strategy | str = Strategy.SOLVER,
    priorities: Priorities | Callable[[], Priorities] | None = None,
    loss: LossFunction | None = None,
    targets: Any = None,
    norm: NormMode | str = NormMode.FROZEN,
    dtype: DType | str | None = None,
    amp: DType | str | None = None,
    device: str = "cpu",
    memory_format: MemoryFormat | str = MemoryFormat.CONTIGUOUS,
    head: str = "auto",
    train: str | Sequence[str] = (),
    train_bias: bool = False,
    only: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    max_depth: int | None = None,
    max_backward_macs: int | None = None,
    min_channels: int = 1,
    horizon: float | None = None,
    inclusion: Inclusion | str = Inclusion.UNIFORM,
    scheme: Mapping[str, float] | str | None = None,
    source: ModelSource | None = None,
    traced: Trace | None = None,
    progress: Callable[[str], None] | None = None,
) -> Plan:
    """Choose what to train within a budget.

    Args:
        model: The module, its head already the wanted one (:func:`trady.planner.models.heads.replace_head`).
        inputs: Example inputs: a tensor ``[B, ...]``, positional arguments, or keyword arguments.
        budget: Bytes, or text such as ``"256KB"``.
        scope: What the budget holds: ``"update"`` (the drawn channels' own memory), ``"training"`` (all that
            training adds to inference's weights) or ``"peak"`` (the most that is live at any moment of a step).
        batch_size: Samples of a micro-batch; by default those of ``inputs``.
        optimizer: ``"sinkgd"``, ``"sgd"``, ``"momentum"``, ``"adam"`` or ``"adamw"``.
        epochs: Planned epochs: the value of a layer looks ahead over at most so many draws.
        strategy: ``"solver"``, or one of the papers' by name.
        priorities: Gradient norms, or a function that measures them, called once the budget is known to train
            something; by default measured on synthetic inputs, uniform where nothing can be measured.
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
        horizon: Draws the solver's value looks ahead; 4 by default. The more, the more layers share the budget; 1
            prefers nothing but the largest norms.
        inclusion: ``"uniform"`` draws the channels of a layer alike, ``"weighted"`` those with larger norms more often:
            for layers whose norm lies in a few channels, as transformers' does.
        scheme: For ``su``: layer name -> ratio, or the name of a published scheme.
        source: Record of how the model was built.
        traced: A trace of this very model, to save tracing it again; norm mode, types, device, layout and head are
            then the trace's.
        progress: Called with a line of text before each stage.

    Raises:
        BudgetError: The budget trains no layer; the smallest that does is named.
        PlanError: Options contradict each other, or leave no layer to train.
        TracingError: The step cannot be followed.
    """
    request = Request(
        budget_bytes=parse_bytes(budget),
        scope=choose(Scope, scope, "Scope"),
        optimizer=choose(OptimizerKind, optimizer, "Optimizer"),
        strategy=choose(Strategy, strategy, "Strategy"),
        dtype=None if dtype is None else choose(DType, dtype, "Element type"),
        epochs=epochs,
        min_channels=min_channels,
        max_backward_macs=max_backward_macs,
        horizon=horizon,
        inclusion=choose(Inclusion, inclusion, "Inclusion"),
    )
    request.check(scheme)
    say = progress or _silent
    size = batch_size_of(inputs) if batch_size is None else batch_size
    if size < 1:
        raise PlanError(f"Batch size must be 1 or more, got {size}.")
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
            train=read_patterns(train),
            batch_sizes=(size,),
        )
    _check_same_model(traced, model)
    traced = traced.at(size)
    layers = candidate_layers(traced, read_patterns(only), read_patterns(exclude), max_depth)
    say("Following what the step releases")
    tables = _tables(model, traced, layers, request, train_bias)
    check_some_layer_fits(tables, request)
    convolutions = [layer.name for layer in traced.layers if layer.kind in FORWARD_CONVOLUTIONS]
    counts = scheme_counts_of(request, tables, scheme, convolutions)
    origin = source or ModelSource()
    if priorities is None:
        say("Finding priorities without data")
        priorities = priorities_without_data(model, inputs, traced, loss, has_weights=origin.has_weights)
    elif callable(priorities):
        priorities = priorities()
    found = priorities_of(layers, priorities)
    say("Choosing layers and channels")
    chosen = choose_channels(request, tables, found, model, counts)
    settings = _settings(request, traced, train_bias)
    plan = Plan(
        model=_model_record(model, inputs, traced, origin),
        settings=settings,
        strategy=chosen.strategy,
        priorities=_priority_record(priorities),
        solver=chosen.solver,
        counts=chosen.counts,
        ledger=tables.ledger.of(chosen.counts),
        norms=tuple(_short(layer.channel_norms) for layer in found),
        table=tables.table,
        not_drawn=traced.not_drawn,
        unaccounted=traced.unaccounted,
        notes=_notes(traced, priorities, settings, tables.note) + _advice(request, priorities),
    )
    return plan if request.strategy is Strategy.SOLVER else _with_first_draw(plan, tables)


def _tables(
    model: nn.Module, traced: Trace, layers: Sequence[Layer], request: Request, train_bias: bool
) -> RefinedTable:
    """The candidate layers' costs; kernels can be measured unless the weights have no memory."""

    def build(memory: StepMemory | None) -> CostTable:
        return build_cost_table(
            traced, layers, optimizer=request.optimizer, dtype=request.dtype, train_bias=train_bias, memory=memory
        )

    return RefinedTable(traced, build, measure=not is_on_meta(model))


def _priority_record(priorities: Priorities) -> PriorityRecord:
    return PriorityRecord(
        source=priorities.source,
        origin=priorities.origin,
        num_batches=priorities.num_batches,
        tail_index=priorities.tail_index,
        digest=priorities.digest,
    )


def _check_same_model(traced: Trace, model: nn.Module) -> None:
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    known = {
        storage.name: storage.tensor_shape for storage in traced.dense_step.storages if storage.kind == "parameter"
    }
    differing = sorted(name for name in shapes.keys() | known.keys() if shapes.get(name) != known.get(name))
    if differing:
        raise PlanError(
            f"The trace is of another model: {len(differing)} parameters differ, {differing[0]!r} first "
            f"({known.get(differing[0])} in the trace, {shapes.get(differing[0])} in the model). Trace this model."
        )


def _settings(request: Request, traced: Trace, train_bias: bool) -> Settings:
    """How the traced step is run; int8 is an accounting of a float32 trace."""
    step = traced.settings
    return Settings(
        budget_bytes=request.budget_bytes,
        scope=request.scope,
        batch_size=traced.batch_size,
        epochs=request.epochs,
        optimizer=request.optimizer,
        norm=step.norm,
        dtype=DType.INT8 if request.dtype is DType.INT8 else _dtype_named(step.dtype),
        amp=_dtype_named(step.amp),
        device=step.device,
        memory_format=step.memory_format,
        train_bias=train_bias,
        train=tuple(sorted(traced.train_patterns)),
        torch_version=torch.__version__,
    )


def _dtype_named(dtype: torch.dtype | None) -> DType | None:
    return None if dtype is None else DType(str(dtype).removeprefix("torch."))


def _with_first_draw(plan: Plan, tables: RefinedTable) -> Plan:
    """Counts, value and ledger of the first epoch, for strategies whose draw is not the solver's."""
    first = draw(plan, 0)
    while tables.refine(first.counts(plan.table)):
        plan = plan.model_copy(update={"table": tables.table})
        first = draw(plan, 0)
    return with_first_draw(plan)


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
        pictures=source.pictures,
        head=HeadRecord(layers=traced.head_names, classes=source.replaced_classes),
        loss=traced.loss_name,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        fingerprint=fingerprint(model),
        tensors=tensor_lines(model),
    )


def _notes(traced: Trace, priorities: Priorities, settings: Settings, peak_note: str) -> tuple[str, ...]:
    notes = [f"Priorities {TRUST[priorities.source]}."]
    if not traced.head_names:
        notes.append("No head was found: nothing but the drawn channels trains. Name it with --head.")
    if settings.device == "cuda" and not torch.cuda.is_available():
        notes.append("Planned for CUDA without a CUDA device: kernels there may keep other workspaces.")
    if settings.dtype is DType.INT8:
        notes.append("int8 is accounting: PyTorch trains in floating point.")
    return tuple([*notes, peak_note] if peak_note else notes)


def _advice(request: Request, priorities: Priorities) -> tuple[str, ...]:
    """What the norms suggest that was not asked for."""
    is_uniform = request.strategy is Strategy.SOLVER and request.inclusion is Inclusion.UNIFORM
    share = priorities.concentration
    if not is_uniform or priorities.source is PrioritySource.UNIFORM or share < _CONCENTRATED:
        return ()
    return (
        f"The largest hundredth of the channels of wide layers hold {share:.0%} of their squared gradient norm: draw "
        "them more often with --inclusion weighted (docs/accuracy.md).",
    )


def _silent(_: str) -> None:
    return None
