"""The error every expected failure of the pipeline is raised as."""


class CompressError(Exception):
    """A model, setting or target that cannot be used; the message says what happened, to which input, what to do."""
