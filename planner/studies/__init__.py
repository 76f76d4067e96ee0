"""What-if studies: many budgets, batch sizes, optimizers, types and input sizes from few traces."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
