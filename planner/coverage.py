"""Closed forms of what the draws reach. No torch, no ortools."""


def coverage_value(share: float, horizon: float) -> float:
    """Expected share of a layer's channels reached after ``horizon`` draws of ``share`` of them."""
    return float(1.0 - (1.0 - share) ** horizon)
