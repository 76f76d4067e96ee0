"""Small cost tables: random ones for properties, and plans around them, without any model."""

import itertools
from collections.abc import Iterator, Sequence

from hypothesis import strategies as st

from trady.planner.ledger import BatchedLedger
from trady.planner.ledger.cost_records import (
    BackwardCosts,
    GradientBytes,
    GroupInput,
    InputGroup,
    KeptBytes,
    LayerCosts,
    OperationCosts,
    SliceCosts,
    Upstream,
)
from trady.planner.ledger.cost_table import CostTable
from trady.planner.options import MemoryFormat, NormMode, OptimizerKind, Scope, Strategy
from trady.planner.plan.plan import (
    HeadRecord,
    ModelRecord,
    Plan,
    PriorityRecord,
    Settings,
    SolverRecord,
    StrategyRecord,
    TensorSpec,
)
from trady.planner.priorities.priorities import PrioritySource
from trady.planner.sampling.schedule import draw


def layer_costs(
    index: int,
    channels: int,
    group: int,
    *,
    weight_elements: int = 3,
    sample_elements: int = 4,
    optimizer: int = 1,
    tensor_bytes: int = 4,
    bias_bytes: int = 0,
    macs: int = 10,
) -> LayerCosts:
    gradient_bytes = 4 * weight_elements
    return LayerCosts(
        name=f"layer{index}",
        weight_name=f"layer{index}.weight",
        bias_name="",
        kind="linear",
        channel_dim=1,
        in_channels=channels,
        out_channels=weight_elements,
        groups=1,
        group=group,
        weight_elements=weight_elements,
        sample_elements=sample_elements,
        output_elements=sample_elements,
        gradient_bytes=gradient_bytes,
        optimizer_bytes=optimizer * gradient_bytes,
        optimizer_tensor_bytes=tensor_bytes if optimizer else 0,
        active_weight_bytes=gradient_bytes,
        bias_bytes=bias_bytes,
        forward_macs=macs * channels,
        weight_grad_macs=macs,
    )


def cost_table(
    layers: Sequence[LayerCosts],
    groups: Sequence[InputGroup],
    upstreams: Sequence[Upstream] = (),
    kept: Sequence[KeptBytes] = (),
    gradients: Sequence[tuple[int, int]] = (),
    always_trained_bytes: int = 0,
) -> CostTable:
    """A table whose operations keep ``kept`` and take ``gradients``: pairs of multiply-adds and upstream."""
    operations = [OperationCosts(target="op", module="m", kept=(entry,)) for entry in kept]
    operations += [
        OperationCosts(target="mm", module="m", macs=macs, gradients=(upstream,)) for macs, upstream in gradients
    ]
    return CostTable(
        batch_size=1,
        layers=tuple(layers),
        groups=tuple(groups),
        upstreams=tuple(upstreams),
        operations=tuple(operations),
        storages=(),
        always_trained_bytes=always_trained_bytes,
        weight_bytes=0,
        input_bytes=0,
        dense_saved_bytes=0,
        dense_gradient_bytes=0,
        dense_optimizer_bytes=0,
    )


