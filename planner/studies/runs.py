"""A study from its models to its rows: traced once, shared out among processes, streamed to disk."""

import importlib.metadata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypedDict, Unpack

from trady.planner.errors import StudyError
from trady.planner.options import check_keywords
from trady.planner.parallel import in_processes, on_ray
from trady.planner.priorities import Priorities
from trady.planner.studies.answers import Answers
from trady.planner.studies.columns import Column, Piece, pieces_of, plan_rows
from trady.planner.studies.folders import StudyFolder, read_definition, read_rows
from trady.planner.studies.grids import Axes, AxesKeywords
from trady.planner.studies.rows import Setting, StudyRow
from trady.planner.studies.specs import Common, CommonKeywords, Failure, ModelSpec, ModuleSpec

if TYPE_CHECKING:
    import pandas
    from torch import nn

    from trady.planner.models import Inputs

_SCHEMA_VERSION: Final = 1

Say = Callable[[str], None]


def _silent(_: object) -> None:
    return None


@dataclass(frozen=True)
class Listener:
    """Who is told how far a study is.

    Args:
        say: Called with a line of text before each stage.
        count: Called with the number of rows that came.
    """

    say: Say = _silent
    count: Callable[[int], None] = _silent


class LoadingKeywords(TypedDict, total=False):
    """How models by name are loaded: :func:`trady.planner.models.loading.load_model` says more."""

    arch: str | None
    loss: str | None
    trust_pickle: bool
    pretrained: bool
    meta: bool


class StudyKeywords(AxesKeywords, CommonKeywords, LoadingKeywords, total=False):
    """Everything that :func:`study` takes beside the models."""

    target_coverage: float | None
    priorities: Priorities | str | Path | None
    output: str | Path | None
    workers: int | None
    progress: Callable[[int], None] | None


@dataclass(frozen=True)
class Study:
    """What a study found.

    Args:
        rows: Every setting and what came of it, in the grid's order.
        failures: What could not be planned at all, in words.
        target: Share of the RGN that was to be reached, if any.
    """

    rows: tuple[StudyRow, ...]
    failures: tuple[str, ...] = ()
    target: float | None = None

    @cached_property
    def answers(self) -> Answers:
        """What the rows say together."""
        return Answers(self.rows, self.target)

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row each: bytes, counts, and shares from 0 to 1; the chosen layers as ``{name: channels}``.

        Returns:
            A table with a row for each setting.

        Raises:
            StudyError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise StudyError('Tables need pandas, which is not installed. Run: pip install "trady[study]"') from error
        return pandas.DataFrame([row.flat() for row in self.rows])

    @classmethod
    def load(cls, folder: str | Path) -> "Study":
        """The rows of a folder that ``trady-study`` wrote; nothing in it is run.

        Returns:
            The study.

        Error:
            StudyError: The folder holds no study, or a line is no row.
        """
        rows = tuple(read_rows(Path(folder)))
        target = (read_definition(Path(folder)) or {}).get("target_coverage")
        return cls(rows, tuple(dict.fromkeys(row.why for row in rows if row.status == "failed")), target)


