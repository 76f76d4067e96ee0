"""Execute a plan in real PyTorch training: lean operations, slices that train, bytes that are measured.

Exports are lazy and typed: reading ``trady.engine`` imports no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
