"""The main job from an installed Trady alone: plan, replay, train and measure a small model of PyTorch's own layers.

    python tools/main_job.py

It runs in an environment without extras and without the repository; it fails where planned and measured bytes differ.
"""

import torch
from torch import nn

from trady.engine import Engine, SinkGD
from trady.planner import calibrate, load_plan, make_plan
from trady.simulator import simulate


def main() -> None:
    """Run every step, and say what came of it."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 8 * 8, 10),
    )
    pictures, labels = torch.randn(8, 3, 16, 16), torch.arange(8) % 10
    priorities = calibrate(model, [(pictures, labels)])
    make_plan(model, pictures, budget="32KB", priorities=priorities).save("plan.json")
    plan = load_plan("plan.json")
    report = simulate(plan, trials=50, epochs=5)
    engine = Engine(model, plan)
    optimizer = engine.register(SinkGD(engine.parameters(), lr=1e-3))
    losses = []
    for epoch in range(5):
        engine.resample(epoch)
        loss = nn.functional.cross_entropy(engine(pictures), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    measured = engine.measure(pictures, labels)
    print(f"planned {plan.ledger.scopes.update} B of {plan.settings.budget_bytes} B; channels by layer: {plan.chosen}")
    print(f"replayed {report.trials} runs: at most {report.highest_used_bytes} B")
    print(f"trained 5 epochs: loss {losses[0]:.3f} to {losses[-1]:.3f}; measured peak {measured.peak_bytes} B")
    assert not measured.differing, measured.differing
    assert report.highest_used_bytes <= plan.settings.budget_bytes
    assert losses[-1] < losses[0]


if __name__ == "__main__":
    main()
