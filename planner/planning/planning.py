"""From a model and a budget to a Plan."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Required, Unpack, cast

import torch
from torch import Tensor, nn

from trady.planner.costs import MeasuredTable, StepMemory, build_cost_table, memory_of_step, settled
from trady.planner.errors import PlanError
from trady.planner.ledger import FORWARD_CONVOLUTIONS, CostTable
from trady.planner.models import (
    Inputs,
    StepKeywords,
    batch_size_of,
    dtype_name,
    fingerprint,
    input_tensors,
    is_on_meta,
    tensor_lines,
)
from trady.planner.options import (
    DType,
    Inclusion,
    OptimizerKind,
    Strategy,
    check_keywords,
    choose,
)
from trady.planner.plan import HeadRecord, ModelRecord, PictureRecord, Plan, PriorityRecord, Settings, TensorSpec
from trady.planner.planning.choice_options import BoundKeywords, ChoiceOptions
from trady.planner.planning.machines import this_machine
from trady.planner.planning.replanning import with_first_draw
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


class ChoiceKeywords(BoundKeywords, total=False):
    """What may be chosen: :class:`ChoiceOptions` as a user gives them."""

    budget: Required[int | str]
    optimizer: OptimizerKind | str
    strategy: Strategy | str
    inclusion: Inclusion | str
    scheme: Mapping[str, float] | str | None


class PlanKeywords(StepKeywords, ChoiceKeywords, total=False):
    """Everything that :func:`make_plan` takes beside the model and its inputs."""

    batch_size: int | None
    priorities: Priorities | Callable[[], Priorities] | None
    source: ModelSource | None
    traced: Trace | None
    progress: Callable[[str], None] | None


def make_plan(model: nn.Module, inputs: Inputs, **options: Unpack[PlanKeywords]) -> Plan:
    """Choose what to train within a budget.

    Args:
        model: The module, its head already the wanted one (:func:`trady.planner.models.heads.replace_head`).
        inputs: Example inputs: a tensor ``[B, ...]``, positional arguments, or keyword arguments.
        **options: ``budget``: bytes, or text such as ``"256KB"``; the fields of :class:`ChoiceOptions` say what it
            holds and what may be chosen.
            ``batch_size``: samples of a micro-batch; by default those of ``inputs``.
            ``norm``, ``loss``, ``targets``, ``dtype``, ``amp``, ``device``, ``memory_format``, ``head`` and ``train``:
            how the step is run, as for :func:`trady.planner.trace`; ``dtype="int8"`` is accounting in scope ``update``.
            ``priorities``: gradient norms, or a function that measures them, called once the budget is known to train
            something; by default measured on synthetic inputs, uniform where nothing can be measured.
            ``source``: record of how the model was built.
            ``traced``: a trace of this very model, to save tracing it again; how the step is run is then the trace's.
            ``progress``: called with a line of text before each stage.

    Returns:
        The plan: what trains, within which bytes, and everything it was made from.

    Raises:
        TypeError: The budget is missing, or a keyword is unknown.

    Error:
        BudgetError: The budget trains no layer; the smallest that does is named.
        PlanError: Options contradict each other, or leave no layer to train.
        TracingError: The step cannot be followed.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4))
        >>> plan = make_plan(net, torch.randn(2, 3, 8, 8), budget="4KB", optimizer="sgd")
        >>> plan.ledger.scopes.update <= 4000, sorted(plan.chosen)
        (True, ['0', '2'])
    """
    check_keywords("make_plan", options, PlanKeywords)
    if "budget" not in options:
        raise TypeError("make_plan() missing 1 required keyword-only argument: 'budget'")
    asked, say = ChoiceOptions.read(options), options.get("progress") or _silent
    given = options.get("dtype")
    dtype = None if given is None else choose(DType, given, "Element type")
    asked.check(dtype)
    # 1. What one step keeps, and the layers whose channels may be drawn.
    traced = _traced(model, inputs, options, say)
    layers = candidate_layers(traced, asked.only, asked.exclude, asked.max_depth)
    # 2. What every channel and operation costs; kernels are measured later, where they matter.
    say("Following what the step releases")
    tables = check_some_layer_fits(_tables(model, traced, layers, asked, dtype), asked)
    convolutions = [layer.name for layer in traced.layers if layer.kind in FORWARD_CONVOLUTIONS]
    counts, tables = scheme_counts_of(asked, tables, convolutions)
    # 3. What every channel is worth.
    source, priorities = options.get("source") or ModelSource(), options.get("priorities")
    if priorities is None:
        say("Finding priorities without data")
        loss = options.get("loss")
        priorities = priorities_without_data(model, inputs, traced, loss, has_weights=source.has_weights)
    elif callable(priorities):
        priorities = priorities()
    of_layers = priorities_of(layers, priorities)
    # 4. The choice, and the plan that records it.
    say("Choosing layers and channels")
    chosen, tables = choose_channels(asked, tables, of_layers, model, counts)
    settings = _settings(asked, traced, dtype)
    plan = Plan(
        model=_model_record(model, inputs, traced, source),
        settings=settings,
        strategy=chosen.strategy,
        priorities=_priority_record(priorities),
        solver=chosen.solver,
        counts=chosen.counts,
        ledger=tables.ledger.of(chosen.counts),
        norms=tuple(_short(layer.channel_norms) for layer in of_layers),
        table=tables.table,
        not_drawn=traced.not_drawn,
        unaccounted=traced.unaccounted,
        notes=_notes(traced, priorities, settings, tables.note) + _advice(asked, priorities),
    )
    return plan if asked.strategy is Strategy.SOLVER else _with_first_draw(plan, tables)


def _traced(model: nn.Module, inputs: Inputs, options: PlanKeywords, say: Callable[[str], None]) -> Trace:
    """The given trace, or one made as the options say, at the planned batch size.

    Raises:
        PlanError: The batch size is below 1.
    """
    batch_size, traced = options.get("batch_size"), options.get("traced")
    size = batch_size_of(inputs) if batch_size is None else batch_size
    if size < 1:
        raise PlanError(f"Batch size must be 1 or more, got {size}.")
    if traced is None:
        say("Tracing one training step")
        given = {name: value for name, value in options.items() if name in StepKeywords.__annotations__}
        step = cast(StepKeywords, given)
        traced = trace(model, inputs, batch_sizes=(size,), **step)
    _check_same_model(traced, model)
    return traced.at(size)


def _tables(
    model: nn.Module, traced: Trace, layers: Sequence[Layer], asked: ChoiceOptions, dtype: DType | None
) -> MeasuredTable:
    """The candidate layers' costs; kernels can be measured unless the weights have no memory."""

    def build(memory: StepMemory | None) -> CostTable:
        return build_cost_table(
            traced, layers, optimizer=asked.optimizer, dtype=dtype, train_bias=asked.train_bias, memory=memory
        )

    return MeasuredTable(build, *memory_of_step(traced, measure=not is_on_meta(model)))


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


