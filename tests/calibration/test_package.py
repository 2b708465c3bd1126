"""The package, from where people work: beside a data set in a folder of the same name."""

import subprocess
import sys


def test_a_folder_called_calibration_does_not_stand_before_it(tmp_path):
    """As ``calibration.write("calibration", ...)`` makes one, where the script that did is run again."""
    (tmp_path / "calibration").mkdir()
    (tmp_path / "train.py").write_text("import calibration; print(calibration.write)")
    done = subprocess.run([sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("<function write")
