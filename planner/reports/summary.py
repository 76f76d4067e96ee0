"""What follows from a plan: each layer's bytes and share, and the sparsities; no torch.

Held by ``tests/planner/reports/test_text_report.py``.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import fsum

from trady.planner.ledger import INDEX_BYTES, BatchedLedger, CostTable
from trady.planner.options import Inclusion
from trady.planner.plan import Plan
from trady.planner.priorities import TRUST
from trady.planner.sampling import ChannelDraw, covered_shares, draw, expected_norms


@dataclass(frozen=True)
class ChosenLayer:
    """A layer that trains. Over all chosen layers each kind of bytes adds up to its line of the ledger.

    Args:
        name: Module path.
        kind: ``conv``, ``linear``...
        channels: Input channels drawn.
        in_channels: Input channels it has.
        gradient_bytes: Gradients of the drawn channels.
        stored_bytes: Stored inputs of the drawn channels. A channel that several layers read is stored once and
            charged to the one of them that draws the most; 0 where the input is kept anyway.
        optimizer_bytes: Optimizer state of the drawn channels.
        index_bytes: Indices of the stored channels, or its own where the draws of its input group are not nested.
        value_share: Share of the value of training every channel of the table.
    """

    name: str
    kind: str
    channels: int
    in_channels: int
    gradient_bytes: int
    stored_bytes: int
    optimizer_bytes: int
    index_bytes: int
    value_share: float

    @property
    def update_bytes(self) -> int:
        """All of it: the layer's part of scope ``update``."""
        return self.gradient_bytes + self.stored_bytes + self.optimizer_bytes + self.index_bytes


@dataclass(frozen=True)
class PartOf:
    """An amount of a plan, and the same of fine-tuning every channel of every layer of its table."""

    drawn: int
    full: int

    @property
    def saved_share(self) -> float:
        """Sparsity: ``1 - drawn / full``; 0 where there is nothing to save."""
        return 1.0 - self.drawn / self.full if self.full else 0.0


@dataclass(frozen=True)
class StepFigures:
    """What follows from channel counts. "Full" is every channel of all layers of the table, the head's own left out.

    Args:
        layers: The layers that train, in the model's order.
        channels: Input channels.
        activation_elements: Elements of the layers' inputs, one sample: drawn channels of all channels. Inputs that
            several layers share count once. ``saved_share`` is the activation sparsity.
        weight_grad_elements: Elements of the weight gradients. ``saved_share`` is the weight-derivative sparsity.
        weight_grad_macs: Multiply-adds of the weight gradients, whole batch.
        backward_macs: The same and the gradients towards earlier layers, as far back as anything trains.
    """

    layers: tuple[ChosenLayer, ...]
    channels: PartOf
    activation_elements: PartOf
    weight_grad_elements: PartOf
    weight_grad_macs: PartOf
    backward_macs: PartOf


@dataclass(frozen=True)
class PlanFigures(StepFigures):
    """The derived figures of a plan.

    Args:
        used_bytes: Bytes of the budget's scope.
        budget_share: The same as a share of the budget.
        training_bytes: Scope ``training`` of the plan against what dense training of the whole model adds: all that
            autograd keeps, all gradients and all optimizer state.
    """

    used_bytes: int
    budget_share: float
    training_bytes: PartOf


def with_most_bytes(layers: Sequence[ChosenLayer], most: int) -> list[ChosenLayer]:
    """The layers with the most bytes, in the model's order."""
    kept = set(sorted(layers, key=lambda layer: -layer.update_bytes)[:most])
    return [layer for layer in layers if layer in kept]


def plan_figures(plan: Plan) -> PlanFigures:
    """Derive the figures a report shows. For strategies that draw anew each epoch, those of the first (seed 0)."""
    table, costs = plan.table, BatchedLedger(plan.table)
    first = draw(plan, 0, ledger=costs)
    charges = stored_channels(table, first), indexed_channels(table, first)
    figures = step_figures(costs, plan.counts, value_shares(plan), charges)
    used = plan.ledger.scopes.of(plan.settings.scope)
    dense = table.dense_saved_bytes + table.dense_gradient_bytes + table.dense_optimizer_bytes
    return PlanFigures(
        **vars(figures),
        used_bytes=used,
        budget_share=used / plan.settings.budget_bytes,
        training_bytes=PartOf(plan.ledger.scopes.training, dense),
    )


def step_figures(
    costs: BatchedLedger,
    counts: Sequence[int],
    shares: Sequence[float],
    charges: tuple[Sequence[int], Sequence[int]] | None = None,
) -> StepFigures:
    """Derive the figures of channel counts.

    Args:
        costs: Costs of the layers.
        counts: Channels of each.
        shares: Value of each, as a share of the value of training everything.
        charges: Stored channels and indices that each layer is charged for; by default those of nested draws.

    Returns:
        Bytes, channels and shares of the step and of each layer.
    """
    table = costs.table
    everything = tuple(layer.in_channels for layer in table.layers)
    both = costs.one_run(counts), costs.one_run(everything)
    stored, indexed = charges or (nested_channels(table, counts),) * 2
    return StepFigures(
        layers=_chosen_layers(costs, counts, shares, stored, indexed),
        channels=PartOf(sum(counts), sum(everything)),
        activation_elements=PartOf(
            _input_elements(table, stored), _input_elements(table, nested_channels(table, everything))
        ),
        weight_grad_elements=PartOf(_weight_elements(table, counts), _weight_elements(table, everything)),
        weight_grad_macs=PartOf(*(int(costs.weight_grad_macs(run)[0]) for run in both)),
        backward_macs=PartOf(*(int(costs.backward_macs(run)[0]) for run in both)),
    )


