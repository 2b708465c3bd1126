"""What a device app imports: open a bundle, run it. Needs numpy, and a backend once a session of it is opened."""

from runtimes.backends import BACKENDS, Layer, Runner, open_engine
from runtimes.batching import Batcher
from runtimes.bundle import Bundle, read_bundle
from runtimes.chain import Chain
from runtimes.engine import Engine, read_engine, write_engine
from runtimes.errors import DeviceGone, FeedError, LimitError, RuntimesError
from runtimes.limits import ResourceLimits
from runtimes.session import Session, load
from runtimes.spec import Dim, Feed, TensorSpec, check_feed

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
