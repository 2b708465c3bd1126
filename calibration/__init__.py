"""Calibration sets, and the range statistics gathered over them. Needs numpy alone."""

from calibration.dataset import CalibrationSet, open_set
from calibration.errors import CalibrationError
from calibration.histogram import Histogram
from calibration.minmax import MinMax
from calibration.ranges import choose_range
from calibration.writing import write

__all__ = ["CalibrationError", "CalibrationSet", "Histogram", "MinMax", "choose_range", "open_set", "write"]
