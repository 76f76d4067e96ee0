"""From a model and example inputs to a Trace: layers, what each operation keeps, and the graph."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING, Final, Unpack

from torch import nn

from trady.planner.errors import TracingError
from trady.planner.lean import OPAQUE
from trady.planner.models import Inputs, StepKeywords, StepOptions, batch_size_of
from trady.planner.options import DType, check_keywords
from trady.planner.tracing.batch_interpolation import interpolate
from trady.planner.tracing.fake_model import FakeModel
from trady.planner.tracing.layers import Layer, Weights, heads_of
from trady.planner.tracing.lifetimes import Lifetimes
from trady.planner.tracing.records import Capture
from trady.planner.tracing.residuals import Kept, kept_storages

if TYPE_CHECKING:
    import networkx as nx

#: Batch sizes a line is drawn through; from batch 1 some models take other paths.
_LINE: Final = (2, 3)


@dataclass(frozen=True)
class Recordings:
    """One kind of step recorded at several batch sizes, or the error met there."""

    captures: Mapping[int, Capture | TracingError]

    def at(self, batch_size: int) -> Capture:
        """The step at a batch size: recorded, or read off the line through two recordings.

        Returns:
            The same at that batch size.

        Raises:
            TracingError: The step cannot run at that batch size, or its sizes are not on a line.
        """
        if batch_size in self.captures:
            return self._recorded(batch_size)
        if not set(_LINE) <= set(self.captures) or batch_size < _LINE[0]:
            known = ", ".join(str(size) for size in sorted(self.captures))
            raise TracingError(
                f"Batch size {batch_size} was not traced (traced: {known}). "
                f"Trace the model again with inputs of {batch_size} samples."
            )
        low, high = (self._recorded(size) for size in _LINE)
        return interpolate(low, high, batch_size)

    def _recorded(self, batch_size: int) -> Capture:
        found = self.captures[batch_size]
        if isinstance(found, TracingError):
            raise found
        return found


@dataclass(frozen=True)
class Trace:
    """What one training step of a model keeps, at one batch size.

    Args:
        dense: The step with every parameter training that requires a gradient.
        lean: The step with only drawable weights, the head and ``trained`` parameters training.
        batch_size: Samples in the step the figures are for.
        options: How the step was run.
        head_names: Layers that are always trained and never drawn.
        trained: Other parameters that are always trained, by name.
        loss_name: The loss by name.
    """

    dense: Recordings
    lean: Recordings
    batch_size: int
    options: StepOptions
    head_names: tuple[str, ...]
    trained: frozenset[str]
    loss_name: str
    _lifetimes: Callable[[int], Lifetimes] = field(repr=False, compare=False)
    _cache: dict[int, "Trace"] = field(default_factory=dict, repr=False, compare=False)
    _recorded: dict[int, Lifetimes] = field(default_factory=dict, repr=False, compare=False)

    def at(self, batch_size: int) -> "Trace":
        """The same trace at another batch size; the model is not run again.

        Returns:
            The same at that batch size.

        Error:
            TracingError: The step cannot run at that batch size.
        """
        if batch_size == self.batch_size:
            return self
        if batch_size not in self._cache:
            self.dense.at(batch_size), self.lean.at(batch_size)
            self._cache[batch_size] = replace(self, batch_size=batch_size)
        return self._cache[batch_size]

    def lifetimes(self, batch_size: int) -> tuple[Lifetimes, ...]:
        """When the lean step releases its memory: at that batch size, or at two of which it follows.

        Returns:
            One recording, or the two that others lie between.

        Raises:
            TracingError: The backward pass cannot be followed.
        """
        sizes = (batch_size,) if batch_size <= _LINE[1] else _LINE
        for size in sizes:
            if size not in self._recorded:
                self._recorded[size] = self._lifetimes(size)
        found = tuple(self._recorded[size] for size in sizes)
        targets = [operation.target for operation in self.lean.at(batch_size).operations]
        if any([call.target for call in recorded.calls] != targets for recorded in found):
            raise TracingError("The step runs other operations when its memory is followed, so its peak is not known.")
        return found

    @cached_property
    def dense_step(self) -> Capture:
        """Every operation of the dense step."""
        return self.dense.at(self.batch_size)

    @cached_property
    def step(self) -> Capture:
        """Every operation of the step the engine runs."""
        return self.lean.at(self.batch_size)

    @property
    def saved_bytes(self) -> int:
        """Bytes autograd keeps for backward when the whole model trains: parameters, buffers and batch left out."""
        return self.dense_step.saved_bytes

    @cached_property
    def weights(self) -> Weights:
        """Which parameters are weights, and of what."""
        return Weights(self.step)

    @cached_property
    def all_layers(self) -> tuple[Layer, ...]:
        """Drawable layers and the head, in order of first use."""
        return self.weights.layers()

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Layers that channels can be drawn from, in order of first use; their output reaches the loss."""
        always, reaching = self.always_trained, self.step.reaching_loss
        return tuple(
            layer
            for layer in self.all_layers
            if layer.weight_name not in always and any(call.operation in reaching for call in layer.calls)
        )

    @cached_property
    def head(self) -> tuple[Layer, ...]:
        """Layers whose output is the logits: always trained, never drawn."""
        return tuple(layer for layer in self.all_layers if layer.name in self.head_names)

    @cached_property
    def always_trained(self) -> frozenset[str]:
        """Parameters that train whatever is drawn: the head's and the asked ones."""
        head = {name for layer in self.head for name in (layer.weight_name, layer.bias_name) if name}
        return self.trained | head

    @cached_property
    def not_drawn(self) -> dict[str, str]:
        """Why each other parameter of two or more dimensions is not drawn from: name -> reason."""
        refused = Weights(self.dense_step).refused()
        drawn = {layer.weight_name for layer in (*self.layers, *self.head)}
        refused |= {layer.weight_name: _UNREAD for layer in self.all_layers if layer.weight_name not in drawn}
        drawn |= self.always_trained
        reasons = {}
        for storage in self.dense_step.storages:
            if storage.kind == "parameter" and len(storage.tensor_shape) >= 2 and storage.name not in drawn:
                reasons[storage.name] = refused.get(storage.name, _OTHER_USE)
        return reasons

    @cached_property
    def unaccounted(self) -> dict[str, str]:
        """Operations whose kernel keeps memory that fake tensors do not show: module and operation -> why."""
        return {
            f"{operation.module}:{operation.target}": "its kernel keeps a workspace of its own"
            for operation in self.dense_step.operations
            if operation.target in OPAQUE
        }

    @cached_property
    def kept(self) -> tuple[Kept, ...]:
        """What the engine's step may keep besides the drawn channels, and for which parameters."""
        bit_of = {name: bit for bit, name in enumerate(self.step.parameters)}
        drawable = {layer.weight_name: bit_of[layer.weight_name] for layer in self.layers}
        return kept_storages(self.step, drawable, self.weights)

    @cached_property
    def graph(self) -> "nx.DiGraph":
        """Operations and tensors as nodes, with scalar attributes; edges follow the data."""
        return build_graph(
            self.dense_step, {call.operation: layer for layer in self.all_layers for call in layer.calls}
        )


