from .redirecting import Handler as Handler
from .redirecting import cast_for_autocast as cast_for_autocast