def study(
    models: "str | Path | tuple[nn.Module, Inputs] | Sequence[str | Path] | Mapping[str, tuple[nn.Module, Inputs]]",
    **options: Unpack[StudyKeywords],
) -> Study:
    """Plan every combination of what is asked for; one trace answers all budgets, batch sizes and optimizers.

    Solving runs in processes of their own, and so does the tracing of several models by name: outside Linux, and for
    several names, a script needs ``if __name__ == "__main__":`` around the call.

    Args:
        models: A name or file as ``trady-plan`` takes it, several of them, ``(module, example inputs)``, or such pairs
            by name.
        **options: ``budgets``: ``"32KB:4MB:24"`` for sizes of equal ratio, a list of sizes, or nothing: then each
            combination gets 24 from the smallest that trains anything to what training everything takes.
            ``batch_sizes``: samples of a micro-batch, ``(1, 8, 32)`` or ``"1:64:7"``; 1 by default.
            ``optimizers``: ``"sinkgd"``, ``"sgd"``, ``"momentum"``, ``"adam"``, ``"adamw"``.
            ``dtypes``: ``"float32"``, ``"bfloat16"``, ``"float16"``, ``"int8"`` (accounting); ``None``, the default,
            leaves the model's own. ``norms``: ``"frozen"``, ``"train"``.
            ``inputs``: shapes of one sample, ``"3x224x224"``, for models by name.
            ``target_coverage``: instead of budgets: find the smallest one, to 1 %, whose plan reaches this share of the
            RGN by the last epoch.
            ``priorities``: gradient norms, or their file, for a single model; else they are found without data.
            ``output``: folder to stream rows to; an interrupted study in it goes on.
            ``workers``: processes; one for each processor by default.
            ``progress``: called with the number of rows that came.
            ``arch``, ``loss``, ``trust_pickle``, ``pretrained``, ``meta``: of
            :func:`trady.planner.models.loading.load_model`, for models by name.
            All else is shared by all rows: the fields of :class:`~trady.planner.studies.specs.Common`.

    Returns:
        Rows, failures, and the answers they give together.

    Error:
        StudyError: The grid is empty, or the folder holds another study.
        TradyError: An option is wrong. A model that cannot be planned is among the failures of the result.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4))
        >>> pictures = torch.randn(2, 3, 8, 8)
        >>> found = study((net, pictures), budgets=["2KB", "4KB"], batch_sizes=(1, 2), workers=1)
        >>> len(found.rows)
        4
    """
    check_keywords("study", options, StudyKeywords)
    priorities = options.get("priorities")
    known = Priorities.load(priorities) if isinstance(priorities, str | Path) else priorities
    loading = {name: value for name, value in options.items() if name in LoadingKeywords.__annotations__}
    return run_study(
        _specs(models, known, loading),
        Axes.read(options),
        Common.read(options),
        target=options.get("target_coverage"),
        output=options.get("output"),
        workers=options.get("workers"),
        listener=Listener(count=options.get("progress") or _silent),
    )


def run_study(
    specs: Sequence[ModelSpec | ModuleSpec],
    axes: Axes,
    common: Common,
    *,
    target: float | None = None,
    output: str | Path | None = None,
    workers: int | None = None,
    ray: str | None = None,
    listener: "Listener | None" = None,
) -> Study:
    """Run a study whose parts are read already.

    Args:
        specs: The models.
        axes: What varies.
        common: What does not.
        target: Share of the RGN to reach with the smallest budget, instead of budgets.
        output: Folder to stream rows to.
        workers: Processes; one for each processor by default.
        ray: Address of a Ray cluster that solves in their place; empty for one on this machine.
        listener: Who is told how far it is.

    Returns:
        Rows and failures.

    Error:
        StudyError: The grid is empty or contradicts itself, or the folder holds another study.
    """
    _check(specs, axes, common, target)
    told = listener or Listener()
    folder = None if output is None else StudyFolder(output, _definition(specs, axes, common, target))
    found: dict[Setting, StudyRow] = {} if folder is None else dict(folder.known)
    told.count(len(found))
    failures: list[str] = []

    def pieces() -> Iterator[Piece]:
        for column in _columns(specs, axes, common, found.keys(), workers, told.say):
            if isinstance(column, Failure):
                failures.append(f"{column.where}: {column.why}")
                take(column.rows())
            else:
                yield from _open_pieces(column, axes, target, found.keys())

    def take(rows: Sequence[StudyRow]) -> None:
        found.update((row.setting, row) for row in rows)
        if folder is not None:
            folder.add(rows)
        told.count(len(rows))

    solved = in_processes(plan_rows, pieces(), workers) if ray is None else on_ray(plan_rows, pieces(), ray or None)
    with closing(solved):
        for rows in solved:
            take(rows)
    ordered = tuple(sorted(found.values(), key=partial(_place, [spec.name for spec in specs], axes)))
    if folder is not None:
        folder.finish(ordered)
    return Study(ordered, tuple(failures), target)


def _definition(
    specs: Sequence[ModelSpec | ModuleSpec], axes: Axes, common: Common, target: float | None
) -> dict[str, Any]:
    """What makes a study the same study: models, axes, and the versions its figures depend on."""
    return {
        "schema_version": _SCHEMA_VERSION,
        "models": [spec.record() for spec in specs],
        "axes": asdict(axes),
        "common": common.model_dump(),
        "target_coverage": target,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "ortools")},
    }


