"""From a trace to its cost table: what every channel and operation costs, kernels measured where it matters."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
