from .optimizer_state import OptimizerFollower as OptimizerFollower
from .optimizer_state import SliceMove as SliceMove
from .sinkgd import SinkGD as SinkGD
from .slice_geometry import SliceGeometry as SliceGeometry