_UNREAD: Final = "feeds an output that the loss does not read"
_OTHER_USE: Final = "is not the weight of a convolution or a linear operation, or does not require a gradient"


def trace(
    model: nn.Module,
    inputs: Inputs,
    *,
    batch_sizes: tuple[int, ...] | None = None,
    **options: Unpack[StepKeywords],
) -> Trace:
    """Record what one training step keeps, without running it and without its memory.

    Args:
        model: Any module; left untouched. Weights on the ``meta`` device will do.
        inputs: A tensor ``[B, ...]``, a tuple of positional or a dict of keyword arguments, on any device.
        batch_sizes: Batch sizes to record; by default 1, 2, 3 (all others follow) and the example's own.
        **options: ``norm``: ``"frozen"`` keeps running statistics as they are, ``"train"`` updates them.
            ``loss``: ``loss(outputs, targets)``; by default the model's own loss, else cross-entropy of its logits.
            ``targets``: example targets of ``loss``; made up for classification where not given.
            ``dtype``: cast floating-point parameters, buffers and inputs first; ``int8`` is accounting, traced as
            float32. ``amp``: run under autocast with this type. ``device``: device the step is planned for.
            ``memory_format``: ``"contiguous"`` or ``"channels_last"``.
            ``head``: ``"auto"``, ``"none"``, or the name of the layer that is always trained.
            ``train``: patterns of other parameters that are always trained (``"*.norm.*"``).

    Returns:
        The trace at the batch size of ``inputs``; ``.at(n)`` gives any other.

    Error:
        TypeError: A keyword is unknown.
        PlanError: An option is not what it may be.
        TracingError: The step fails (the module and the shapes are named), depends on the values of tensors,
            or trains nothing.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4))
        >>> pictures = torch.randn(2, 3, 8, 8)
        >>> traced = trace(net, pictures, norm="train")
        >>> [layer.name for layer in traced.layers], traced.head_names
        (['0', '2'], ('4',))
        >>> traced.at(64).saved_bytes > traced.saved_bytes
        True
    """
    check_keywords("trace", options, StepKeywords)
    loss, targets = options.get("loss"), options.get("targets")
    step = StepOptions.read(options)
    if step.dtype is DType.INT8:
        step = step.model_copy(update={"dtype": DType.FLOAT32})
    batch_size = batch_size_of(inputs)
    sizes = batch_sizes or tuple(dict.fromkeys((1, *_LINE, batch_size)))
    if len(sizes) == 1:
        batch_size = sizes[0]

    fake_model = FakeModel(model, step)

    def record(trainable: frozenset[str] | None) -> Recordings:
        found: dict[int, Capture | TracingError] = {}
        for size in sizes:
            try:
                found[size] = fake_model.capture(inputs, size, targets=targets, loss=loss, trainable=trainable)
            except TracingError as error:
                if size == batch_size:
                    raise
                found[size] = error
        return Recordings(found)

    dense = record(None)
    capture = dense.at(batch_size)
    layers = Weights(capture).layers()
    heads = _heads(capture, layers, options.get("head", "auto"))
    trained = _named_by(step.train, capture.parameters[:-1])
    trainable = {layer.weight_name for layer in layers} | {layer.bias_name for layer in heads} | trained
    lean = record(frozenset(trainable))
    names = tuple(layer.name for layer in heads)

    def lifetimes(size: int) -> Lifetimes:
        return fake_model.lifetimes(inputs, size, targets=targets, loss=loss, trainable=frozenset(trainable))

    return Trace(dense, lean, batch_size, step, names, trained, capture.loss_name, lifetimes)


