"""Plan memory-budgeted fine-tuning: trace a model, calibrate priorities, solve for the channels to train.

Exports are lazy and typed: reading a plan needs neither torch nor ortools.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
