"""From a model and a budget to a plan."""

from typing import NoReturn

import pytest
import torch
from torch import Tensor, nn

from tables import backward_macs
from trady.planner import Plan, Priorities, calibrate, make_plan, trace
from trady.planner.errors import BudgetError, PlanError, StrategyError, TracingError
from trady.planner.ledger import BatchedLedger
from trady.planner.models.state_dicts import fingerprint
from trady.planner.options import OptimizerKind, Scope, Strategy
from trady.planner.priorities.calibration import synthetic_batches, uniform_priorities


class Residual(nn.Module):
    """A stem, a residual block with a depthwise convolution, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.expand = nn.Conv2d(8, 24, 1)
        self.norm = nn.BatchNorm2d(24)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.project = nn.Conv2d(24, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, pictures: Tensor) -> Tensor:
        features = torch.relu(self.stem(pictures))
        hidden = nn.functional.relu6(self.norm(self.expand(features)))
        features = features + self.project(nn.functional.relu6(self.depthwise(hidden)))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return Residual()


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.zeros(2, 3, 16, 16)


@pytest.fixture(scope="module")
def priorities(net: nn.Module, pictures: Tensor) -> Priorities:
    return calibrate(net, synthetic_batches(net, pictures, 3), source="synthetic", origin="noise")


@pytest.mark.parametrize("scope", ["update", "training"])
@pytest.mark.parametrize("optimizer", list(OptimizerKind))
@pytest.mark.parametrize("budget", [3000, "6KB", "20KiB"])
def test_no_plan_exceeds_its_budget(
    net: nn.Module, pictures: Tensor, priorities: Priorities, scope: str, optimizer: OptimizerKind, budget: int | str
) -> None:
    plan = make_plan(net, pictures, budget=budget, scope=scope, optimizer=optimizer, priorities=priorities)
    assert 0 < getattr(plan.ledger.scopes, scope) <= plan.settings.budget_bytes
    assert plan.ledger == BatchedLedger(plan.table).of(plan.counts)


@pytest.mark.parametrize("strategy", [name for name in Strategy if name is not Strategy.SU])
def test_every_strategy_gives_a_plan_that_survives_its_file(
    net: nn.Module, pictures: Tensor, priorities: Priorities, strategy: Strategy, tmp_path: object
) -> None:
    plan = make_plan(net, pictures, budget="4KB", strategy=strategy, priorities=priorities)
    assert plan.chosen
    assert plan.ledger.scopes.update <= 4000
    assert Plan.model_validate_json(plan.to_json()) == plan


def test_more_bytes_are_worth_at_least_as_much(net: nn.Module, pictures: Tensor, priorities: Priorities) -> None:
    values = [
        make_plan(net, pictures, budget=budget, priorities=priorities).solver.bound
        for budget in (1000, 2000, 4000, 8000)
    ]
    assert values == sorted(values)


def test_everything_trains_when_there_is_room(net: nn.Module, pictures: Tensor, priorities: Priorities) -> None:
    plan = make_plan(net, pictures, budget="1MB", priorities=priorities)
    assert plan.solver.value == pytest.approx(1.0, abs=1e-3)
    assert set(plan.chosen) == {"stem", "expand", "depthwise", "project"}


def test_the_head_is_never_drawn_and_always_paid(net: nn.Module, pictures: Tensor, priorities: Priorities) -> None:
    plan = make_plan(net, pictures, budget="4KB", priorities=priorities)
    assert plan.model.head.layers == ("head",)
    weight, bias, stored_input = 5 * 8 * 4, 5 * 4, 2 * 8 * 4
    assert plan.ledger.lines.always_trained == weight + bias + stored_input


def test_without_a_head_nothing_is_always_trained(net: nn.Module, pictures: Tensor) -> None:
    plan = make_plan(net, pictures, budget="4KB", head="none")
    assert plan.ledger.lines.always_trained == 0
    assert "head" in [layer.name for layer in plan.table.layers]
    assert any("No head" in note for note in plan.notes)


def test_patterns_choose_the_candidates(net: nn.Module, pictures: Tensor, priorities: Priorities) -> None:
    names = [
        [layer.name for layer in make_plan(net, pictures, budget="4KB", priorities=priorities, **options).table.layers]
        for options in ({"only": ["*e*"]}, {"exclude": ["stem", "p*"]}, {"max_depth": 2})
    ]
    assert names == [["stem", "expand", "depthwise", "project"], ["expand", "depthwise"], ["depthwise", "project"]]


def test_a_shallow_plan_costs_fewer_backward_macs(net: nn.Module, pictures: Tensor, priorities: Priorities) -> None:
    free = make_plan(net, pictures, budget="8KB", priorities=priorities)
    limit = backward_macs(free.table, free.counts) // 2
    bounded = make_plan(net, pictures, budget="8KB", priorities=priorities, max_backward_macs=limit)
    assert backward_macs(bounded.table, bounded.counts) <= limit
    assert bounded.solver.value < free.solver.value


def test_least_channels_of_a_chosen_layer(net: nn.Module, pictures: Tensor, priorities: Priorities) -> None:
    plan = make_plan(net, pictures, budget="4KB", priorities=priorities, min_channels=6)
    in_channels = {layer.name: layer.in_channels for layer in plan.table.layers}
    assert all(count >= min(6, in_channels[name]) for name, count in plan.chosen.items())


def test_trained_patterns_and_biases_are_paid(net: nn.Module, pictures: Tensor, priorities: Priorities) -> None:
    plain, normed = (
        make_plan(net, pictures, budget="4KB", priorities=priorities, train=patterns) for patterns in ((), ("norm.*",))
    )
    gained = normed.ledger.lines.always_trained - plain.ledger.lines.always_trained
    assert gained == 2 * 24 * 4
    biased = make_plan(net, pictures, budget="4KB", priorities=priorities, train_bias=True)
    out_channels = {layer.name: layer.out_channels for layer in biased.table.layers}
    paid = biased.ledger.lines.always_trained - plain.ledger.lines.always_trained
    assert paid == sum(4 * out_channels[name] for name in biased.chosen)


def test_int8_charges_one_byte(net: nn.Module, pictures: Tensor, priorities: Priorities) -> None:
    wide, narrow = (
        make_plan(net, pictures, budget="4KB", priorities=priorities, dtype=dtype).table.layers
        for dtype in ("float32", "int8")
    )
    assert [layer.gradient_bytes for layer in wide] == [4 * layer.gradient_bytes for layer in narrow]


def test_norms_are_not_measured_for_a_hopeless_budget(net: nn.Module, pictures: Tensor) -> None:
    def measure() -> NoReturn:
        raise AssertionError("measured although nothing fits")

    with pytest.raises(BudgetError, match=r"trains no layer: the cheapest, '\w+', needs \d+ B \(\d+ B\) for 1 channel"):
        make_plan(net, pictures, budget=40, priorities=measure)


def test_models_without_memory_get_uniform_norms(pictures: Tensor) -> None:
    with torch.device("meta"):
        net = Residual()
    plan = make_plan(net, pictures, budget="4KB")
    assert plan.priorities.source == "uniform"
    assert any("not measured" in note for note in plan.notes)


def test_a_known_trace_and_any_batch_size(net: nn.Module, pictures: Tensor, priorities: Priorities) -> None:
    traced = trace(net, pictures)
    given = make_plan(net, pictures, budget="16KB", batch_size=7, priorities=priorities, traced=traced)
    fresh = make_plan(net, pictures, budget="16KB", batch_size=7, priorities=priorities)
    assert given.to_json() == fresh.to_json()


def test_a_trace_brings_its_settings_and_its_model(net: nn.Module, pictures: Tensor, priorities: Priorities) -> None:
    traced = trace(net, pictures, norm="train", dtype="bfloat16")
    settings = make_plan(net, pictures, budget="4KB", priorities=priorities, traced=traced).settings
    assert (settings.norm, settings.dtype) == ("train", "bfloat16")
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(784, 5))
    with pytest.raises(PlanError, match="The trace is of another model"):
        make_plan(other, pictures, budget="4KB", priorities=priorities, traced=traced)


def test_a_pattern_may_be_a_plain_text(net: nn.Module, pictures: Tensor, priorities: Priorities) -> None:
    plan = make_plan(net, pictures, budget="4KB", priorities=priorities, only="project", train="norm.*")
    assert [layer.name for layer in plan.table.layers] == ["project"]
    assert plan.settings.train == ("norm.*",)


def test_values_of_all_strategies_are_on_one_scale(net: nn.Module, pictures: Tensor, priorities: Priorities) -> None:
    values = {
        strategy: make_plan(net, pictures, budget="4KB", priorities=priorities, strategy=strategy).solver.value
        for strategy in ("solver", "trady", "d-full-random")
    }
    static = make_plan(net, pictures, budget="64KB", priorities=priorities, strategy="su", scheme={"project": 1.0})
    assert values["solver"] >= max(values.values()) > 0
    assert static.solver.value > 0


def test_user_loss_is_named(net: nn.Module, pictures: Tensor, priorities: Priorities) -> None:
    def squared(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean()

    plan = make_plan(net, pictures, budget="4KB", priorities=priorities, loss=squared, targets=torch.zeros(2, 5))
    assert plan.model.loss.endswith("squared")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"scope": "peak"}, BudgetError, r"even without training. Inference alone peaks at .* Lower --batch-size"),
        ({"scope": "everything"}, StrategyError, "Scope 'everything' is unknown. Known: update, training, peak"),
        ({"optimizer": "lion"}, StrategyError, "Optimizer 'lion' is unknown"),
        ({"strategy": "best"}, StrategyError, "Known: solver, trady"),
        ({"strategy": "su"}, StrategyError, "needs a scheme"),
        ({"strategy": "su", "scheme": {"tail": 1.0}}, StrategyError, "layers the model has not: tail"),
        ({"strategy": "su", "scheme": {"project": 1.0}, "budget": 100}, BudgetError, "trains no layer"),
        ({"strategy": "su", "scheme": {"project": 1.0}, "budget": 2000}, BudgetError, "Raise --budget to"),
        ({"epochs": 0}, PlanError, "Epochs must be 1 or more, got 0"),
        ({"min_channels": 0}, PlanError, "must be 1 or more, got 0"),
        ({"only": ["nothing"]}, PlanError, "No layer is left"),
        ({"only": "*zzz"}, PlanError, r"No layer is left after --only \*zzz"),
        ({"train": "nothing.*"}, TracingError, r"--train 'nothing.\*' matches no parameter"),
        ({"scheme": "mbv2-49kb"}, PlanError, "A scheme is for strategy 'su', not 'solver'"),
        ({"batch_size": 0}, PlanError, "Batch size must be 1 or more, got 0"),
        ({"horizon": 0.0}, PlanError, "Horizon must be above 0, got 0"),
        ({"strategy": "trady", "min_channels": 2}, PlanError, "are the solver's"),
        ({"max_backward_macs": 1}, PlanError, "No layer fits the budget with --max-backward-macs 1"),
    ],
)
def test_contradictions_are_told(
    net: nn.Module, pictures: Tensor, priorities: Priorities, options: dict[str, object],
    error: type[Exception], message: str,
) -> None:  # fmt: skip
    with pytest.raises(error, match=message):
        make_plan(net, pictures, **{"budget": "4KB", "priorities": priorities, **options})  # type: ignore[arg-type]


def test_all_problems_are_told_at_once(net: nn.Module, pictures: Tensor) -> None:
    with pytest.raises(PlanError, match=r"Epochs must be 1 or more, got 0\. Min channels must be 1 or more, got -1"):
        make_plan(net, pictures, budget="4KB", epochs=0, min_channels=-1)
    with pytest.raises(PlanError, match=r"scope 'update' only.*A scheme is for strategy 'su'"):
        make_plan(net, pictures, budget="4KB", scope=Scope.PEAK, dtype="int8", scheme="mbv2-49kb")


def test_unknown_keywords_are_refused(net: nn.Module, pictures: Tensor) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'budgets'"):
        make_plan(net, pictures, budget="4KB", budgets=3.5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'budget'"):
        make_plan(net, pictures)  # type: ignore[call-arg]
    with pytest.raises(PlanError, match="Epochs must be a valid integer, got 'many'"):
        make_plan(net, pictures, budget="4KB", epochs="many")  # type: ignore[arg-type]


def test_priorities_of_another_model(net: nn.Module, pictures: Tensor) -> None:
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(784, 5))
    with pytest.raises(PlanError, match="of another model"):
        make_plan(net, pictures, budget="4KB", priorities=uniform_priorities(trace(other, pictures)))


def test_nothing_is_worth_training_without_gradients(net: nn.Module, pictures: Tensor, priorities: Priorities) -> None:
    flat = [
        layer.model_copy(update={"channel_norms": (0.0,) * len(layer.channel_norms)}) for layer in priorities.layers
    ]
    zero = Priorities.model_validate({**priorities.model_dump(), "layers": tuple(flat)})
    with pytest.raises(PlanError, match="All gradient norms are zero"):
        make_plan(net, pictures, budget="4KB", priorities=zero)


def test_published_schemes_count_the_models_convolutions(pictures: Tensor) -> None:
    """Leaving layers out does not renumber the others."""
    torch.manual_seed(0)
    deep = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(50)), nn.AvgPool2d(16), nn.Flatten(), nn.Linear(3, 5))
    plan = make_plan(deep, pictures, budget="1MB", strategy="su", scheme="mbv2-49kb", exclude=["0"])
    assert plan.chosen == {"36": 3, "39": 3}


def test_fingerprint_knows_names_shapes_and_types(net: nn.Module) -> None:
    assert fingerprint(net) == fingerprint(Residual())
    changed = Residual()
    changed.head = nn.Linear(8, 6)
    assert fingerprint(changed) != fingerprint(net)
    assert fingerprint(Residual().to(torch.bfloat16)) != fingerprint(net)
