"""From a model to the columns of a study: one trace for each input size, norm mode and element type.

Held by ``tests/planner/studies/test_runs.py``.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import fsum
from typing import Any

import torch
from torch import nn

from trady.planner.costs import StepMemory, build_cost_table, memory_of_step
from trady.planner.errors import PlanError, TradyError
from trady.planner.ledger import CostTable
from trady.planner.models import Inputs, LossFunction, input_tensors, is_on_meta, load_model, torch_dtype
from trady.planner.options import DType, NormMode, OptimizerKind, Scope
from trady.planner.planning import Prepared, candidate_layers, prepare, priorities_from_data, priorities_of
from trady.planner.priorities import Priorities, priorities_without_data
from trady.planner.studies.columns import Column
from trady.planner.studies.grids import Axes
from trady.planner.studies.rows import Remedy, Setting
from trady.planner.studies.specs import Common, Failure, ModelSpec, ModuleSpec
from trady.planner.tracing import Layer, Trace, trace


@dataclass(frozen=True)
class OpenModel:
    """A model, its example inputs, and how its gradient norms are found.

    Args:
        model: The module, its head the wanted one.
        inputs: Example inputs.
        loss: The user's loss, if any.
        has_weights: Whether its weights are trained ones.
        priorities: Known norms, a function that measures them on data with norms in a mode, or nothing.
    """

    model: nn.Module
    inputs: Inputs
    loss: LossFunction | None
    has_weights: bool
    priorities: Priorities | Callable[[NormMode], Priorities] | None

    @classmethod
    def of(cls, prepared: Prepared, spec: ModelSpec) -> "OpenModel":
        """A prepared model with the norms of its specification."""
        loaded = prepared.loaded

        def measure(norm: NormMode) -> Priorities:
            return priorities_from_data(prepared, norm=norm, **spec.measuring)

        found = spec.priorities or (None if prepared.data is None else measure)
        return cls(loaded.model, prepared.inputs, loaded.loss, prepared.source.has_weights, found)

    @property
    def input_shape(self) -> str:
        """Shape of one sample: ``3x224x224``; several inputs with commas."""
        return ",".join("x".join(map(str, tensor.shape[1:])) or "1" for tensor in input_tensors(self.inputs))


def columns_of(
    spec: ModelSpec | ModuleSpec,
    axes: Axes,
    common: Common,
    known: frozenset[Setting],
    say: Callable[[str], None],
) -> Iterator[Column | Failure]:
    """Every column of a model, made one after the other; what fails is told and passed over.

    Args:
        spec: The model.
        axes: What varies.
        common: What does not.
        known: Settings that were planned before: a column of nothing else is not made.
        say: Called with a line of text before each stage.
    """
    for input_shape in axes.inputs:
        where = spec.name + (f" at {input_shape}" if input_shape else "")
        found = replace(axes, inputs=(input_shape,))
        if _all_known(spec.name, found, common, known):
            continue
        try:
            say(f"Loading {where}")
            opened = _opened(spec, input_shape, common.head)
        except TradyError as error:
            yield _failure(spec.name, found, common, error)
            continue
        found = replace(axes, inputs=(input_shape or opened.input_shape,))
        yield from _Columns(opened, spec.name, found, common, known, say).all()


def _settings(name: str, axes: Axes, common: Common) -> list[Setting]:
    return list(axes.settings(name, scope=common.scope, epochs=common.epochs))


def _all_known(name: str, axes: Axes, common: Common, known: frozenset[Setting]) -> bool:
    """Whether every row of these axes was planned before."""
    settings = _settings(name, axes, common)
    return bool(settings) and known.issuperset(settings)


def _opened(spec: ModelSpec | ModuleSpec, input_shape: str, head: str) -> OpenModel:
    """A model by name with its head and inputs of that shape; one in memory as it is.

    Raises:
        PlanError: An input size is asked of a model that came with inputs.
    """
    if isinstance(spec, ModelSpec):
        loaded = load_model(spec.source, input_shape=input_shape or None, **spec.loading)
        return OpenModel.of(prepare(loaded, head=head, **spec.preparing), spec)
    if input_shape:
        raise PlanError(
            f"Model {spec.name!r} came with example inputs; input size {input_shape!r} is for models given by name."
        )
    return OpenModel(spec.model, spec.inputs, spec.loss, True, spec.priorities)


def _failure(name: str, axes: Axes, common: Common, error: TradyError) -> Failure:
    """All settings of these axes, with one error."""
    parts = [name, *filter(None, axes.inputs)]
    if len(axes.norms) == len(axes.dtypes) == 1:
        parts += [dtype.value for dtype in axes.dtypes if dtype] + [f"norms {norm.value}" for norm in axes.norms]
    if len(axes.batch_sizes) == len(axes.optimizers) == 1:
        parts += [f"batch {axes.batch_sizes[0]}", axes.optimizers[0].value]
    return Failure(", ".join(parts), tuple(_settings(name, axes, common)), str(error))


class _Columns:
    """The columns of a model at one input size."""

    def __init__(
        self,
        found: OpenModel,
        name: str,
        axes: Axes,
        common: Common,
        known: frozenset[Setting],
        say: Callable[[str], None],
    ) -> None:
        self._found, self._name, self._axes, self._common = found, name, axes, common
        self._known, self._say = known, say
        self._traces: dict[tuple[NormMode, torch.dtype | None], Trace] = {}
        self._norms: dict[NormMode, Priorities] = {}
        self._memories: dict[tuple[NormMode, torch.dtype | None, int], StepMemory | None] = {}

    def all(self) -> Iterator[Column | Failure]:
        """Every column, or what stands in its place."""
        for norm, dtype in product(self._axes.norms, self._axes.dtypes):
            axes = replace(self._axes, norms=(norm,), dtypes=(dtype,))
            if _all_known(self._name, axes, self._common, self._known):
                continue
            try:
                traced = self._trace(norm, dtype)
                candidate_layers(traced, self._common.only, self._common.exclude, self._common.max_depth)
                priorities = self._priorities(norm, traced)
            except TradyError as error:
                yield _failure(self._name, axes, self._common, error)
                continue
            for batch_size, optimizer in product(axes.batch_sizes, axes.optimizers):
                one = replace(axes, batch_sizes=(batch_size,), optimizers=(optimizer,))
                if _all_known(self._name, one, self._common, self._known):
                    continue
                (setting,) = _settings(self._name, replace(one, budgets=(1,)), self._common)
                try:
                    yield self._column(setting, priorities)
                except TradyError as error:
                    yield _failure(self._name, one, self._common, error)

    def _column(self, setting: Setting, priorities: Priorities) -> Column:
        """The column of a setting, whose budget says nothing."""
        request = self._common.request(setting)
        request.check(setting.dtype)
        layers = self._layers(setting)
        table = self._table(setting, self._memory(setting))
        norms = [layer.channel_norms for layer in priorities_of(layers, priorities)]
        column = Column(
            setting=setting,
            request=request,
            table=table,
            norm_sums=tuple(fsum(found) for found in norms),
            norm_squares=tuple(fsum(norm * norm for norm in found) for found in norms),
        )
        if self._axes.budgets and self._axes.budgets[0] < column.least_budget:
            return replace(column, remedies=tuple(self._remedies(column)))
        return column

    def _layers(self, setting: Setting) -> list[Layer]:
        common = self._common
        return candidate_layers(self._traced(setting), common.only, common.exclude, common.max_depth)

    def _table(self, setting: Setting, memory: StepMemory | None) -> CostTable:
        """What a step costs.

        Raises:
            PlanError: The budget is of the peak, and the peak is not known.
        """
        table = build_cost_table(
            self._traced(setting),
            self._layers(setting),
            optimizer=setting.optimizer,
            dtype=setting.dtype,
            train_bias=self._common.train_bias,
            memory=memory,
        )
        if setting.scope is Scope.PEAK and table.gradient_storages is None:
            raise PlanError("The peak of this step is not known. Use scope 'training'.")
        return table

    def _traced(self, setting: Setting) -> Trace:
        return self._trace(setting.norm, setting.dtype).at(setting.batch_size)

    def _remedies(self, column: Column) -> Iterator[Remedy]:
        """Changes that make smaller budgets train something, the one that alters training least first.

        A smaller micro-batch with accumulated gradients trains as before; frozen statistics and shorter numbers do
        not quite; another optimizer needs another recipe.
        """
        setting = column.setting
        batch_size = setting.batch_size // 2
        while batch_size >= 1:
            yield from self._remedy(
                column, f"batch size {batch_size}", f"--batch-size {batch_size}", batch_size=batch_size
            )
            batch_size //= 2
        if setting.norm is NormMode.TRAIN:
            yield from self._remedy(column, "frozen norms", "--norm frozen", norm=NormMode.FROZEN)
        if torch_dtype(setting.dtype) in (None, torch.float32) and setting.dtype is not DType.INT8:
            yield from self._remedy(column, "bfloat16", "--dtype bfloat16", dtype=DType.BFLOAT16)
        if setting.optimizer not in (OptimizerKind.SGD, OptimizerKind.SINKGD):
            yield from self._remedy(column, "SinkGD", "--optimizer sinkgd", optimizer=OptimizerKind.SINKGD)

    def _remedy(self, column: Column, change: str, options: str, **changed: Any) -> Iterator[Remedy]:
        """The remedy, unless the step cannot be planned with it or it takes no less."""
        setting = column.setting.model_copy(update=changed)
        try:
            bounded = setting.scope is Scope.PEAK
            table = self._table(setting, memory_of_step(self._traced(setting), measure=False)[0] if bounded else None)
        except TradyError:
            return
        needed = replace(column, table=table).least_budget
        if needed < column.least_budget:
            yield Remedy(change=change, options=options, needed_bytes=needed)

    def _trace(self, norm: NormMode, dtype: DType | None) -> Trace:
        key = norm, torch_dtype(dtype)
        if key not in self._traces:
            found, common = self._found, self._common
            kind = "" if dtype is None else f" in {dtype.value}"
            self._say(f"Tracing {self._name} at {found.input_shape}{kind}, norms {norm.value}")
            self._traces[key] = trace(
                found.model,
                found.inputs,
                norm=norm,
                loss=found.loss,
                dtype=dtype,
                amp=common.amp,
                device=common.device,
                memory_format=common.memory_format,
                head=common.head,
                train=common.train,
            )
        return self._traces[key]

    def _memory(self, setting: Setting) -> StepMemory | None:
        """When memory is released at a batch size, all kernels measured: it is the same for every optimizer."""
        key = setting.norm, torch_dtype(setting.dtype), setting.batch_size
        if key not in self._memories:
            traced = self._traced(setting)
            memory, _ = memory_of_step(traced, measure=not is_on_meta(self._found.model))
            if memory is not None:
                places = range(len(traced.step.operations))
                memory = memory.measured(place for place in places if memory.is_bounded(place))
            self._memories[key] = memory
        return self._memories[key]

    def _priorities(self, norm: NormMode, traced: Trace) -> Priorities:
        if norm not in self._norms:
            found = self._found
            if callable(found.priorities):
                self._say(f"Measuring gradient norms of {self._name} at {found.input_shape}, norms {norm.value}")
                self._norms[norm] = found.priorities(norm)
            elif found.priorities is not None:
                self._norms[norm] = found.priorities
            else:
                self._say("Finding priorities without data")
                self._norms[norm] = priorities_without_data(
                    found.model, found.inputs, traced, found.loss, has_weights=found.has_weights
                )
        return self._norms[norm]
