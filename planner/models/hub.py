"""Ask the network for weights without hanging where there is none.

Held by ``tests/planner/models/test_loading.py``.
"""

import importlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Final
from urllib.parse import urlparse
from urllib.request import getproxies

_REACH_SECONDS: Final = 3.0
_SOCKET_SECONDS: Final = 10.0


@contextmanager
def quick_network(host: str) -> Iterator[None]:
    """Fail fast without a network: a short socket timeout, and the Hugging Face hub offline if the host is silent."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SOCKET_SECONDS)
    try:
        with nullcontext() if can_reach(host) else _hub_offline():
            yield
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def _hub_offline() -> Iterator[None]:
    try:
        constants: Any = importlib.import_module("huggingface_hub.constants")
    except ImportError:
        yield
        return
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def can_reach(host: str) -> bool:
    """Whether a connection to the host opens within a few seconds; taken for granted behind a proxy."""
    if getproxies().get("https"):
        return True
    opened = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((host, 443), timeout=_REACH_SECONDS).close()
            opened.set()
        except OSError:
            pass

    attempt = threading.Thread(target=connect, daemon=True)  # name resolution itself has no timeout
    attempt.start()
    attempt.join(_REACH_SECONDS)
    return opened.is_set()


def hub_host() -> str:
    """Where the Hugging Face hub is, by its environment variables."""
    constants = importlib.import_module("huggingface_hub.constants")
    return urlparse(constants.ENDPOINT).hostname or "huggingface.co"
