"""Closed forms of what the draws reach. No torch, no ortools."""

from typing import Final

#: Draws the solver's value looks ahead: the best of the first experiments (DESIGN, section 3).
DEFAULT_HORIZON: Final = 4.0


def coverage_value(share: float, horizon: float) -> float:
    """Expected share of a layer's channels reached after ``horizon`` draws of ``share`` of them."""
    return float(1.0 - (1.0 - share) ** horizon)


def waiting_time(share: float, epoch: int) -> float:
    """Expected epochs since the last update of a channel drawn in an epoch, where it was drawn before.

    A channel drawn with probability ``p`` each epoch, last ``d`` epochs ago, has the geometric law ``p (1 - p)^(d-1)``,
    cut at the epochs there were.

    Args:
        share: Probability that an epoch draws the channel, above 0.
        epoch: The epoch, from 1.
    """
    return waiting_mass(share, epoch) / coverage_value(share, epoch)


def waiting_mass(share: float, epoch: int) -> float:
    """The same times the probability that it was drawn before: ``sum of d p (1 - p)^(d-1)`` for d up to the epoch.

    Args:
        share: Probability that an epoch draws the channel.
        epoch: The epoch, from 0.
    """
    if share == 0.0:
        return 0.0
    return float((1.0 - (1.0 - share) ** epoch * (1.0 + epoch * share)) / share)
