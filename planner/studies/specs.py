"""What a study is made of: its models, and what all its rows share. No torch.

Held by ``tests/planner/studies/test_runs.py``.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from trady.planner.options import DType, MemoryFormat, Scope
from trady.planner.planning import BoundKeywords, ChoiceOptions, Patterns
from trady.planner.priorities import Priorities
from trady.planner.records import Record, one_of
from trady.planner.solver import DEFAULT_TOLERANCE
from trady.planner.studies.rows import Setting, StudyRow

if TYPE_CHECKING:
    from torch import nn

    from trady.planner.models import Inputs, LossFunction

_BLOCK: Final = 1 << 20


class Common(Record):
    """What all rows of a study share.

    Args:
        scope: Lines the budget holds.
        epochs: Planned epochs.
        only: Patterns of layer names to draw from.
        exclude: Patterns of layer names not to draw from.
        max_depth: Draw from the last so many layers only.
        max_backward_macs: Most multiply-adds of a backward pass.
        min_channels: Fewest channels of a chosen layer.
        horizon: Draws the solver's value looks ahead.
        tolerance: Share of the best value that may be given up for less backward work.
        train: Patterns of parameters that always train.
        train_bias: Train the bias of each drawn layer.
        head: ``"auto"``, ``"none"`` or a layer's name.
        amp: Autocast element type.
        device: Device planned for.
        memory_format: Layout.
    """

    scope: Annotated[Scope, one_of(Scope, "Scope")] = Scope.UPDATE
    epochs: int = 50
    only: Patterns = ()
    exclude: Patterns = ()
    max_depth: int | None = None
    max_backward_macs: int | None = None
    min_channels: int = 1
    horizon: float | None = None
    tolerance: float = DEFAULT_TOLERANCE
    train: Patterns = ()
    train_bias: bool = False
    head: str = "auto"
    amp: Annotated[DType | None, one_of(DType, "Autocast type")] = None
    device: str = "cpu"
    memory_format: Annotated[MemoryFormat, one_of(MemoryFormat, "Layout")] = MemoryFormat.CONTIGUOUS

    def request(self, setting: Setting) -> ChoiceOptions:
        """What a row asks of the solver."""
        of_setting = {"budget": setting.budget_bytes, "optimizer": setting.optimizer}
        return ChoiceOptions.read(dict(self) | of_setting)


class CommonKeywords(BoundKeywords, total=False):
    """:class:`Common` as a user gives them."""

    train: str | Sequence[str]
    head: str
    amp: DType | str | None
    device: str
    memory_format: MemoryFormat | str


@dataclass(frozen=True)
class ModelSpec:
    """A model to be loaded by name or from a file, and what its gradient norms are measured on.

    Args:
        source: As :func:`trady.planner.models.loading.load_model` takes it.
        loading: Its other options, the input shape left out.
        preparing: Options of :func:`trady.planner.planning.preparation.prepare`, the head left out.
        priorities: Known gradient norms; else they are measured.
        measuring: Options of :func:`trady.planner.planning.preparation.priorities_from_data`, the norm mode left out.
    """

    source: str
    loading: dict[str, Any] = field(default_factory=dict)
    preparing: dict[str, Any] = field(default_factory=dict)
    priorities: Priorities | None = None
    measuring: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """How rows call it."""
        return self.source

    def record(self) -> dict[str, object]:
        """What tells it from another model: names, options, and what its file holds."""
        path = Path(self.source)
        return {
            "source": self.source,
            "digest": _digest(path) if path.is_file() else "",
            "loading": self.loading,
            "preparing": {name: None if value is None else str(value) for name, value in self.preparing.items()},
            "priorities": None if self.priorities is None else self.priorities.digest,
            "measuring": self.measuring,
        }


@dataclass(frozen=True)
class ModuleSpec:
    """A model that is in memory already.

    Args:
        name: How rows call it.
        model: The module.
        inputs: Example inputs, one for all input sizes of the study.
        loss: ``loss(outputs, targets)``; by default the model's own, else cross-entropy.
        priorities: Known gradient norms; else they are found without data.
    """

    name: str
    model: "nn.Module"
    inputs: "Inputs"
    loss: "LossFunction | None" = None
    priorities: Priorities | None = None

    def record(self) -> dict[str, object]:
        """What tells it from another model: names, shapes and types of its tensors."""
        from trady.planner.models import fingerprint

        return {
            "source": self.name,
            "digest": fingerprint(self.model),
            "priorities": None if self.priorities is None else self.priorities.digest,
        }


@dataclass(frozen=True)
class Failure:
    """Settings that cannot be planned, and why.

    Args:
        where: What they have in common, in words.
        settings: The settings; none where budgets were to be found.
        why: What is wrong.
    """

    where: str
    settings: tuple[Setting, ...]
    why: str

    def rows(self) -> list[StudyRow]:
        """One row each, so that a table has no holes."""
        return [StudyRow(setting=setting, bought=None, why=self.why) for setting in self.settings]


def _digest(path: Path) -> str:
    """SHA-256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()
