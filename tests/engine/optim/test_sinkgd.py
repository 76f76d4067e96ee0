"""SinkGD against the paper's formula, its promise of rows and columns, and the bytes it works in."""

import gc
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from trady.engine import Engine, SinkGD
from trady.engine.optim.sinkgd import normalised
from trady.engine.optim.slice_geometry import SliceGeometry
from trady.planner import make_plan
from trady.planner.costs.allocator import AllocationMeter

SHAPES = st.lists(st.integers(1, 7), min_size=1, max_size=5).map(tuple)


def of_the_paper(gradient: Tensor, iterations: int) -> Tensor:
    """``X <- sqrt(n) Q(X)^-1 X``, then ``X <- sqrt(m) X R(X)^-1`` for an ``[m, n]`` matrix, in double precision."""
    found = gradient.double()
    rows, columns = found.shape
    for _ in range(iterations):
        found = columns**0.5 * torch.diag(1 / found.norm(dim=1)) @ found
        found = rows**0.5 * found @ torch.diag(1 / found.norm(dim=0))
    return found


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (16, 1), (1, 9)])
@pytest.mark.parametrize("iterations", [1, 5])
def test_a_matrix_is_normalised_as_in_the_paper(shape: tuple[int, int], iterations: int) -> None:
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(normalised(gradient, iterations).double(), of_the_paper(gradient, iterations))


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.sampled_from([1e-6, 1.0, 1e6]), st.integers(0, 2**31))
def test_any_shape_is_the_matrix_of_its_first_dimension(shape: tuple[int, ...], scale: float, seed: int) -> None:
    gradient = scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    before = gradient.clone()
    found = normalised(gradient, 20)
    assert torch.equal(gradient, before) and found.shape == gradient.shape
    torch.testing.assert_close(found, normalised(gradient / scale, 20), rtol=1e-3, atol=1e-4)
    if len(shape) == 1:
        torch.testing.assert_close(found, gradient / gradient.square().mean().sqrt())
        return
    squares = found.flatten(1).square()
    torch.testing.assert_close(squares.mean(dim=0), torch.ones(squares.shape[1]), rtol=1e-3, atol=1e-3)
    assert squares.mean() == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize(("iterations", "near"), [(5, 0.05), (40, 1e-4)])
def test_rows_and_columns_come_to_one_length(iterations: int, near: float) -> None:
    gradient = torch.randn(12, 20, generator=torch.Generator().manual_seed(3)).exp()
    squares = normalised(gradient, iterations).square()
    torch.testing.assert_close(squares.mean(dim=0), torch.ones(20), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(squares.mean(dim=1), torch.ones(12), rtol=near, atol=near)


@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1e-20, 1e20, 1e30])
@pytest.mark.parametrize("shape", [(64,), (8, 8), (8, 1)])
@pytest.mark.parametrize("iterations", [1, 5])
def test_vanishing_and_huge_gradients_step_as_far_as_any(shape: tuple[int, ...], scale: float, iterations: int) -> None:
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        normalised(gradient * scale, iterations), normalised(gradient, iterations), rtol=1e-4, atol=1e-4
    )


def test_empty_parameters_stay() -> None:
    weight = nn.Parameter(torch.zeros(0, 5))
    weight.grad = torch.zeros(0, 5)
    SinkGD([weight]).step()
    assert weight.shape == (0, 5)


@pytest.mark.parametrize(
    ("dtype", "budget"), [("float32", "5MB"), ("float32", "20MB"), ("bfloat16", "2.2MB"), ("bfloat16", "20MB")]
)
def test_the_peak_of_a_plan_holds(dtype: str, budget: str) -> None:
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    model = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 4)).to(kind)
    inputs = torch.randn(4, 512, dtype=kind)
    plan = make_plan(model, inputs, budget=budget, scope="peak")
    assert not Engine(model, plan).measure(inputs, torch.tensor([0, 1, 2, 3])).exceeded


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3),
        nn.Conv2d(4, 6, 1),
        nn.Conv2d(4, 8, 3, groups=4),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.ConvTranspose2d(4, 6, 3),
        nn.Linear(8, 5),
    ],
)
def test_the_ledger_counts_rows_and_columns(layer: nn.Module) -> None:
    inputs = torch.randn(2, 4, 8, 8)
    model = nn.Sequential(layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(2))
    model(inputs)
    costs = make_plan(model, inputs, budget="1MB").table.layers[0]
    weight = model.get_parameter(costs.weight_name)
    once, each = costs.norm_elements
    for channels in (1, 2, costs.in_channels):
        rows, *others = SliceGeometry.of(costs).shape(tuple(weight.shape), channels)
        assert rows + math.prod(others) == once + each * channels


