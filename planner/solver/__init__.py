"""Which layers and how many channels are worth a budget: the only shelf that knows OR-Tools."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
