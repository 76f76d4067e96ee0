"""One row of a study: a setting, and what it buys. No torch.

Held by ``tests/planner/studies/test_answers.py``.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import Field

from trady.planner.ledger import PEAK_LINES
from trady.planner.options import DType, NormMode, OptimizerKind, Scope
from trady.planner.records import Count, Record
from trady.planner.reports import ChosenLayer

_NAMES: Final = {"lines": PEAK_LINES, "scopes": tuple(scope.value for scope in Scope)}
#: Model, input, norms, element type, batch size, optimizer: all of a setting but its budget.
Curve: TypeAlias = tuple[str, str, str, str, int, str]
Share = Annotated[float, Field(ge=0, le=1 + 1e-9)]
Bytes = Annotated[int, Field(gt=0)]


class Setting(Record):
    """What a row was asked for.

    Args:
        model: The model, as typed.
        input: Shape of one sample, ``3x224x224``.
        norm: What norms with running statistics do.
        dtype: Element type of the model; ``None`` leaves its own.
        batch_size: Samples of a micro-batch.
        optimizer: What is kept for each trained element.
        scope: Lines the budget holds.
        budget_bytes: Bytes of the scope.
        epochs: Planned epochs.
    """

    model: str
    input: str
    norm: NormMode
    dtype: DType | None
    batch_size: Annotated[int, Field(ge=1)]
    optimizer: OptimizerKind
    scope: Scope
    budget_bytes: Bytes
    epochs: Annotated[int, Field(ge=1)]

    @property
    def curve(self) -> Curve:
        """All but the budget: rows that share it lie on one curve."""
        return (self.model, self.input, self.norm, self.dtype or "", self.batch_size, self.optimizer)


class Remedy(Record):
    """A change with which a setting trains something, and the smallest budget that it takes then.

    Args:
        change: The change in words: ``batch size 4``.
        options: The same as options of ``trady-plan``.
        needed_bytes: The smallest budget that trains anything after it.
    """

    change: str
    options: str
    needed_bytes: Bytes


class Bought(Record):
    """What a budget buys.

    Args:
        status: ``optimal`` (within 0.1 % of the best, proven) or ``feasible``.
        value: Gradient norm that the solver's horizon of draws can be expected to reach, as a share of all layers'.
        gap: Distance of the value to its proven bound, relative to the bound.
        rgn_reached: RGN of the channels expected to be drawn at least once by the last epoch, as a share of all.
        captured_share: Squared gradient norm that the channels of one draw can be expected to hold, as a share of all.
        next_kilobyte: Value that the next 1,000 bytes of budget would add, as a share; 0 where all is trained.
        used_bytes: Bytes of the budget's scope.
        lines: Bytes by line of the ledger; the workspace is ``None`` where the peak is not known.
        scopes: Bytes by scope.
        layers: The layers that train, in the model's order.
        num_layers: Layers of the table.
        num_channels: Input channels drawn.
        all_channels: Input channels of the table.
        activation_sparsity: Stored inputs saved, against all channels of the table.
        weight_derivative_sparsity: Weight gradients saved, against the same.
        weight_grad_macs: Multiply-adds of the weight gradients, whole batch.
        backward_macs: The same and the gradients towards earlier layers.
    """

    status: Literal["optimal", "feasible"]
    value: Share
    gap: float
    rgn_reached: Share
    captured_share: Share
    next_kilobyte: Annotated[float, Field(ge=0)]
    used_bytes: Count
    lines: dict[str, int | None]
    scopes: dict[str, int | None]
    layers: tuple[ChosenLayer, ...]
    num_layers: Count
    num_channels: Count
    all_channels: Count
    activation_sparsity: float
    weight_derivative_sparsity: float
    weight_grad_macs: Count
    backward_macs: Count


class StudyRow(Record):
    """A setting and what came of it.

    Args:
        setting: What was asked for.
        bought: What the budget buys; ``None`` where it trains nothing.
        why: What is wrong; empty where something trains.
        needed_bytes: The smallest budget that trains anything; ``None`` where not even that is known.
        remedies: Changes with which this budget trains something, the one that alters training least first.
    """

    setting: Setting
    bought: Bought | None
    why: str = ""
    needed_bytes: Bytes | None = None
    remedies: tuple[Remedy, ...] = ()

    @property
    def status(self) -> str:
        """``optimal``, ``feasible``, ``infeasible``, or ``failed`` where the step cannot be planned at all."""
        if self.bought is not None:
            return self.bought.status
        return "failed" if self.needed_bytes is None else "infeasible"

    @property
    def options(self) -> str:
        """Options of ``trady-plan`` that make this row's plan; what all rows share is left out."""
        setting = self.setting
        parts = [
            f"--budget {setting.budget_bytes}B",
            f"--scope {setting.scope.value}",
            f"--batch-size {setting.batch_size}",
            f"--optimizer {setting.optimizer.value}",
            f"--norm {setting.norm.value}",
            f"--epochs {setting.epochs}",
        ]
        return " ".join(parts + ([f"--dtype {setting.dtype.value}"] if setting.dtype else []))

    def flat(self) -> dict[str, object]:
        """One level of names for tables: bytes, counts and shares; chosen layers as ``{name: channels}``."""
        setting = self.setting.model_dump(mode="json")
        known: Mapping[str, Any] = {} if self.bought is None else self.bought.model_dump(mode="json")
        nested = {"lines", "scopes", "layers", "status"}
        amounts = {name: known.get(name) for name in Bought.model_fields if name not in nested}
        layers = {layer.name: layer.channels for layer in self.bought.layers} if self.bought else None
        by_group = {
            f"{group[:-1]}_{name}_bytes": amount
            for group in ("lines", "scopes")
            for name, amount in known.get(group, dict.fromkeys(_NAMES[group])).items()
        }
        rest = {
            "status": self.status,
            "why": self.why,
            "needed_bytes": self.needed_bytes,
            "remedy": self.remedies[0].change if self.remedies else "",
        }
        return {**setting, **rest, **amounts, **by_group, "layers": layers}
