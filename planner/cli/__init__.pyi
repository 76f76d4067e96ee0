from .messages import CONTEXT as CONTEXT
from .messages import errors_told as errors_told
from .messages import output_path as output_path
from .messages import read_scheme as read_scheme
from .messages import tell_written as tell_written
from .options import fields_of as fields_of
from .options import options_of as options_of
from .options import taken as taken
