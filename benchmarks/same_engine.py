"""A/A: an engine against itself, again and again, exactly as two candidates are compared.

    python benchmarks/same_engine.py [BUNDLE TARGET] [--comparisons 50] [--preset quick] [--warmup-s S] [--duration-s S]

Each comparison is a whole bench of two candidates that are the same engine, in new processes, in ABBA order. At most
5 % may be called different (`compress.intervals.is_different`, which the tables and reports use too). Without a bundle
the two small engines of session_overhead.py take turns (needs onnx). Prints and writes JSON after every comparison, the
last of them with the verdict; exit code 1 beyond the limit.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.session_overhead import small_engines
from compress.bench import BenchConfig, Candidate, bench
from compress.metrics import get_metric
from compress.targets import get_target
from compress.versions import versions
from runtimes.bundle import read_bundle
from runtimes.engine import Engine, read_engine
from runtimes.engineset import EngineSet
from runtimes.machine import machine_facts
from runtimes.records import write_json

LIMIT = 0.05
HERE = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", type=Path, help="a bundle whose engine is compared")
    parser.add_argument("target", nargs="?", default="local", help="of which target")
    parser.add_argument("--comparisons", type=int, default=50)
    parser.add_argument("--preset", choices=("quick", "full"), default="quick")
    parser.add_argument("--warmup-s", type=float, help="instead of the preset's")
    parser.add_argument("--duration-s", type=float, help="instead of the preset's")
    parser.add_argument("--output", type=Path, default=HERE / "results/same_engine.json")
    options = parser.parse_args()
    config = BenchConfig(
        preset=options.preset, warmup_s=options.warmup_s, duration_s=options.duration_s, peaks=False)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "engines").mkdir()
        engines = ([bundled(options.bundle, options.target)] if options.bundle else
                   small_engines(Path(folder) / "engines"))  # fmt: skip
        for number in range(options.comparisons):
            rows.append(compare(engines[number % len(engines)], config, Path(folder) / str(number)))
            write_json(options.output, record(rows, config, done=number + 1 == options.comparisons))
            print(json.dumps(rows[-1]), flush=True)
    different = sum(row["different"] for row in rows)
    print(f"{different} of {len(rows)} comparisons of an engine with itself were called different, "
          f"{LIMIT:.0%} may be")
    return 0 if different <= LIMIT * len(rows) else 1


def compare(engine: Engine, config: BenchConfig, folder: Path) -> dict[str, Any]:
    """One bench of ``engine`` against itself."""
    target, engines = get_target(f"{engine.backend}-cpu"), EngineSet(engines={"forward": engine})
    pair = [Candidate(name="A", role="original", engines=engines, target=target),
            Candidate(name="B", role="shipped", engines=engines, target=target)]
    rng = np.random.default_rng(0)
    feed = {spec.name: (rng.random(spec.sized()) * 2).astype(spec.dtype) for spec in engine.inputs}
    made = bench(pair, feed=feed, data=None, metric=get_metric("accuracy"), config=config, baseline="A", workdir=folder)
    first, second = made.rows
    if first.latency_ms is None or second.latency_ms is None:
        raise SystemExit(f"the engine could not be measured: {first.reason or second.reason}")
    gain = next(iter(second.speedup.values()))
    return {
        "backend": engine.backend, "digest": engine.digest, "ratio": gain.ratio, "interval": list(gain.interval),
        "different": bool(gain.different), "p50_ms": [first.latency_ms.p50, second.latency_ms.p50],
        "restart_p50_ms": [list(first.latency_ms.restart_p50), list(second.latency_ms.restart_p50)],
        "marks": sorted({mark.kind for row in made.rows for mark in row.marks}),
    }  # fmt: skip


def record(rows: list[dict[str, Any]], config: BenchConfig, *, done: bool) -> dict[str, Any]:
    different = sum(row["different"] for row in rows)
    return {
        "rows": rows, "comparisons": len(rows), "different": different, "limit": LIMIT, "complete": done,
        "within": different <= LIMIT * len(rows), "preset": config.preset, "plan": asdict(config.plan()),
        "machine": machine_facts(), "versions": versions(),
    }  # fmt: skip


def bundled(path: Path, name: str) -> Engine:
    bundle, target = read_bundle(path), get_target(name)
    entry = bundle.graph.engines[target.name]
    return read_engine(bundle.path / entry.path, expected=bundle.engine_files(entry))


if __name__ == "__main__":
    sys.exit(main())
