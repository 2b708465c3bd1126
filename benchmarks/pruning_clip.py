"""What pruning a CLIP of the size of ViT-B/32 takes: python benchmarks/pruning_clip.py [--threads 2]

Built from its configuration with random weights, pictures of 224x224 and texts of 77 tokens, as many samples as the
importance is measured on; to half of its multiply-accumulates. Prints the record benchmarks/results/pruning_clip.json:
seconds for what goes together (tracing and trials), importance, removal (choice, proof, cut and the export of what is
left), and the most memory that the process held, the building of the model included. Exit code 1 beyond the limits.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, get_args

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from compress.prune.config import Importance  # noqa: E402

T = TypeVar("T")
LIMIT_S, LIMIT_BYTES = 180.0, 6e9
MACS = 0.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--importance", choices=get_args(Importance), default="taylor")
    options = parser.parse_args()
    import torch

    from runtimes.machine import machine_facts

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        row = measure(Path(folder), options.samples, options.importance)
    row |= {"samples": options.samples, "threads": options.threads, "importance": options.importance}
    row["within"] = row["seconds"]["all"] <= LIMIT_S and row["peak_bytes"] <= LIMIT_BYTES
    print(json.dumps({**row, "limit": {"seconds": LIMIT_S, "bytes": LIMIT_BYTES}, "machine": machine_facts(),
                      "versions": {name: version(name) for name in ("torch", "transformers")}}, indent=1))
    return 0 if row["within"] else 1


def measure(folder: Path, samples: int, importance: Importance) -> dict[str, Any]:
    from benchmarks.peers.models import clip
    from calibration import open_set
    from compress.prune import PruneConfig, prune, structured

    model = clip(folder, samples)
    data = open_set(folder / "calibration", model.inputs)
    seconds: dict[str, float] = {}
    peaks = {"model": peak_bytes()}
    for part, name in (("grouping", "find_groups"), ("importance", "rank")):
        setattr(structured, name, clocked(getattr(structured, name), part, seconds, peaks))
    config = PruneConfig(macs=MACS, samples=samples, target="openvino-cpu", importance=importance)
    result = clocked(prune, "all", seconds, peaks)(model, data, config)
    seconds["removal"] = seconds["all"] - seconds["grouping"] - seconds["importance"]
    return {"macs_before": result.macs_before, "macs_after": result.macs_after, "check_max_abs": result.check,
            "groups": len(result.groups), "seconds": {part: round(taken, 2) for part, taken in seconds.items()},
            "peaks": peaks, "peak_bytes": peaks["all"]}  # fmt: skip


def clocked(
    function: Callable[..., T], part: str, seconds: dict[str, float], peaks: dict[str, int]
) -> Callable[..., T]:  # fmt: skip
    """``function``, which tells how long it took, and the most memory the process held until then."""

    def run(*arguments: Any, **named: Any) -> T:
        started = time.perf_counter()
        done = function(*arguments, **named)
        seconds[part], peaks[part] = time.perf_counter() - started, peak_bytes()
        return done

    return run


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(main())
