"""The error every failure of this package is raised as."""


class RuntimesError(Exception):
    """A bundle, an engine or a feed that cannot be used; the message says which, why, and what to do."""


class FeedError(RuntimesError):
    """A feed that does not match the inputs of a session."""