@st.composite
def cost_tables(draw: st.DrawFn, max_layers: int = 4, max_channels: int = 4) -> CostTable:
    """Random tables with input groups, nested and odd upstreams, inputs kept anyway, biases."""
    widths = draw(st.lists(st.integers(1, max_channels), min_size=1, max_size=max_layers))
    upstreams = [Upstream(always=True, layers=())]
    upstreams += [
        Upstream.from_bits(draw(st.integers(1, 2 ** len(widths) - 1)), always=False)
        for _ in range(draw(st.integers(1, 4)))
    ]
    places = st.integers(0, len(upstreams) - 1)
    layers: list[LayerCosts] = []
    groups: list[InputGroup] = []
    for index, channels in enumerate(widths):
        same = [layer.group for layer in layers if layer.in_channels == channels]
        if bool(same) and draw(st.booleans()):
            group = same[-1]
        else:
            group = len(groups)
            inputs = st.builds(GroupInput, channel_bytes=st.integers(1, 60), kept_by=st.none() | places)
            groups.append(InputGroup(inputs=tuple(draw(st.lists(inputs, min_size=1, max_size=2)))))
        layers.append(
            layer_costs(
                index,
                channels,
                group,
                weight_elements=draw(st.integers(1, 8)),
                optimizer=draw(st.integers(0, 2)),
                bias_bytes=draw(st.sampled_from([0, 0, 12])),
                macs=draw(st.integers(1, 20)),
            )
        )
    entries = st.builds(
        KeptBytes,
        num_bytes=st.integers(0, 100),
        upstream=places,
        line=st.sampled_from(["residuals", "residuals", "always_trained"]),
        storage=st.none(),
    )
    return cost_table(
        layers,
        groups,
        upstreams,
        draw(st.lists(entries, max_size=4)),
        draw(st.lists(st.tuples(st.integers(1, 50), places), max_size=3)),
        draw(st.integers(0, 20)),
    )


def all_counts(table: CostTable) -> Iterator[tuple[int, ...]]:
    """Every way to choose channel counts."""
    return itertools.product(*(range(layer.in_channels + 1) for layer in table.layers))


def full_counts(table: CostTable) -> tuple[int, ...]:
    return tuple(layer.in_channels for layer in table.layers)


def plan_of(
    table: CostTable,
    strategy: Strategy = Strategy.SOLVER,
    *,
    budget_bytes: int,
    scope: Scope = Scope.UPDATE,
    counts: Sequence[int] | None = None,
    norms: Sequence[tuple[float, ...]] | None = None,
    eligible: Sequence[int] | None = None,
    fixed_channels: dict[str, tuple[int, ...]] | None = None,
) -> Plan:
    """A plan around a table; counts are those of the first epoch, as in a plan that was made."""
    draft = Plan(
        model=ModelRecord(
            source="tests",
            arch="",
            inputs=(TensorSpec(name="0", shape=(3,), dtype="float32"),),
            pictures=None,
            head=HeadRecord(layers=(), classes=None),
            loss="cross_entropy",
            num_parameters=1,
            fingerprint="0" * 64,
            tensors={},
        ),
        settings=Settings(
            budget_bytes=budget_bytes,
            scope=scope,
            batch_size=1,
            epochs=5,
            optimizer=OptimizerKind.SGD,
            norm=NormMode.FROZEN,
            dtype=None,
            amp=None,
            device="cpu",
            memory_format=MemoryFormat.CONTIGUOUS,
            train_bias=False,
            train=(),
            torch_version="2.13.0",
        ),
        strategy=StrategyRecord(
            name=strategy,
            eligible=tuple(range(len(table.layers)) if eligible is None else eligible),
            fixed_channels=fixed_channels or {},
        ),
        priorities=PriorityRecord(
            source=PrioritySource.UNIFORM, origin="tests", num_batches=0, tail_index=None, digest="0" * 64
        ),
        solver=SolverRecord(status="drawn", value=0.5, bound=1.0, gap=0.5, horizon=4.0, ortools_version=""),
        counts=tuple(counts or (0,) * len(table.layers)),
        ledger=BatchedLedger(table).of(counts or (0,) * len(table.layers)),
        norms=tuple(norms or (1.0,) * len(table.layers)),
        table=table,
        not_drawn={},
        unaccounted={},
        notes=(),
    )
    first = draw(draft, 0)
    return draft.model_copy(update={"counts": first.counts(table), "ledger": first.ledger(BatchedLedger(table))})


