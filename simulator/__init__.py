"""Replay a plan before anyone trains: what it touches, when, at what cost, and how good its gradient is.

Exports are lazy and typed: reading ``trady.simulator`` imports neither numpy nor torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
