"""What a device app imports: open a bundle, run it. Needs numpy, and a backend once a session of it is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtimes.backends import BACKENDS, Layer, Runner, open_engine
from runtimes.bundle import Bundle, read_bundle
from runtimes.engine import Engine, read_engine, write_engine
from runtimes.errors import DeviceGone, FeedError, LimitError, RuntimesError
from runtimes.limits import ResourceLimits
from runtimes.session import Session, load
from runtimes.spec import Dim, Feed, TensorSpec, check_feed

if TYPE_CHECKING:
    from runtimes.batching import Batcher
    from runtimes.chain import Chain

__all__ = [
    # open a bundle and run it
    "load", "Session", "Chain", "Batcher", "ResourceLimits", "Bundle", "read_bundle",
    # one engine
    "Engine", "read_engine", "write_engine", "open_engine", "Runner", "Layer", "BACKENDS",
    # feeds
    "Feed", "TensorSpec", "Dim", "check_feed",
    # errors
    "RuntimesError", "FeedError", "LimitError", "DeviceGone",
]


def __getattr__(name: str) -> Any:
    """What not every app uses is imported when it is first asked for."""
    import importlib

    modules = {"Batcher": "runtimes.batching", "Chain": "runtimes.chain"}
    if name not in modules:
        raise AttributeError(f"module 'runtimes' has no attribute {name!r}")
    return getattr(importlib.import_module(modules[name]), name)
