"""Calibration sets, and the range statistics gathered over them. Needs numpy alone."""

from calibration.dataset import CalibrationSet, open_set
from calibration.errors import CalibrationError
from calibration.writing import write

__all__ = ["CalibrationError", "CalibrationSet", "open_set", "write"]
