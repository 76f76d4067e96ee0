from .figures import plot_replay as plot_replay
from .observation_figures import draw_observations as draw_observations
from .observations import observe as observe
from .replay import simulate as simulate
from .results import SimulationReport as SimulationReport
from .timeline_figures import plot_timeline as plot_timeline
from .timelines import Timeline as Timeline
from .timelines import timeline as timeline
