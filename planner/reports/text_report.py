"""Plans and priorities as text for the terminal; readable at 80 columns, and without colour in a pipe."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.text import Text

from trady.planner.ledger import PEAK_LINES, TRAINING_LINES, UPDATE_LINES, Lines
from trady.planner.options import DType, Inclusion, Scope
from trady.planner.plan import Plan
from trady.planner.priorities import TRUST, Priorities, PrioritySource
from trady.planner.reports.summary import ChosenLayer, PlanFigures, plan_figures, with_most_bytes
from trady.planner.reports.text_parts import headed_table, heading, item, shorten
from trady.planner.sampling import STRATEGIES, TOP_SHARE
from trady.planner.units import counted, format_bytes, format_count, format_share

if TYPE_CHECKING:
    from trady.planner.costs import ForwardMacs

#: Most rows of a table of layers.
MOST_ROWS: Final = 40
_FIRST_NAMES: Final = 3
_WIDE: Final = 104
_BAR: Final = 10
_GAP: Final = 2
_LEAST_NAME: Final = 12


def plan_report(plan: Plan) -> RenderableType:
    """What trains, what it costs, what it saves, and what to be careful about."""
    figures = plan_figures(plan)
    return Group(
        _headline(plan, figures),
        "",
        heading("Ledger"),
        _ledger_table(plan, figures),
        "",
        heading(_layers_heading(figures)),
        _LayerTable(figures.layers),
        Text(value_note(plan), style="dim"),
        "",
        heading(f"Saved, against fine-tuning all channels of the {len(plan.table.layers)} layers"),
        _savings_table(figures),
        "",
        heading("To know"),
        *(item(text) for text in remarks(plan)),
    )


def priorities_report(priorities: Priorities) -> RenderableType:
    """Layers by RGN, with the mark at which the paper's top-K ends."""
    top = len(priorities.top(TOP_SHARE))
    title = Text.assemble(
        (f"Priorities of {counted(len(priorities.layers), 'layer')}", "bold"),
        f": {top} hold {100 * TOP_SHARE:.0f} % of the RGN (the paper's top-K).",
    )
    source = _source(priorities.source, priorities.origin, priorities.num_batches, priorities.tail_index)
    return Group(title, Text(f"Source: {source}"), "", _RankTable(priorities, top))


def macs_report(counted: "ForwardMacs") -> RenderableType:
    """Forward multiply-adds of one sample by kind of operation, and who counted them."""
    table = headed_table(("kind of operation", "<"), ("forward MACs", ">"), ("counted by", "<"))
    for kind, macs in counted.macs.items():
        table.add_row(kind.value, format_count(macs), counted.sources[kind].value)
    table.add_section()
    table.add_row("all", format_count(counted.total), "")
    notes = [item(f"Not counted, its kernel is opaque: {name}") for name in counted.uncounted]
    return Group(heading("Forward multiply-adds of one sample"), table, *notes)


def _headline(plan: Plan, figures: PlanFigures) -> RenderableType:
    settings = plan.settings
    title = Text.assemble(
        (plan.model.source, "bold"),
        ": ",
        (f"{format_bytes(figures.used_bytes)} of {format_bytes(settings.budget_bytes)}", "bold green"),
        f" ({format_share(figures.budget_share)}) in scope {settings.scope.value}, strategy {plan.strategy.name.value}",
    )
    return Group(title, Text(_what_trains(plan, figures)), Text(step_line(plan)))


def _what_trains(plan: Plan, figures: PlanFigures) -> str:
    text = (
        f"Trains {len(figures.layers)} of {len(plan.table.layers)} layers, {figures.channels.drawn:,} of "
        f"{figures.channels.full:,} input channels: {format_share(plan.solver.value, 1)} of the value of training all"
    )
    return f"{text} ({proof(plan)}).{given_up(plan)}"


def given_up(plan: Plan) -> str:
    """What the tolerance gave up, and what that saved; empty where nothing was."""
    solver = plan.solver
    if not solver.given_up:
        return ""
    return (
        f" Gave up {format_share(solver.given_up)} of the value for {format_share(solver.backward_saved, 0)} less work "
        "in the backward pass (--tolerance 0 keeps it)."
    )


def proof(plan: Plan) -> str:
    """How well it is proven that no choice is better."""
    solver = plan.solver
    if solver.status == "drawn":
        return "first epoch" if STRATEGIES[plan.strategy.name].dynamic else "the same draw in every epoch"
    if solver.status == "optimal":
        return "proven best" if solver.gap == 0 else f"proven within {_rounded_up(solver.gap)} of the best"
    return f"the search was stopped, at most {_rounded_up(solver.gap)} below the best"


def _rounded_up(gap: float) -> str:
    return f"{math.ceil(gap * 1e4) / 1e2:.2f} %"


