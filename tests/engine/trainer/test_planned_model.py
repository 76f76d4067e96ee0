"""The model of a plan, built again."""

from pathlib import Path

import pytest
import torch
from torch import nn

from trady.engine.trainer.planned_model import build_planned, check_classes, example_inputs
from trady.planner import Plan, load_model, make_plan
from trady.planner.errors import EngineError
from trady.planner.models.state_dicts import fingerprint
from trady.planner.models.training_step import Batch
from trady.planner.plan.plan import TensorSpec
from trady.planner.planning.preparation import prepare

NETS = """
import torch
from torch import nn


def small():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    return net, torch.zeros(2, 3, 16, 16)


def half_squared(outputs, targets):
    return (outputs - targets).square().mean() / 2


def regression():
    return (*small(), half_squared)
"""


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "planned_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan_of(source: str, classes: int | None = 6, size: str | None = None) -> Plan:
    loaded = load_model(source, input_shape=size)
    prepared = prepare(loaded, classes=classes)
    return make_plan(
        loaded.model, prepared.inputs, budget="64KB", batch_size=4, source=prepared.source, loss=loaded.loss
    )


def test_head_inputs_and_normalisation_are_the_plans() -> None:
    plan = plan_of("planned_nets:small", size="3x20x24")
    planned = build_planned(plan, "planned_nets:small")
    assert fingerprint(planned.model) == plan.model.fingerprint
    assert planned.head == "6"
    assert planned.example().shape == (4, 3, 20, 24)  # type: ignore[union-attr]
    assert planned.picture is not None and planned.picture.size == (3, 20, 24)
    assert planned.model(planned.example()).shape == (4, 6)


def test_files_of_weights_take_the_plans_architecture(workplace: Path) -> None:
    net, _ = load_model("planned_nets:small").model, None
    torch.save(net.state_dict(), workplace / "weights.pt")
    loaded = load_model("weights.pt", arch="planned_nets:small")
    plan = make_plan(loaded.model, loaded.inputs, budget="64KB", batch_size=4, source=prepare(loaded).source)
    assert fingerprint(build_planned(plan, "weights.pt").model) == plan.model.fingerprint


def test_the_plans_loss_comes_with_it() -> None:
    plan = plan_of("planned_nets:regression", classes=None)
    planned = build_planned(plan, "planned_nets:small")
    assert planned.loss is not None
    assert float(planned.loss(torch.ones(2), torch.zeros(2))) == 0.5


def test_too_few_outputs_are_refused_and_too_many_told() -> None:
    planned = build_planned(plan_of("planned_nets:small"), "planned_nets:small")
    said: list[str] = []
    check_classes(planned, 6, said.append)
    assert not said
    check_classes(planned, 5, said.append)
    assert "6 outputs for 5 classes" in said[0]
    with pytest.raises(EngineError, match=r"head '6' has 6 outputs, the data 7 classes. Plan anew"):
        check_classes(planned, 7, said.append)


def test_a_model_without_the_plans_head_is_refused() -> None:
    torch.save(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten()), "other.pt")
    with pytest.raises(EngineError, match=r"head '6' is not in other.pt"):
        build_planned(plan_of("planned_nets:small"), "other.pt")


def test_example_inputs_keep_names_and_kinds() -> None:
    named = (
        TensorSpec(name="input_ids", shape=(5,), dtype="int64"),
        TensorSpec(name="attention_mask", shape=(5,), dtype="int64"),
    )
    found = example_inputs(named, 3)
    assert isinstance(found, dict)
    assert found["input_ids"].sum() == 0 and found["attention_mask"].sum() == 15
    two = tuple(TensorSpec(name=str(number), shape=(number + 1,), dtype="float32") for number in range(2))
    assert [tensor.shape for tensor in example_inputs(two, 3)] == [(3, 1), (3, 2)]  # type: ignore[union-attr]


def test_a_model_with_its_own_loss_gets_the_labels() -> None:
    plan = plan_of("planned_nets:small")
    own = plan.model_copy(update={"model": plan.model.model_copy(update={"loss": "model"})})
    planned = build_planned(own, "planned_nets:small")
    placed = planned.placed(Batch({"input_ids": torch.zeros(2, 3)}, torch.ones(2)))
    assert set(placed.inputs) == {"input_ids", "labels"}
