"""How long ``compress --help`` takes, and which imports take it: JSON on standard output.

    python benchmarks/cli_start.py [--runs 10]
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMAND = [sys.executable, "-m", "compress", "--help"]
ROOT = Path(__file__).resolve().parents[1]
BUDGET_S = 0.5


def time_once() -> tuple[float, float]:
    """Seconds of one fresh process, and those of its processor time: less, where others use the machine."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(COMMAND, cwd=ROOT, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return time.perf_counter() - start, processor


def heaviest_imports(count: int = 15) -> list[dict[str, object]]:
    """The modules whose own code takes longest to import, with what they import left out."""
    command = [COMMAND[0], "-X", "importtime", *COMMAND[1:]]
    log = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stderr
    rows = re.findall(r"import time:\s+(\d+) \|\s+(\d+) \|\s*(\S+)", log)
    rows.sort(key=lambda row: -int(row[0]))
    return [{"module": name, "own_ms": int(own) / 1e3, "with_imports_ms": int(total) / 1e3}
            for own, total, name in rows[:count]]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Time compress --help.")
    parser.add_argument("--runs", type=int, default=10)
    runs = parser.parse_args().runs
    time_once()  # writes the bytecode and fills the page cache
    times = [time_once() for _ in range(runs)]
    median = statistics.median(seconds for seconds, _ in times)
    record = {
        "command": "python -m compress --help", "runs": runs, "warm_up_runs": 1,
        "seconds": [seconds for seconds, _ in times], "processor_seconds": [seconds for _, seconds in times],
        "median_s": median, "median_processor_s": statistics.median(seconds for _, seconds in times),
        "budget_s": BUDGET_S, "within": median < BUDGET_S,
        "heaviest_imports": heaviest_imports(), "python": platform.python_version(),
    }  # fmt: skip
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