def nested_channels(table: CostTable, counts: Sequence[int]) -> tuple[int, ...]:
    """Input channels each layer is charged for where the draws of an input group are nested: its largest pays."""
    left: dict[int, int] = {}
    for layer, count in zip(table.layers, counts, strict=True):
        left[layer.group] = max(left.get(layer.group, 0), count)
    return tuple(
        left.pop(layer.group) if count and left.get(layer.group) == count else 0
        for layer, count in zip(table.layers, counts, strict=True)
    )


def stored_channels(table: CostTable, drawn: ChannelDraw) -> tuple[int, ...]:
    """Input channels each layer is charged for: those no layer of its input group that draws more has drawn."""
    charged = [0] * len(table.layers)
    seen: dict[int, set[int]] = {}
    counts = drawn.counts(table)
    for index in sorted(range(len(table.layers)), key=lambda index: -counts[index]):
        layer = table.layers[index]
        if layer.name in drawn.channels:
            group = seen.setdefault(layer.group, set())
            before = len(group)
            group.update(drawn.channels[layer.name].tolist())
            charged[index] = len(group) - before
    return tuple(charged)


def indexed_channels(table: CostTable, drawn: ChannelDraw) -> tuple[int, ...]:
    """Indices each layer is charged for: those of its stored channels, or its own where a group's draws differ."""
    charged = dict(zip((layer.name for layer in table.layers), stored_channels(table, drawn), strict=True))
    for members in drawn.by_group(table).values():
        if not drawn.is_nested(members):
            charged |= {name: len(channels) for name, channels in members.items()}
    return tuple(charged.values())


def layer_rgn(plan: Plan) -> tuple[float, ...]:
    """Reweighted gradient norm of every layer of the table: its norms per element of ``C_W + C_A``."""
    return tuple(value / layer.sample_cost for value, layer in zip(plan.layer_values, plan.table.layers, strict=True))


def value_shares(plan: Plan) -> tuple[float, ...]:
    """Value of every layer of the table, as a share of the value of training everything: norms times coverage."""
    if plan.solver.inclusion is Inclusion.UNIFORM:
        return covered_shares(plan.layer_values, plan.table, plan.counts, plan.solver.horizon)
    reached = [
        float(expected_norms(plan.channel_norms(index), [count], plan.solver.horizon)[0])
        for index, count in enumerate(plan.counts)
    ]
    total = fsum(plan.layer_values)
    return tuple(found / total if total else 0.0 for found in reached)


def summary_json(plan: Plan) -> dict[str, object]:
    """The plan in short, for machines: what ``trady-plan --json`` prints. Bytes, counts and shares from 0 to 1."""
    figures = plan_figures(plan)
    return {
        "model": {
            "source": plan.model.source,
            "arch": plan.model.arch,
            "num_parameters": plan.model.num_parameters,
            "head": list(plan.model.head.layers),
            "classes": plan.model.head.classes,
        },
        "settings": plan.settings.model_dump(mode="json"),
        "strategy": {"name": plan.strategy.name.value, "num_eligible": len(plan.strategy.eligible)},
        "used_bytes": figures.used_bytes,
        "budget_share": figures.budget_share,
        "ledger": plan.ledger.model_dump(mode="json"),
        "dense": {
            "saved_bytes": plan.table.dense_saved_bytes,
            "gradient_bytes": plan.table.dense_gradient_bytes,
            "optimizer_bytes": plan.table.dense_optimizer_bytes,
        },
        "num_layers": len(plan.table.layers),
        "channels": asdict(figures.channels),
        "layers": [asdict(layer) | {"update_bytes": layer.update_bytes} for layer in figures.layers],
        "sparsity": {
            "activation": figures.activation_elements.saved_share,
            "weight_derivative": figures.weight_grad_elements.saved_share,
            "weight_derivative_macs_saved": figures.weight_grad_macs.saved_share,
            "backward_macs_saved": figures.backward_macs.saved_share,
        },
        "solver": plan.solver.model_dump(mode="json"),
        "priorities": plan.priorities.model_dump(mode="json") | {"trust": TRUST[plan.priorities.source]},
        "not_drawn": plan.not_drawn,
        "unaccounted": plan.unaccounted,
        "notes": list(plan.notes),
    }


def _chosen_layers(
    costs: BatchedLedger, counts: Sequence[int], shares: Sequence[float], stored: Sequence[int], indexed: Sequence[int]
) -> tuple[ChosenLayer, ...]:
    prices = costs.stored_prices(costs.trained(costs.one_run(counts)))[0].tolist()
    rows = zip(costs.table.layers, counts, stored, indexed, shares, strict=True)
    return tuple(
        ChosenLayer(
            name=layer.name,
            kind=layer.kind,
            channels=count,
            in_channels=layer.in_channels,
            gradient_bytes=count * layer.gradient_bytes,
            stored_bytes=charged * prices[layer.group],
            optimizer_bytes=count * layer.optimizer_bytes + layer.optimizer_tensor_bytes,
            index_bytes=indices * INDEX_BYTES,
            value_share=share,
        )
        for layer, count, charged, indices, share in rows
        if count
    )


def _input_elements(table: CostTable, stored: Sequence[int]) -> int:
    return sum(layer.sample_elements * count for layer, count in zip(table.layers, stored, strict=True))


def _weight_elements(table: CostTable, counts: Sequence[int]) -> int:
    return sum(layer.weight_elements * count for layer, count in zip(table.layers, counts, strict=True))
