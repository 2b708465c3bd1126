"""What ``import runtimes`` adds to ``import numpy``, and how large the installed packages are: JSON on standard output.

    python benchmarks/import_time.py [--pairs 20] [--wheel]

Each pair is two fresh processes in turning order, one importing numpy alone and one numpy and runtimes, each told to
time its own imports; what is added is the median of the differences within a pair. ``noise_ms`` is the same of a second
process importing numpy alone. With ``--wheel`` the wheel is built (``pip wheel --no-deps``) and its unpacked size read.
Limits: 100 ms, 10 MB. Exit code 1 beyond one.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIMIT_MS, LIMIT_BYTES = 100.0, 10_000_000
TIMED = "import time; at, used = time.perf_counter(), time.process_time(); {}; " \
        "print((time.perf_counter() - at) * 1e3, (time.process_time() - used) * 1e3)"
NUMPY, BOTH = TIMED.format("import numpy"), TIMED.format("import numpy, runtimes")


def import_ms(code: str) -> tuple[float, float]:
    """Milliseconds that a fresh process takes for its imports, and those of its processor time."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    passed, used = done.stdout.split()
    return float(passed), float(used)


def heaviest(count: int = 12) -> list[dict[str, object]]:
    """The modules of runtimes, and those only it imports, whose own code takes longest."""
    command = [sys.executable, "-X", "importtime", "-c", "import numpy; import sys; print('here', file=sys.stderr); "
               "import runtimes"]
    log = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stderr.partition("here")[2]
    rows = re.findall(r"import time:\s+(\d+) \|\s+(\d+) \|\s*(\S+)", log)
    rows.sort(key=lambda row: -int(row[0]))
    return [{"module": name, "own_ms": int(own) / 1e3} for own, _, name in rows[:count]]


def added(rounds: list[list[tuple[float, float]]], which: int, to: int | None, kind: int) -> float:
    """Median over the pairs of what process ``which`` takes more than ``to``; ``kind`` is 0 for passed, 1 processor."""
    return round(statistics.median(row[which][kind] - (0 if to is None else row[to][kind]) for row in rounds), 1)


def wheel_bytes() -> int:
    """Size of every file of the wheel, unpacked."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", folder, str(ROOT)]
        subprocess.run(command, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            return sum(entry.file_size for entry in archive.infolist())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--wheel", action="store_true", help="also build the wheel and read its size")
    options = parser.parse_args()
    codes = [NUMPY, BOTH, NUMPY]
    for code in codes:
        import_ms(code)     # writes the bytecode and fills the page cache
    rounds = []
    for index in range(options.pairs):
        order = [(position + index) % 3 for position in range(3)]
        times = {position: import_ms(codes[position]) for position in order}
        rounds.append([times[position] for position in range(3)])
    record: dict[str, Any] = {
        "pairs": options.pairs, "numpy_ms": added(rounds, 0, None, 0), "added_ms": added(rounds, 1, 0, 0),
        "noise_ms": added(rounds, 2, 0, 0), "added_processor_ms": added(rounds, 1, 0, 1),
        "limit_ms": LIMIT_MS, "heaviest": heaviest(), "python": platform.python_version(),
    }
    within = record["added_ms"] <= LIMIT_MS
    if options.wheel:
        record["wheel_bytes"], record["limit_bytes"] = wheel_bytes(), LIMIT_BYTES
        within = within and record["wheel_bytes"] <= LIMIT_BYTES
    print(json.dumps({**record, "within": within}, indent=1))
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