def _columns(
    specs: Sequence[ModelSpec | ModuleSpec],
    axes: Axes,
    common: Common,
    known: Iterable[Setting],
    workers: int | None,
    say: Say,
) -> Iterator[Column | Failure]:
    """The columns of all models: of several models by name, each is prepared in a process of its own."""
    prepare = partial(_prepared, axes=axes, common=common, known=frozenset(known))
    if len(specs) > 1 and workers != 1 and all(isinstance(spec, ModelSpec) for spec in specs):
        say(f"Loading and tracing {len(specs)} models")
        for columns in in_processes(prepare, specs, workers, anew=True):
            yield from columns
        return
    from trady.planner.studies.models import columns_of  # torch

    for spec in specs:
        yield from columns_of(spec, axes, common, frozenset(known), say)


def _prepared(
    spec: ModelSpec | ModuleSpec, axes: Axes, common: Common, known: frozenset[Setting]
) -> list[Column | Failure]:
    """All columns of one model, in another process."""
    from trady.planner.studies.models import columns_of

    return list(columns_of(spec, axes, common, known, _silent))


def _open_pieces(column: Column, axes: Axes, target: float | None, known: Iterable[Setting]) -> Iterator[Piece]:
    """The rows of a column that are not known yet."""
    done = {setting.budget_bytes for setting in known if setting.curve == column.setting.curve}
    if target is not None:
        if not done:
            yield from pieces_of(column, (), target=target)
        return
    budgets = [budget for budget in axes.budgets or column.own_budgets if budget not in done]
    yield from pieces_of(column, budgets)


def _check(specs: Sequence[ModelSpec | ModuleSpec], axes: Axes, common: Common, target: float | None) -> None:
    """Collect what makes no grid, and refuse what no row could be planned with.

    Raises:
        StudyError: The axes contradict each other.
    """
    names = [spec.name for spec in specs]
    empty = [name for name, values in vars(axes).items() if not values and name != "budgets"]
    rules = (
        (not names, "There is no model. Name one."),
        (len(set(names)) < len(names), "A model is named twice. Name each once."),
        (bool(empty), f"The grid is empty: no {', no '.join(empty)}. Give one value at least."),
        (target is not None and not 0 < target <= 1, f"Coverage to reach must be above 0 and at most 1, got {target}."),
        (target is not None and bool(axes.budgets), "A coverage to reach finds its own budgets. Leave --budgets out."),
    )
    problems = [text for wrong, text in rules if wrong]
    if problems:
        raise StudyError(" ".join(problems))
    for setting in replace(axes, budgets=(1,)).settings(names[0], scope=common.scope, epochs=common.epochs):
        common.request(setting).check(setting.dtype)


def _place(names: Sequence[str], axes: Axes, row: StudyRow) -> tuple[int, ...]:
    """Where a row stands in the grid; a model's own input size has no name in the axes."""
    found = row.setting
    inputs = axes.inputs.index(found.input) if found.input in axes.inputs else 0
    return (
        names.index(found.model),
        inputs,
        axes.norms.index(found.norm),
        axes.dtypes.index(found.dtype),
        axes.batch_sizes.index(found.batch_size),
        axes.optimizers.index(found.optimizer),
        found.budget_bytes,
    )


def _specs(models: Any, priorities: Priorities | None, loading: dict[str, Any]) -> list[ModelSpec | ModuleSpec]:
    if isinstance(models, str | Path):
        return [ModelSpec(str(models), loading, priorities=priorities)]
    if isinstance(models, tuple) and len(models) == 2 and not isinstance(models[0], str | Path):
        models = {type(models[0]).__name__: models}
    if isinstance(models, Mapping):
        specs: list[ModelSpec | ModuleSpec] = [
            ModuleSpec(name, model, inputs, priorities=priorities) for name, (model, inputs) in models.items()
        ]
    else:
        specs = [ModelSpec(str(model), loading, priorities=priorities) for model in models]
    if priorities is not None and len(specs) > 1:
        raise StudyError("Priorities are of one model, but several are studied. Study one model, or leave them out.")
    return specs
