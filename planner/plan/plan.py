"""The plan: one strict, versioned JSON file that says what trains and what it costs. Needs no torch."""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError, model_validator

from trady.planner.errors import PlanError
from trady.planner.files import write_atomically
from trady.planner.ledger import CostTable, Ledger
from trady.planner.options import DType, Inclusion, MemoryFormat, NormMode, OptimizerKind, Scope, Strategy
from trady.planner.priorities import Norm, PrioritySource
from trady.planner.records import Count, Record

SCHEMA_VERSION: Final = 1


class TensorSpec(Record):
    """An input of the model: its shape without the batch dimension, and its type."""

    name: str
    shape: tuple[Count, ...]
    dtype: str


class HeadRecord(Record):
    """What is always trained and never drawn.

    Args:
        layers: Names of the layers that give the logits.
        classes: Outputs of the head Trady put in place of the model's own; ``None`` where the model's own stays.
    """

    layers: tuple[str, ...]
    classes: int | None


class PictureRecord(Record):
    """How pictures become inputs.

    Args:
        mean: Of each colour, on values scaled to 0..1.
        std: Of each colour.
        interpolation: Of the resize.
        crop_fraction: Side of the crop over the resized short side.
        source: Who says so.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_fraction: float
    source: str


class ModelRecord(Record):
    """How the model was built, and how to recognise it.

    Args:
        source: What was loaded, as typed.
        arch: Factory that built the module of a state dict; empty otherwise.
        inputs: Inputs of one sample.
        pictures: How pictures become inputs; ``None`` for other inputs.
        head: What is always trained.
        loss: The loss by name.
        num_parameters: Elements of all parameters.
        fingerprint: SHA-256 of the names, shapes and types of parameters and buffers, the head replaced.
        tensors: Parameters and buffers by name, each as ``float32[8, 3]``: to name what differs in another model.
    """

    source: str
    arch: str
    inputs: tuple[TensorSpec, ...]
    pictures: PictureRecord | None
    head: HeadRecord
    loss: str
    num_parameters: Count
    fingerprint: str
    tensors: dict[str, str]


class MachineRecord(Record):
    """Where kernels were measured: what they work in depends on it.

    Args:
        processor: Model of the processor.
        instruction_set: What PyTorch's kernels use of it, and what oneDNN's are capped at.
        threads: Threads that kernels run on.
    """

    processor: str
    instruction_set: str
    threads: Annotated[int, Field(ge=1)]


class Settings(Record):
    """How the step is run.

    Args:
        budget_bytes: Bytes of the scope.
        scope: Lines the budget holds.
        batch_size: Samples of one (micro-)batch.
        epochs: Planned epochs.
        optimizer: What is kept for each trained element.
        norm: What norms with running statistics do.
        dtype: Element type of the model; ``None`` leaves its own.
        amp: Autocast type, or ``None``.
        device: Device planned for.
        memory_format: Layout of four-dimensional tensors.
        train_bias: Whether the bias of a drawn layer trains.
        train: Patterns of parameters that always train.
        torch_version: Version the step was traced with.
        machine: Where it was planned; ``None`` in plans of earlier versions.
    """

    budget_bytes: Annotated[int, Field(gt=0)]
    scope: Scope
    batch_size: Annotated[int, Field(ge=1)]
    epochs: Annotated[int, Field(ge=1)]
    optimizer: OptimizerKind
    norm: NormMode
    dtype: DType | None
    amp: DType | None
    device: str
    memory_format: MemoryFormat
    train_bias: bool
    train: tuple[str, ...]
    torch_version: str
    machine: MachineRecord | None = None


class StrategyRecord(Record):
    """Layer rule and draw rule, as they turned out for this model.

    Args:
        name: The strategy.
        eligible: Indices of the layers that channels may be drawn from.
        fixed_channels: Layer name -> channels, for a static scheme; empty otherwise.
    """

    name: Strategy
    eligible: tuple[Count, ...]
    fixed_channels: dict[str, tuple[Count, ...]] = Field(default_factory=dict)


class SolverRecord(Record):
    """How the counts were found.

    Args:
        status: ``optimal`` (the greatest value is proven within 0.1 %), ``feasible``, or ``drawn`` by another strategy.
        value: Value of the counts, as a share of the value of training everything.
        bound: Proven upper bound of that share.
        gap: Distance to the bound, relative to it: what was given up, and what was not proven.
        given_up: Share of the greatest value found that was given up for less backward work.
        backward_saved: Share of the backward pass's multiply-adds that this saved.
        horizon: Draws the value looks ahead.
        inclusion: How likely the channels of a layer are to be drawn.
        ortools_version: Version of the solver; empty for the papers' strategies.
    """

    status: Literal["optimal", "feasible", "drawn"]
    value: float
    bound: float
    gap: float
    given_up: float = 0.0
    backward_saved: float = 0.0
    horizon: float
    inclusion: Inclusion = Inclusion.UNIFORM
    ortools_version: str


#: Of the papers' strategies, before the value of their first draw is known.
NOT_SOLVED: Final = SolverRecord(status="drawn", value=0.0, bound=1.0, gap=0.0, horizon=1.0, ortools_version="")


class PriorityRecord(Record):
    """Where the gradient norms came from."""

    source: PrioritySource
    origin: str
    num_batches: Count
    tail_index: float | None
    digest: str


class Plan(Record):
    """What trains, within which bytes.

    Args:
        schema_version: Version of the file's format.
        model: How the model was built.
        settings: How the step is run.
        strategy: Layer and draw rule.
        priorities: Where the norms came from.
        solver: How the counts were found.
        counts: Channels of each layer of the table; for strategies that fill the budget anew each epoch,
            those of the first epoch with seed 0.
        ledger: Lines and scopes of a step with these counts, in bytes.
        norms: Gradient norm of each channel, layer by layer; one number where all channels have the same.
        table: What everything costs.
        not_drawn: Parameters that channels cannot be drawn from -> reason.
        unaccounted: Operations whose memory is not in the ledger -> reason.
        notes: What the reader should know.
    """

    schema_version: Literal[1] = 1
    model: ModelRecord
    settings: Settings
    strategy: StrategyRecord
    priorities: PriorityRecord
    solver: SolverRecord
    counts: tuple[Count, ...]
    ledger: Ledger
    norms: tuple[tuple[Norm, ...] | Norm, ...]
    table: CostTable
    not_drawn: dict[str, str]
    unaccounted: dict[str, str]
    notes: tuple[str, ...]

    @model_validator(mode="after")
    def _consistent(self) -> "Plan":
        layers = self.table.layers
        if not len(self.counts) == len(self.norms) == len(layers):
            raise ValueError(f"counts and norms must have one entry for each of the {len(layers)} layers")
        for layer, count, norms in zip(layers, self.counts, self.norms, strict=True):
            if count > layer.in_channels:
                raise ValueError(f"{count} channels are drawn from layer {layer.name!r}, which has {layer.in_channels}")
            if isinstance(norms, tuple) and len(norms) != layer.in_channels:
                raise ValueError(f"layer {layer.name!r} has {layer.in_channels} channels but {len(norms)} norms")
        for name, channels in self.strategy.fixed_channels.items():
            known = {layer.name: layer.in_channels for layer in layers}
            if name not in known:
                raise ValueError(f"channels are fixed for {name!r}, which is no layer of the table")
            if len(set(channels)) < len(channels) or max(channels, default=0) >= known[name]:
                raise ValueError(f"channels of layer {name!r} must be distinct and below {known[name]}")
        outside = [index for index in self.strategy.eligible if index >= len(layers)]
        if outside:
            raise ValueError(f"eligible layer {outside[0]} is outside the table of {len(layers)} layers")
        return self

    @property
    def chosen(self) -> dict[str, int]:
        """Layer name -> channels, for the layers that train."""
        return {layer.name: count for layer, count in zip(self.table.layers, self.counts, strict=True) if count}

    @property
    def recorded_model(self) -> tuple[dict[str, int], str, str]:
        """Input channels by layer name, fingerprint and source: what a recording of its gradients must agree with."""
        return {layer.name: layer.in_channels for layer in self.table.layers}, self.model.fingerprint, self.model.source

    def channel_norms(self, index: int) -> tuple[float, ...]:
        """Gradient norm of each channel of a layer of the table."""
        norms = self.norms[index]
        return norms if isinstance(norms, tuple) else (norms,) * self.table.layers[index].in_channels

    @cached_property
    def layer_values(self) -> tuple[float, ...]:
        """Gradient norm of each layer, summed over its channels."""
        return tuple(float(sum(self.channel_norms(index))) for index in range(len(self.table.layers)))

    def to_json(self) -> str:
        """The file's content: the same plan gives the same bytes. Layers and operations take one line each."""
        return _one_line_each(self.model_dump(mode="json")) + "\n"

    def save(self, path: str | Path) -> None:
        """Write the plan, whole or not at all.

        Error:
            TradyError: The file cannot be written.
        """
        write_atomically(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Read a plan; nothing in the file is run.

        Whether its figures are those of its draws is seen by :func:`trady.planner.load_plan`, and by whoever draws.

        Returns:
            The plan, its figures unchecked.

        Raises:
            PlanError: The file is missing, is no plan, is of another version, or names what it does not hold.
        """
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise PlanError(f"Plan {path}: {error.strerror}. Make one with trady-plan -o {path}.") from error
        _check_version(path, content)
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "content"
            raise PlanError(
                f"Plan {path} cannot be used: {where}: {first['msg']}. Make it anew with trady-plan."
            ) from error


def _check_version(path: str | Path, content: bytes) -> None:
    try:
        version = json.loads(content).get("schema_version")
    except (ValueError, AttributeError, RecursionError) as error:
        raise PlanError(f"Plan {path} is not a JSON object. Make it anew with trady-plan.") from error
    if version != SCHEMA_VERSION:
        raise PlanError(
            f"Plan {path} is of version {version!r}; this Trady reads version {SCHEMA_VERSION}. "
            "Make it anew with trady-plan."
        )


def json_schema() -> str:
    """The plan's JSON Schema as kept in ``docs/plan.schema.json``; ``python -m trady.planner.plan.plan`` prints it."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Plan.model_json_schema()}
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


def _one_line_each(value: Any, depth: int = 0) -> str:
    """JSON indented down to two levels, the rest on one line: short to diff, short to store."""
    if isinstance(value, Mapping) and value and depth < 2:
        pad = " " * (depth + 1)
        rows = (f"{pad}{json.dumps(key)}: {_one_line_each(found, depth + 1)}" for key, found in value.items())
        return "{\n" + ",\n".join(rows) + "\n" + " " * depth + "}"
    if isinstance(value, list) and value and isinstance(value[0], Mapping | list):
        pad = " " * (depth + 1)
        return "[\n" + ",\n".join(pad + json.dumps(row) for row in value) + "\n" + " " * depth + "]"
    return json.dumps(value)


if __name__ == "__main__":
    print(json_schema(), end="")
