"""From a plan, a seed and an epoch to channels: all the randomness there is."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