@st.composite
def peak_tables(draw: st.DrawFn, max_layers: int = 3, max_channels: int = 4) -> CostTable:
    """Random tables with lifetimes: storages that die early or late, gradients that wait, workspaces."""
    table = draw(cost_tables(max_layers, max_channels))
    number = draw(st.integers(len(table.layers), len(table.layers) + 3))
    sizes = tuple(draw(st.lists(st.integers(0, 80), min_size=number, max_size=number)))
    places, amounts = st.integers(0, len(table.upstreams) - 1), st.integers(0, 60)
    ends = [draw(st.none() | st.integers(place, number - 1)) for place in range(number)]
    layers_at = sorted(draw(st.permutations(range(number)))[: len(table.layers)])
    first_reader: dict[int, int] = {}
    for index, layer in enumerate(table.layers):
        first_reader.setdefault(layer.group, layers_at[index])
    operations = []
    for place in range(number):
        kept = draw(
            st.lists(
                st.builds(
                    KeptBytes,
                    num_bytes=amounts,
                    upstream=places,
                    line=st.sampled_from(["residuals", "residuals", "always_trained"]),
                    storage=st.none() | st.just(place),
                ),
                max_size=1,
            )
        )
        kept = [
            entry if entry.storage is None else entry.model_copy(update={"num_bytes": sizes[place]}) for entry in kept
        ]
        slices = [
            SliceCosts(
                layer=index,
                base=draw(amounts),
                channel=draw(st.integers(0, 9)),
                block=draw(amounts),
                exact=draw(st.sampled_from([(), ((1, 70),)])),
            )
            for index, at in enumerate(layers_at)
            if at == place
        ]
        operations.append(
            OperationCosts(
                target="op",
                module="m",
                allocates=(place,),
                frees=tuple(storage for storage, end in enumerate(ends) if end == place),
                kept=tuple(kept),
                workspace=draw(amounts),
                recording=draw(amounts),
                recorded_when=draw(places),
                stores=tuple(
                    (group, position)
                    for group, at in first_reader.items()
                    if at == place
                    for position in range(len(table.groups[group].inputs))
                ),
                slices=tuple(slices),
                backwards=tuple(
                    draw(st.lists(st.builds(BackwardCosts, upstream=places, workspace=amounts), max_size=1))
                ),
                always_gradients=draw(st.sampled_from([0, 0, 8])),
            )
        )
    flows = []
    for _ in range(draw(st.integers(0, 3))):
        born = draw(st.integers(0, number - 1))
        untils = sorted(draw(st.lists(st.integers(0, born), min_size=1, max_size=2, unique=True)), reverse=True)
        flows.append(
            GradientBytes(num_bytes=draw(amounts), born=born, uses=tuple((until, draw(places)) for until in untils))
        )
    content = {name: getattr(table, name) for name in type(table).model_fields}
    content |= {
        "operations": tuple(operations),
        "storages": sizes,
        "weight_bytes": draw(amounts),
        "input_bytes": draw(amounts),
        "gradient_storages": tuple(flows),
        "optimizer_copies": draw(st.sampled_from([0, 2])),
        "largest_always_trained_bytes": draw(st.integers(0, 20)),
        "always_trained_work_bytes": draw(st.none() | st.integers(0, 40)),
        "optimizer_norm_bytes": draw(st.sampled_from([0, 4])),
        "optimizer_held_copies": draw(st.sampled_from([0, 1])),
        "first_always_trained_bytes": draw(st.integers(0, 20)),
        "always_trained_bytes": table.always_trained_bytes + sum(found.always_gradients for found in operations),
    }
    return CostTable(**content)


def scope_bytes(table: CostTable, counts: Sequence[int], scope: Scope) -> int:
    """Bytes that a budget of a scope is held against, in one run."""
    return BatchedLedger(table).of(counts).scopes.of(scope)


def backward_macs(table: CostTable, counts: Sequence[int]) -> int:
    """Multiply-adds of one run's backward pass."""
    costs = BatchedLedger(table)
    return int(costs.backward_macs(costs.one_run(counts))[0])


def lasting_bytes(table: CostTable, counts: Sequence[int]) -> int:
    """What lives all through one run's step."""
    costs = BatchedLedger(table)
    return int(costs.lasting_bytes(costs.one_run(counts))[0])
