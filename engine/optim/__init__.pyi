from .optimizer_state import OptimizerFollower as OptimizerFollower
from .optimizer_state import SliceMove as SliceMove
from .optimizers import make_optimizer as make_optimizer
from .sinkgd import SinkGD as SinkGD
from .slice_geometry import SliceGeometry as SliceGeometry
