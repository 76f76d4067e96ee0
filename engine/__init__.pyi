from .engine import Engine as Engine
from .optim import SinkGD as SinkGD
from .runtime import measure_step as measure_step