def test_what_has_no_gradient_stays() -> None:
    gradient = torch.randn(4, 3, 2, 2)
    gradient[1], gradient[:, 2] = 0, 0
    found = normalised(gradient, 5)
    assert found.isfinite().all() and not found[1].any() and not found[:, 2].any() and found[0, 0].all()
    assert not normalised(torch.zeros(3, 2), 5).any() and not normalised(torch.zeros(3), 5).any()
    assert normalised(torch.tensor(-3.0), 5) == -1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_neither_overflow_nor_vanish(dtype: torch.dtype) -> None:
    gradient = torch.randn(300, 7, generator=torch.Generator().manual_seed(0))
    for scale in (1e-4, 1e3):
        found = normalised((scale * gradient).to(dtype), 5)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), normalised(gradient, 5), rtol=0.05, atol=0.05)


def test_steps_are_as_long_as_the_learning_rate_says_and_keep_nothing() -> None:
    weight, bias = nn.Parameter(torch.randn(6, 4, 3, 3)), nn.Parameter(torch.randn(6))
    unused = nn.Parameter(torch.ones(2))
    before = weight.detach().clone()
    optimizer = SinkGD([weight, bias, unused], lr=0.01)
    F.conv2d(torch.randn(2, 4, 5, 5), weight, bias).square().sum().backward()
    optimizer.step()
    assert (weight.detach() - before).square().mean().sqrt() == pytest.approx(0.01, rel=1e-4)
    assert unused.tolist() == [1, 1]
    assert not optimizer.state and not optimizer.state_dict()["state"]


def test_weight_decay_shrinks_by_itself() -> None:
    weight = nn.Parameter(torch.full((2, 2), 8.0))
    weight.grad = torch.zeros(2, 2)
    SinkGD([weight], lr=0.5, weight_decay=0.25).step()
    assert weight.tolist() == [[7, 7], [7, 7]]


def test_a_closure_is_asked_for_the_loss() -> None:
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    optimizer = SinkGD([weight], lr=1.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 25
    assert weight.tolist() == [[2, 3]]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"lr": -1.0}, "learning rate must be 0 or more"),
        ({"lr": float("nan")}, "learning rate must be 0 or more"),
        ({"iterations": 0}, "once at least"),
        ({"weight_decay": -0.1}, "Weight decay must be 0 or more"),
    ],
)
def test_options_out_of_range_are_told(options: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        SinkGD([nn.Parameter(torch.ones(1))], **options)  # type: ignore[arg-type]


def test_sparse_gradients_are_told() -> None:
    table = nn.Embedding(5, 3, sparse=True)
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse=False"):
        SinkGD(table.parameters()).step()


@pytest.mark.parametrize(("dtype", "copies"), [(torch.float32, 2), (torch.bfloat16, 4), (torch.float16, 4)])
@pytest.mark.parametrize("shape", [(512, 512), (512, 1), (1, 512), (64, 3, 7, 7), (4096,)])
def test_a_step_works_in_few_copies_of_the_largest_tensor(
    shape: tuple[int, ...], dtype: torch.dtype, copies: int
) -> None:
    weights = [nn.Parameter(torch.randn(shape, dtype=dtype)), nn.Parameter(torch.randn(8, 8, dtype=dtype))]
    optimizer = SinkGD(weights)
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimizer.step()
    gc.collect()
    with AllocationMeter(torch.device("cpu")) as meter:
        optimizer.step()
    size = weights[0].numel() * weights[0].element_size()
    assert size <= meter.peak_bytes <= copies * max(size, 256) + 64


def test_a_plan_costs_what_one_of_sgd_costs_and_holds_it() -> None:
    torch.manual_seed(0)
    convolutions = (nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU())
    model = nn.Sequential(*convolutions, nn.Flatten(), nn.LazyLinear(4))
    inputs = torch.randn(2, 3, 12, 12)
    model(inputs)
    plans = {kind: make_plan(model, inputs, budget="8KB", optimizer=kind) for kind in ("sgd", "sinkgd")}
    assert plans["sgd"].counts == plans["sinkgd"].counts
    assert plans["sgd"].ledger.scopes.training == plans["sinkgd"].ledger.scopes.training
    engine = Engine(model, plans["sinkgd"])
    found = engine.measure(inputs, torch.tensor([0, 1]))
    assert not found.exceeded
    assert found.measured["optimizer_state"] == 0
    optimizer = engine.register(SinkGD(engine.parameters(), lr=0.01))
    assert optimizer is not None
    losses = []
    for epoch in range(8):
        report = engine.resample(epoch)
        assert not report.notes
        loss = F.cross_entropy(engine(inputs), torch.tensor([0, 1]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
