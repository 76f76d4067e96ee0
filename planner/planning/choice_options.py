"""What may be chosen, and within what: the options of ``make_plan`` and of the commands that choose.

Held by ``tests/planner/planning/test_planning.py``.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Self, TypedDict

from pydantic import BeforeValidator, Field

from trady.planner.errors import PlanError
from trady.planner.options import (
    DEFAULT_OPTIMIZER,
    DType,
    Inclusion,
    OptimizerKind,
    Scope,
    Strategy,
    read_patterns,
)
from trady.planner.records import Option, Record, Whole, one_of
from trady.planner.sampling import DEFAULT_HORIZON
from trady.planner.solver import DEFAULT_TOLERANCE, Limits
from trady.planner.units import parse_bytes

Draws = Annotated[float, Field(gt=0)]
Patterns = Annotated[tuple[str, ...], BeforeValidator(read_patterns)]


class BoundKeywords(TypedDict, total=False):
    """What bounds a choice, whatever the budget and the strategy, as a user gives it."""

    scope: Scope | str
    epochs: int
    only: str | Sequence[str]
    exclude: str | Sequence[str]
    max_depth: int | None
    max_backward_macs: int | None
    min_channels: int
    horizon: float | None
    tolerance: float
    train_bias: bool


class ChoiceOptions(Record):
    """What may be chosen.

    Args:
        budget_bytes: Bytes of the scope.
        scope: What the budget holds: ``update`` (the drawn channels' own memory), ``training`` (all that training adds
            to inference's weights) or ``peak`` (the most that is live at any moment of a step).
        optimizer: What is kept for each trained element.
        epochs: Planned epochs: the value of a layer looks ahead over at most so many draws.
        strategy: ``solver``, or one of the papers' by name.
        only: Patterns of layer names to draw from.
        exclude: Patterns of layer names not to draw from.
        max_depth: Draw from the last so many layers only.
        max_backward_macs: Most multiply-adds of a backward pass.
        min_channels: Fewest channels of a chosen layer.
        horizon: Draws the solver's value looks ahead; 4 by default. The more, the more layers share the budget; 1
            prefers nothing but the largest norms.
        tolerance: Share of the best value that may be given up for less backward work: among the choices within it
            the one with the fewest multiply-adds towards earlier layers is taken, then the one that keeps least.
        train_bias: Train the bias of each drawn layer.
        inclusion: ``uniform`` draws the channels of a layer alike, ``weighted`` those with larger norms more often: for
            layers whose norm lies in a few channels, as transformers' does.
        scheme: For ``su``: layer name -> ratio, or the name of a published scheme.
    """

    budget_bytes: Annotated[
        int,
        BeforeValidator(parse_bytes),
        Option("Bytes to hold: 256KB, 256KiB, 1.5MB, 111784B.", "SIZE", "budget", "budget", str),
    ]
    scope: Annotated[Scope, one_of(Scope, "Scope"), Option("What the budget holds.")] = Scope.UPDATE
    epochs: Annotated[Whole, Option("Planned epochs.")] = 50
    only: Annotated[Patterns, Option("Draw only from layers whose name matches.", "PATTERN")] = ()
    exclude: Annotated[Patterns, Option("Draw from no layer whose name matches.", "PATTERN")] = ()
    max_depth: Annotated[Whole | None, Option("Draw only from the last N layers.", "N")] = None
    max_backward_macs: Annotated[Whole | None, Option("Bound the backward pass.", "N")] = None
    min_channels: Annotated[Whole, Option("Fewest channels of a layer.")] = 1
    horizon: Annotated[Draws | None, Option("Draws the value looks ahead.  [default: 4]", "DRAWS", type=float)] = None
    tolerance: Annotated[
        float, Field(ge=0, lt=1), Option("Value that may be given up for less backward work.", "SHARE", type=float)
    ] = DEFAULT_TOLERANCE
    train_bias: Annotated[bool, Option("Train the bias of each drawn layer.")] = False
    optimizer: Annotated[
        OptimizerKind,
        one_of(OptimizerKind, "Optimizer"),
        Option("Its state counts."),
    ] = DEFAULT_OPTIMIZER
    strategy: Annotated[
        Strategy,
        one_of(Strategy, "Strategy"),
        Option("How layers and channels are chosen."),
    ] = Strategy.SOLVER
    inclusion: Annotated[
        Inclusion,
        one_of(Inclusion, "Inclusion"),
        Option("Draw a layer's channels alike, or by norm."),
    ] = Inclusion.UNIFORM
    scheme: Annotated[
        dict[str, float] | str | None, Option("For su: mbv2-49kb..., or a JSON file of layer: ratio.", "NAME_OR_JSON")
    ] = None

    @classmethod
    def read(cls, values: Mapping[str, object]) -> Self:
        """From keywords as a user gives them, the budget as ``budget``; those of other records are passed over.

        Returns:
            The options.

        Error:
            UnitError: The budget is no size.
            PlanError: A value is not what its field takes.
        """
        return super().read({**values, "budget_bytes": values["budget"]})

    def check(self, dtype: DType | None) -> None:
        """Collect every contradiction and say them at once.

        Args:
            dtype: Element type the model is planned in, where one is asked for.

        Raises:
            PlanError: Options contradict each other or are out of range.
        """
        rules = (
            (
                dtype is not DType.INT8 or self.scope is Scope.UPDATE,
                "Element type 'int8' is accounting for scope 'update' only. Use --scope update.",
            ),
            (
                self.scheme is None or self.strategy is Strategy.SU,
                f"A scheme is for strategy 'su', not {self.strategy.value!r}. Use --strategy su.",
            ),
            (
                self.strategy is Strategy.SOLVER or not self._only_the_solver_heeds(),
                f"Strategy {self.strategy.value!r} fills the budget by its own rule: --min-channels, "
                "--max-backward-macs, --horizon, --tolerance and --inclusion are the solver's. Leave them out, or use "
                "--strategy solver.",
            ),
        )
        problems = [message for holds, message in rules if not holds]
        if problems:
            raise PlanError(" ".join(problems))

    def limits(self) -> Limits:
        """The same for the solver: its value looks ahead over no more draws than there are epochs."""
        horizon = DEFAULT_HORIZON if self.horizon is None else self.horizon
        return Limits(
            self.budget_bytes,
            self.scope,
            min_channels=self.min_channels,
            max_backward_macs=self.max_backward_macs,
            horizon=min(horizon, float(self.epochs)),
            tolerance=self.tolerance,
        )

    def _only_the_solver_heeds(self) -> bool:
        of_solver = self.horizon is not None or self.inclusion is not Inclusion.UNIFORM
        bounded = self.min_channels > 1 or self.max_backward_macs is not None
        return of_solver or bounded or self.tolerance != DEFAULT_TOLERANCE
