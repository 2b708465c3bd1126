"""The error every failure of this package is raised as."""


class CalibrationError(Exception):
    """A calibration set or a statistic that cannot be used; the message says which file and input, and what to do."""
