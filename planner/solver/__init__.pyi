from .cp_sat import Program as Program
from .cp_sat import solve as solve
from .cp_sat import solver_version as solver_version
from .problem import DEFAULT_TOLERANCE as DEFAULT_TOLERANCE
from .problem import Limits as Limits
from .problem import Selection as Selection
from .problem import SolverStatus as SolverStatus
from .problem import rounded_figure as rounded_figure
