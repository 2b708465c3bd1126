from __future__ import annotations

import subprocess
import sys

import calibration


def test_the_public_names() -> None:
    assert sorted(calibration.__all__) == [
        "CalibrationError", "CalibrationSet", "ConvertConfig", "Converted", "Grid", "Histogram", "MinMax", "RawInput",
        "Wanted",
        "choose_range", "convert", "open_raw", "open_set", "write"]
    assert all(hasattr(calibration, name) for name in calibration.__all__)


def test_it_needs_numpy_alone() -> None:
    code = ("import sys, calibration; heavy = {'torch', 'onnx', 'onnxruntime', 'openvino', 'scipy', 'compress', 'PIL', "
            "'pyarrow'}; print(sorted(heavy & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