def _settings(asked: ChoiceOptions, traced: Trace, dtype: DType | None) -> Settings:
    """How the traced step is run; int8 is an accounting of a float32 trace."""
    step = traced.options
    return Settings(
        budget_bytes=asked.budget_bytes,
        scope=asked.scope,
        batch_size=traced.batch_size,
        epochs=asked.epochs,
        optimizer=asked.optimizer,
        norm=step.norm,
        dtype=DType.INT8 if dtype is DType.INT8 else step.dtype,
        amp=step.amp,
        device=step.device,
        memory_format=step.memory_format,
        train_bias=asked.train_bias,
        train=tuple(sorted(step.train)),
        torch_version=torch.__version__,
        machine=this_machine(),
    )


def _with_first_draw(plan: Plan, tables: MeasuredTable) -> Plan:
    """Counts, value and ledger of the first epoch, for strategies whose draw is not the solver's."""

    def drawn(tables: MeasuredTable) -> Plan:
        by_table = plan.model_copy(update={"table": tables.table})
        counts = draw(by_table, 0, ledger=tables.ledger).counts(tables.table)
        return by_table.model_copy(update={"counts": counts})

    return with_first_draw(settled(tables, drawn, again=True)[0])


def _short(norms: tuple[float, ...]) -> tuple[float, ...] | float:
    return norms[0] if len(set(norms)) == 1 else norms


def _model_record(model: nn.Module, inputs: Inputs, traced: Trace, source: ModelSource) -> ModelRecord:
    named = inputs.items() if isinstance(inputs, Mapping) else enumerate(input_tensors(inputs))
    specs = tuple(
        TensorSpec(name=str(name), shape=tuple(tensor.shape[1:]), dtype=dtype_name(tensor.dtype))
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


def _advice(asked: ChoiceOptions, priorities: Priorities) -> tuple[str, ...]:
    """What the norms suggest that was not asked for."""
    is_uniform = asked.strategy is Strategy.SOLVER and asked.inclusion is Inclusion.UNIFORM
    share = priorities.concentration
    if not is_uniform or priorities.source is PrioritySource.UNIFORM or share < _CONCENTRATED:
        return ()
    return (
        f"The largest hundredth of the channels of wide layers hold {share:.0%} of their squared gradient norm: draw "
        "them more often with --inclusion weighted (docs/accuracy.md).",
    )


def _silent(_: str) -> None:
    return None
