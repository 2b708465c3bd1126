"""Prune, train, quantize, score and time every model in every way: python -m benchmarks.pruning [MODEL[:METHOD] ...]

Steps, which may be run one by one: ``prepare`` trains the originals (a folder of ``compress demo`` each is made in
--trained where it is missing), ``train`` makes a row for each way and seed in a process of its own, ``time`` measures
the engines of the first seed, all of a model in turn in fresh processes (:mod:`benchmarks.peers.timing`). Rows of
benchmarks/results/pruning.json are kept when they are made, and not made again unless asked for with --again; the table
in docs/pruning.md is made of them (python benchmarks/readme.py). What is made is kept in --work.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.peers.engines import found
from benchmarks.peers.timing import latencies
from benchmarks.pruning.methods import METHODS
from benchmarks.pruning.models import CASES
from benchmarks.pruning.recovery import built
from runtimes.machine import machine_facts

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "benchmarks/results/pruning.json"
STEPS = ("prepare", "train", "time")
SEEDS = 3
MACS = 0.5
TRAINED = {"digits-vqa": (1150, 2), "video": (2300, 2), "attention-vqa": (4000, 2), "spoken-command": (3000, 2)}
"""Model -> the samples it is trained on, and the epochs."""
BATCHES = (1, 16)       # samples in a run that is timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="*", metavar="MODEL[:METHOD]", help=f"methods: {', '.join(METHODS)}")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--work", type=Path, default=Path("build/pruning"), help="what is made is kept here")
    parser.add_argument("--trained", type=Path, default=Path("build/models"), help="where the reference models are")
    parser.add_argument("--macs", type=float, default=MACS, help="share of the multiply-accumulates to keep")
    parser.add_argument("--speedup", type=float, help="in place of --macs: times as fast as the original, measured")
    parser.add_argument("--samples", type=int, help="to train on, in place of the model's own number")
    parser.add_argument("--epochs", type=int, help="to train for, in place of the model's own number")
    parser.add_argument("--learning-rate", type=float, help="in place of the one that compress distill has")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(SEEDS)))
    parser.add_argument("--again", action="store_true", help="make rows that there are")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--restarts", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turn", type=float, default=0.1, metavar="SECONDS", help="how long a result is timed")
    options = parser.parse_args()
    for name, methods in _wanted(options.pairs).items():
        folder = (options.work / name).resolve()
        if "prepare" in options.steps:
            _run("models", name, folder, options.trained.resolve())
            prepare(read_case(folder))
        case = read_case(folder, options.samples, options.epochs, options.learning_rate)
        if "train" in options.steps:
            for seed in options.seeds:
                for method in methods:
                    train(case, method, seed, options)
        if "time" in options.steps:
            time_all(case, options)


def _wanted(pairs: Sequence[str]) -> dict[str, list[str]]:
    """Model -> the ways to prune it, in the order of the table."""
    wanted: dict[str, list[str]] = {}
    for pair in pairs or CASES:
        model, _, method = pair.partition(":")
        if model not in CASES or (method and method not in METHODS):
            raise SystemExit(f"there is no {pair!r}: models are {', '.join(CASES)}, methods {', '.join(METHODS)}")
        wanted.setdefault(model, []).extend([method] if method else METHODS)
    return wanted


def read_case(
    folder: Path, samples: int | None = None, epochs: int | None = None, learning_rate: float | None = None
) -> dict[str, Any]:
    """With what this comparison trains on, or what is asked for; written again for the processes."""
    file = folder / "case.json"
    case: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    own = TRAINED[case["name"]]
    case |= {"folder": str(folder), "samples": samples or own[0], "epochs": epochs or own[1],
             "learning_rate": learning_rate}
    file.write_text(json.dumps(case, indent=1), encoding="utf-8")
    return case


def prepare(case: dict[str, Any]) -> None:
    """The original's score, its engine and what is timed."""
    if "feeds" in case:
        return
    file = Path(case["folder"]) / "case.json"
    told = json.loads(_run("timed", file, *map(str, BATCHES)))
    file.write_text(json.dumps({**case, "feeds": told["feeds"]}, indent=1), encoding="utf-8")
    record = read()
    record["models"].setdefault(case["name"], {"results": {}})["original"] = told["original"]
    write(record)


def train(case: Mapping[str, Any], method: str, seed: int, options: argparse.Namespace) -> None:
    """One row, where there is none."""
    key = _goal(options)
    ways = read()["models"].get(case["name"], {}).get("results", {}).get(key, {})
    if str(seed) in ways.get(method, {}).get("seeds", {}) and not options.again:
        return
    ours = ways.get("ours", {}).get("seeds", {}).get(str(seed), {})
    if method == "scratch" and not ours:
        raise SystemExit(f"{case['name']}: ours goes first, whose shape and time the network from scratch has")
    made = json.loads(_run("recovery", Path(case["folder"]) / "case.json", method, str(seed), key,
                           str(ours.get("processor_s", 0))))
    record = read()
    model = record["models"].setdefault(case["name"], {"results": {}})
    model |= {name: case[name] for name in ("metric", "network")}
    made |= {name: case[name] for name in ("samples", "epochs", "learning_rate")}
    kept = model["results"].setdefault(key, {}).setdefault(method, {"seeds": {}})
    kept |= {name: made.pop(name) for name in ("macs_kept", "params_kept", "before") if name in made}
    kept["seeds"][str(seed)] = made
    write(record)
    print(case["name"], method, seed, json.dumps(made), flush=True)


def time_all(case: Mapping[str, Any], options: argparse.Namespace) -> None:
    """The original's engine beside what was built of the first seed, in one run for each size of batch."""
    folder, key = Path(case["folder"]), _goal(options)
    engines = {"original": folder / "original"}
    engines |= {name: path for name in (*METHODS, "ours-int8") if (path := built(case, key) / name).exists()}
    results = {name: found(path, "openvino") for name, path in engines.items()}
    for batch, feeds in case["feeds"].items():
        seen = latencies(results, feeds, threads=options.threads, restarts=options.restarts,
                         rounds=options.rounds, turn_s=options.turn)  # fmt: skip
        record = read()
        model = record["models"][case["name"]]
        model["threads"] = options.threads
        timed = {name: [restart[""] for restart in restarts] for name, restarts in seen.items()}
        model.setdefault("latency_ms", {}).setdefault(key, {})[batch] = timed
        write(record)
        print(case["name"], batch, json.dumps(timed), flush=True)


def _goal(options: argparse.Namespace) -> str:
    """As :mod:`benchmarks.pruning.methods` reads it: ``0.5`` of the multiply-accumulates, ``x1.7`` times as fast."""
    return f"x{options.speedup:g}" if options.speedup else f"{options.macs:g}"


def read() -> dict[str, Any]:
    if not RECORD.exists():
        return {"format": "compress.benchmark.pruning", "version": 1, "models": {}}
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    return record


def write(record: dict[str, Any]) -> None:
    record["machine"] = machine_facts()
    record["versions"] = {package: version(package) for package in ("torch", "openvino", "torch-pruning")}
    RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _run(module: str, *arguments: str | Path) -> str:
    """What a module of ours prints; in its own process."""
    command = [sys.executable, "-m", f"benchmarks.pruning.{module}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
