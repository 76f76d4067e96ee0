"""The strategies by name: a layer rule, a draw rule, and whether each epoch draws anew."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from trady.planner.options import Strategy
from trady.planner.plan import Plan
from trady.planner.sampling.layer_rules import LayerRule
from trady.planner.sampling.strategies.contract import DrawRule, Observes
from trady.planner.sampling.strategies.fixed_counts import FixedCounts
from trady.planner.sampling.strategies.largest_rgn import LargestRgn
from trady.planner.sampling.strategies.observed_norms import ByObservedNorms
from trady.planner.sampling.strategies.scheme import SchemeChannels
from trady.planner.sampling.strategies.uniform import Uniform


@dataclass(frozen=True)
class StrategyRule:
    """A strategy's three parts.

    Args:
        layers: Layer rule.
        draw: Draw rule.
        dynamic: Whether each epoch draws anew.
    """

    layers: LayerRule
    draw: type[DrawRule]
    dynamic: bool

    @property
    def observes(self) -> Observes:
        """Which norms a draw looks at; a static one is made before there are any."""
        return self.draw.observes if self.dynamic else Observes.NOTHING


STRATEGIES: Final[Mapping[Strategy, StrategyRule]] = {
    Strategy.SOLVER: StrategyRule(LayerRule.FULL, FixedCounts, True),
    Strategy.TRADY: StrategyRule(LayerRule.TOP_RGN, Uniform, True),
    Strategy.S_TOPK_RANDOM: StrategyRule(LayerRule.TOP_RGN, Uniform, False),
    Strategy.D_FULL_RANDOM: StrategyRule(LayerRule.FULL, Uniform, True),
    Strategy.S_FULL_RANDOM: StrategyRule(LayerRule.FULL, Uniform, False),
    Strategy.D_DET_RGN: StrategyRule(LayerRule.FULL, LargestRgn, True),
    Strategy.S_DET_RGN: StrategyRule(LayerRule.FULL, LargestRgn, False),
    Strategy.SU: StrategyRule(LayerRule.SCHEME, SchemeChannels, False),
    Strategy.LARA_TRADY: StrategyRule(LayerRule.LARA, Uniform, True),
    Strategy.MEDYATE: StrategyRule(LayerRule.LARA, ByObservedNorms, True),
}


def drawable_layers(plan: Plan) -> list[int]:
    """Indices of the layers that some draw of a plan may take channels of, ascending."""
    chosen = {index for index, count in enumerate(plan.counts) if count}
    fills = STRATEGIES[plan.strategy.name].draw.fills_budget
    return sorted(chosen | set(plan.strategy.eligible) if fills else chosen)