def _named_by(patterns: Sequence[str], names: Sequence[str]) -> frozenset[str]:
    """Parameters that patterns name; a pattern that names none is a mistake.

    Raises:
        TracingError: A pattern matches no parameter.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            known = ", ".join(names[-3:])
            raise TracingError(f"--train {pattern!r} matches no parameter. Parameters are for instance: {known}.")
    return frozenset(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns))


def _heads(capture: Capture, layers: tuple[Layer, ...], head: str) -> tuple[Layer, ...]:
    if head == "none":
        return ()
    if head == "auto":
        return heads_of(capture, layers)
    found = tuple(layer for layer in layers if layer.name == head)
    if not found:
        known = ", ".join(layer.name for layer in layers[-5:])
        raise TracingError(f"Head {head!r} is no layer of the model. Its last layers: {known}.")
    return found


def build_graph(capture: Capture, layer_of: Mapping[int, Layer]) -> "nx.DiGraph":
    """The recorded step as a graph of operations and storages.

    Operation nodes carry ``kind``, ``target``, ``module``, ``layer``, ``saved_bytes``; tensor nodes ``kind``,
    ``role``, ``name``, ``bytes``, ``shape``, ``saved``. All attributes are scalars, so that GraphML holds them.
    """
    import networkx as nx  # half a second that only the graph needs

    graph = nx.DiGraph()
    for index, storage in enumerate(capture.storages):
        graph.add_node(
            f"t{index}",
            kind="tensor",
            role=storage.kind,
            name=storage.name,
            bytes=storage.num_bytes,
            shape="x".join(map(str, storage.tensor_shape)),
            saved=index in capture.saved,
        )
    for index, operation in enumerate(capture.operations):
        node = f"o{index}"
        layer = layer_of.get(index)
        graph.add_node(
            node,
            kind="operation",
            target=operation.target,
            module=operation.module,
            layer=layer.name if layer else "",
            saved_bytes=sum(capture.storages[storage].num_bytes for storage in operation.saved),
        )
        graph.add_edges_from((f"t{operand.tensor.storage}", node) for operand in operation.operands)
        graph.add_edges_from((node, f"t{output.storage}") for output in operation.outputs)
    unused = [node for node in graph if graph.degree(node) == 0]
    graph.remove_nodes_from(unused)
    return graph
