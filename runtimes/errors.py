"""The error every failure of this package is raised as."""


class RuntimesError(Exception):
    """A bundle, an engine or a feed that cannot be used; the message says which, why, and what to do."""


class FeedError(RuntimesError):
    """A feed that does not match the inputs of a session."""


class LimitError(RuntimesError):
    """A feed, an engine or a run beyond the :class:`runtimes.ResourceLimits` of its session."""


class DeviceGone(RuntimesError):  # noqa: N818 - what happened, as an app asks
    """What an engine runs on is not usable: its backend's package, or its device, which may have stopped answering."""