def step_line(plan: Plan) -> str:
    """How the step is run."""
    settings = plan.settings
    head = ", ".join(plan.model.head.layers)
    parts = [
        f"batch {settings.batch_size}",
        settings.optimizer.value,
        f"{settings.epochs} epochs" if settings.epochs != 1 else "1 epoch",
        f"norms {'frozen' if settings.norm == 'frozen' else 'in training mode'}",
        *([settings.dtype.value] if settings.dtype else []),
        *([f"autocast {settings.amp.value}"] if settings.amp else []),
        settings.device,
    ]
    return "Step: " + ", ".join(parts) + (f". Always trained: {head}." if head else ".")


def _ledger_table(plan: Plan, figures: PlanFigures) -> RenderableType:
    table = headed_table(
        ("line", "<"), ("plan", ">"), *((scope.value, "^") for scope in Scope), ("full fine-tuning", ">")
    )
    dense = {name: format_bytes(num_bytes) for name, num_bytes in dense_bytes(plan, figures).items()}
    dense["saved_activations"] += "*"
    for name in Lines.model_fields:
        ticks = ("x" if name in lines else "" for lines in (UPDATE_LINES, TRAINING_LINES, PEAK_LINES))
        table.add_row(_words(name), _bytes_or_not(getattr(plan.ledger.lines, name)), *ticks, dense.get(name, ""))
    table.add_section()
    for scope in Scope:
        total = _bytes_or_not(getattr(plan.ledger.scopes, scope.value))
        style = "bold" if scope is plan.settings.scope else ""
        table.add_row(f"scope {scope.value}", total, "", "", "", dense.get(f"scope_{scope.value}", ""), style=style)
    return Group(table, Text(dense_footnote(plan, figures), style="dim"))


def dense_bytes(plan: Plan, figures: PlanFigures) -> dict[str, int]:
    """Line of the ledger -> its bytes in full fine-tuning, of the lines that it has too; and their sum."""
    return {
        "gradients": plan.table.dense_gradient_bytes,
        "saved_activations": plan.table.dense_saved_bytes,
        "optimizer_state": plan.table.dense_optimizer_bytes,
        "scope_training": figures.training_bytes.full,
    }


def dense_footnote(plan: Plan, figures: PlanFigures) -> str:
    """What the starred figure of full fine-tuning holds, and how many times the plan's it all is."""
    training = figures.training_bytes
    note = "* all that autograd keeps for backward, residuals included."
    if training.drawn:
        note += f" Full fine-tuning adds {training.full / training.drawn:.1f} times the plan's scope training."
    if plan.settings.dtype is DType.INT8:
        note += " It is counted in float32: PyTorch does not train in int8."
    return note


def _layers_heading(figures: PlanFigures) -> str:
    if len(figures.layers) <= MOST_ROWS:
        return "Layers that train"
    return f"Layers that train: the {MOST_ROWS} with the most bytes, of {len(figures.layers)}"


@dataclass(frozen=True)
class _LayerTable:
    """One row per layer, in the model's order; bytes in three parts where the terminal is wide enough."""

    layers: Sequence[ChosenLayer]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = options.max_width >= _WIDE
        shown = with_most_bytes(self.layers, MOST_ROWS)
        parts = ("gradients", "stored", "state") if wide else ()
        heads = ("kind", "channels", *parts, "bytes", "value")
        cells = [
            (
                layer.kind,
                f"{layer.channels:,}/{layer.in_channels:,}",
                *(map(format_bytes, _parts(layer)) if wide else ()),
                format_bytes(layer.update_bytes),
                format_share(layer.value_share),
            )
            for layer in shown
        ]
        width = _room_for_names(options, heads, cells, with_bar=True)
        table = headed_table(("layer", "<"), ("kind", "<"), *((name, ">") for name in heads[1:]), ("", "<"))
        most = max((layer.value_share for layer in shown), default=0.0)
        for layer, row in zip(shown, cells, strict=True):
            table.add_row(shorten(layer.name, width), *row, _bar(layer.value_share, most))
        yield table
        rest = [layer for layer in self.layers if layer not in shown]
        if rest:
            num_bytes = format_bytes(sum(layer.update_bytes for layer in rest))
            yield f"and {len(rest)} more: {sum(layer.channels for layer in rest):,} channels, {num_bytes}, " + (
                f"{format_share(sum(layer.value_share for layer in rest))} of the value"
            )


def _parts(layer: ChosenLayer) -> tuple[int, int, int]:
    return layer.gradient_bytes, layer.stored_bytes + layer.index_bytes, layer.optimizer_bytes


def value_note(plan: Plan) -> str:
    """What the value of a layer is."""
    rule, horizon = STRATEGIES[plan.strategy.name], plan.solver.horizon
    draws = "one draw" if horizon == 1 else f"{horizon:g} draws"
    note = f"value: gradient norm that {draws} can be expected to reach, as a share of all layers'."
    if plan.solver.inclusion is Inclusion.WEIGHTED:
        note += " Channels with larger norms are drawn more often."
    if rule.dynamic and rule.draw.fills_budget:
        pool = counted(len(plan.strategy.eligible), "layer")
        note += f" Shown is the first epoch with seed 0; each epoch fills the budget anew from {pool}."
    return note


