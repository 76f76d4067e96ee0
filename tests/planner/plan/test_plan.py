"""The plan file: the same bytes for the same plan, and nothing accepted that contradicts itself."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings

from tables import cost_tables, full_counts, layer_costs, plan_of, scope_bytes
from trady.planner import load_plan
from trady.planner.errors import PlanError, TradyError
from trady.planner.ledger.cost_records import GroupInput, InputGroup, KeptBytes, OperationCosts, Upstream
from trady.planner.ledger.cost_table import CostTable
from trady.planner.options import Scope, Strategy
from trady.planner.plan.plan import Plan, json_schema

SCHEMA = Path(__file__).resolve().parents[3] / "docs" / "plan.schema.json"


@pytest.fixture
def plan() -> Plan:
    group = InputGroup(inputs=(GroupInput(channel_bytes=16, kept_by=0),))
    kept = KeptBytes(num_bytes=9, upstream=0, line="residuals", storage=0)
    table = CostTable(
        batch_size=1,
        layers=(layer_costs(0, 4, 0), layer_costs(1, 4, 0)),
        groups=(group,),
        upstreams=(Upstream(always=False, layers=((0, 0),)),),
        operations=(OperationCosts(target="relu", module="m", allocates=(0,), kept=(kept,)),),
        storages=(64,),
        always_trained_bytes=0,
        weight_bytes=96,
        input_bytes=12,
        dense_saved_bytes=64,
        dense_gradient_bytes=96,
        dense_optimizer_bytes=0,
    )
    return plan_of(table, budget_bytes=200, counts=(0, 2), norms=[(1.0, 2.5, 0.0, 1e-20), (0.1, 0.2, 0.3, 0.4)])


def test_a_plan_comes_back_as_it_was_saved(plan: Plan, tmp_path: Path) -> None:
    plan.save(tmp_path / "a.json")
    loaded = Plan.load(tmp_path / "a.json")
    assert loaded == plan
    loaded.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@settings(max_examples=40, deadline=None)
@given(cost_tables())
def test_any_plan_survives_the_file(tmp_path_factory: Any, table: CostTable) -> None:
    path = tmp_path_factory.mktemp("plans") / "plan.json"
    for strategy in (Strategy.SOLVER, Strategy.TRADY, Strategy.D_DET_RGN):
        full = scope_bytes(table, full_counts(table), Scope.UPDATE)
        made = plan_of(table, strategy, budget_bytes=max(1, full), counts=full_counts(table))
        made.save(path)
        assert Plan.load(path) == made


def test_reading_a_plan_needs_neither_torch_nor_ortools(plan: Plan, tmp_path: Path) -> None:
    plan.save(tmp_path / "plan.json")
    code = (
        "import sys; from trady.planner import Plan;"
        f"Plan.load({str(tmp_path / 'plan.json')!r});"
        "print(sorted({'torch', 'ortools', 'fvcore', 'networkx'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


EDITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "more channels than there are": (
        lambda content: content.update(counts=[0, 5]),
        r"5 channels are drawn from layer 'layer1', which has 4",
    ),
    "too few counts": (lambda content: content.update(counts=[0]), "one entry for each of the 2 layers"),
    "negative count": (lambda content: content.update(counts=[0, -1]), r"counts.1: Input should be greater"),
    "count as text": (lambda content: content.update(counts=[0, "2"]), r"counts.1: Input should be a valid integer"),
    "other counts": (lambda content: content.update(counts=[0, 3]), "contradicts itself: the ledger is not that"),
    "other ledger": (
        lambda content: content["ledger"]["lines"].update(residuals=1),
        "contradicts itself: the ledger is not that of its counts",
    ),
    "smaller budget": (
        lambda content: content["settings"].update(budget_bytes=10),
        "contradicts itself: its channels need 92 B, above the budget of 10 B",
    ),
    "zero budget": (lambda content: content["settings"].update(budget_bytes=0), "settings.budget_bytes: Input should"),
    "unknown field": (lambda content: content.update(extra=1), "extra: Extra inputs are not permitted"),
    "unknown strategy": (lambda content: content["strategy"].update(name="magic"), "strategy.name: Input should be"),
    "missing field": (lambda content: content.pop("ledger"), "ledger: Field required"),
    "eligible outside": (
        lambda content: content["strategy"].update(eligible=[0, 7]),
        "eligible layer 7 is outside the table of 2 layers",
    ),
    "norms of another width": (
        lambda content: content.update(norms=[[1.0], 2.0]),
        "layer 'layer0' has 4 channels but 1 norms",
    ),
    "norm not finite": (lambda content: content.update(norms=[float("nan"), 1.0]), r"norms\.0"),
    "group outside": (
        lambda content: content["table"]["layers"][0].update(group=3),
        "table: Value error, input group 3 is outside the table of 1",
    ),
    "upstream outside": (
        lambda content: content["table"]["groups"][0]["inputs"][0].update(kept_by=4),
        "upstream 4 is outside the table of 1",
    ),
    "storage outside": (
        lambda content: content["table"].update(storages=[]),
        "storage 0 is outside the table of 0",
    ),
    "unknown line": (
        lambda content: content["table"]["operations"][0]["kept"][0].update(line="free"),
        "Input should be 'residuals' or 'always_trained'",
    ),
    "fixed channels of no layer": (
        lambda content: content["strategy"].update(fixed_channels={"x": [0]}),
        "channels are fixed for 'x', which is no layer",
    ),
    "fixed channels twice": (
        lambda content: content["strategy"].update(fixed_channels={"layer0": [1, 1]}),
        "must be distinct and below 4",
    ),
    "another version": (
        lambda content: content.update(schema_version=2),
        "is of version 2; this Trady reads version 1",
    ),
    "no version": (lambda content: content.pop("schema_version"), "is of version None"),
}


@pytest.mark.parametrize("name", EDITS)
def test_hand_edited_plans_are_refused(plan: Plan, tmp_path: Path, name: str) -> None:
    change, message = EDITS[name]
    content = json.loads(plan.to_json())
    change(content)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(content))
    with pytest.raises(PlanError, match=message) as caught:
        load_plan(path)
    assert str(path) in str(caught.value) and "Make it anew with trady-plan" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(PlanError, match=r"is not a JSON object. Make it anew with trady-plan"):
        Plan.load(tmp_path / "plan.json")


def test_a_truncated_plan_is_refused(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(plan.to_json()[:-20])
    with pytest.raises(PlanError, match="is not a JSON object"):
        Plan.load(tmp_path / "plan.json")


def test_a_missing_plan_is_said(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"none.json: No such file or directory. Make one with trady-plan -o"):
        Plan.load(tmp_path / "none.json")
    with pytest.raises(PlanError, match="Is a directory"):
        Plan.load(tmp_path)


def test_a_place_that_cannot_be_written_is_said(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(TradyError, match="cannot be written"):
        plan.save(tmp_path / "none" / "plan.json")


def test_the_schema_in_the_docs_is_current_and_describes_a_plan(plan: Plan) -> None:
    assert SCHEMA.read_text() == json_schema(), "run: python -m trady.planner.plan.plan > docs/plan.schema.json"
    validator = jsonschema.Draft202012Validator(json.loads(json_schema()))
    validator.validate(json.loads(plan.to_json()))
    broken = json.loads(plan.to_json()) | {"extra": 1}
    with pytest.raises(jsonschema.ValidationError, match="Additional properties are not allowed"):
        validator.validate(broken)


def test_layers_and_operations_take_one_line_each(plan: Plan) -> None:
    lines = plan.to_json().splitlines()
    assert sum('"in_channels"' in line for line in lines) == 2
    assert sum('"target"' in line for line in lines) == 1
