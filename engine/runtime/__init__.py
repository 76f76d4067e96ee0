"""A plan at work on the user's own model: redirected calls, slices that train, guards, a measured step."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