def _savings_table(figures: PlanFigures) -> RenderableType:
    table = headed_table(("", "<"), ("saved", ">"), ("plan", ">"), ("all", ">"), ("", "<"))
    rows = (
        ("activation sparsity", figures.activation_elements, "elements a sample"),
        ("weight-derivative sparsity", figures.weight_grad_elements, "elements"),
        ("weight-derivative MACs saved", figures.weight_grad_macs, "MACs a step"),
        ("backward MACs saved", figures.backward_macs, "MACs a step"),
    )
    for name, part, unit in rows:
        table.add_row(
            name, format_share(part.saved_share), format_count(part.drawn), format_count(part.full), Text(unit, "dim")
        )
    return table


def remarks(plan: Plan) -> Iterator[str]:
    """What a reader should be careful about."""
    record = plan.priorities
    yield f"Priorities: {_source(record.source, record.origin, record.num_batches, record.tail_index)}"
    if plan.not_drawn:
        yield f"Not drawn from: {counted(len(plan.not_drawn), 'parameter')}. " + _by_reason(
            plan.not_drawn, _FIRST_NAMES
        )
    if plan.unaccounted:
        yield (
            f"Not in the ledger: {counted(len(plan.unaccounted), 'operation')}. "
            + _by_reason(plan.unaccounted, len(plan.unaccounted))
        )
    else:
        yield "Every operation of the step is in the ledger."
    trust = f"Priorities {TRUST[record.source]}."
    yield from (note for note in plan.notes if note != trust)


def _source(source: PrioritySource, origin: str, num_batches: int, tail_index: float | None) -> str:
    measured = f" ({origin}, {counted(num_batches, 'batch', 'batches')})" if num_batches else ""
    tail = "" if tail_index is None else f" Tail index of the gradients {tail_index:.2f} (2 is Gaussian)."
    return f"{TRUST[source]}{measured}.{tail}"


def _by_reason(reasons: Mapping[str, str], most: int) -> str:
    """Names under the reason they share, the first few of each."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    texts = []
    for reason, found in names.items():
        more = f" and {len(found) - most:,} more" if len(found) > most else ""
        texts.append(f"{', '.join(found[:most])}{more}: {reason}.")
    return " ".join(texts)


@dataclass(frozen=True)
class _RankTable:
    """Layers by RGN; a rule where the top-K ends."""

    priorities: Priorities
    top: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = options.max_width >= _WIDE
        ranked = self.priorities.ranked()
        total = math.fsum(layer.rgn for layer in ranked) or 1.0
        held = accumulate(layer.rgn / total for layer in ranked)
        heads = ("rank", "channels", "norm", "RGN", "LaRa", "cumulative")
        cells = [
            (
                str(rank),
                f"{len(layer.channel_norms):,}",
                *(f"{value:.3g}" for value in (layer.norm, layer.rgn, layer.lara)),
                format_share(share),
            )
            for rank, (layer, share) in enumerate(zip(ranked[:MOST_ROWS], held, strict=False), start=1)
        ]
        width = _room_for_names(options, heads, cells, with_bar=wide)
        table = headed_table(
            ("rank", ">"), ("layer", "<"), *((name, ">") for name in (*heads[1:], *([""] if wide else [])))
        )
        for rank, (layer, row) in enumerate(zip(ranked, cells, strict=False), start=1):
            bar = [_bar(layer.rgn, ranked[0].rgn)] if wide else []
            table.add_row(row[0], shorten(layer.name, width), *row[1:], *bar, end_section=rank == self.top)
        yield table
        if self.top <= min(MOST_ROWS, len(ranked) - 1):
            yield Text(f"The rule after rank {self.top} is the {100 * TOP_SHARE:.0f} % mark.", style="dim")
        if len(ranked) > MOST_ROWS:
            yield f"and {len(ranked) - MOST_ROWS} more layers of smaller RGN"


def _room_for_names(
    options: ConsoleOptions, heads: Sequence[str], cells: Sequence[Sequence[str]], with_bar: bool
) -> int:
    """Columns left for the names of layers beside these cells."""
    columns = zip(heads, *cells, strict=True)
    bar = (_BAR + _GAP) if with_bar else 0
    return max(_LEAST_NAME, options.max_width - bar - sum(_GAP + max(map(len, column)) for column in columns))


def _bar(part: float, whole: float) -> ProgressBar:
    return ProgressBar(total=whole or 1.0, completed=part, width=_BAR)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _bytes_or_not(num_bytes: int | None) -> str:
    return "not predicted" if num_bytes is None else format_bytes(num_bytes)
