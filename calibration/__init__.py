"""Calibration sets, and the range statistics gathered over them. Needs numpy alone."""

from calibration.columns import RawInput
from calibration.converting import ConvertConfig, Converted, Wanted, convert, open_raw
from calibration.dataset import CalibrationSet, open_set
from calibration.errors import CalibrationError
from calibration.histogram import Histogram
from calibration.minmax import MinMax
from calibration.ranges import Grid, choose_range
from calibration.writing import write

__all__ = [
    # data sets
    "CalibrationSet", "open_set", "write",
    # from raw samples
    "ConvertConfig", "Converted", "RawInput", "Wanted", "convert", "open_raw",
    # statistics
    "Grid", "Histogram", "MinMax", "choose_range",
    "CalibrationError",
]
