"""Quantize, score and time every model with every quantizer: python -m benchmarks.peers [MODEL[:PEER] ...]

Steps, which may be run one by one: ``prepare`` writes what the quantizers are given, ``build`` runs each in a process
of its own and measures it, from the model file to the engine files, ``score`` is the model's metric on the whole
validation set, ``time`` the latency at batch 1 of all results there are of a model, in one run for each backend. Rows
of benchmarks/results/peers.json are kept when they are made; the README's tables are made of them
(python benchmarks/readme.py). Results are kept in --work. A peer whose packages do not fit into this Python gets
another with --python; where it is not installed at all, its row says so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.building import ROOT, build
from benchmarks.peers.engines import Result, found
from benchmarks.peers.timing import latencies
from runtimes.machine import machine_facts

RECORD = ROOT / "benchmarks/results/peers.json"
BACKENDS = ("openvino", "onnxruntime")
STEPS = ("prepare", "build", "score", "time")
LIMIT_S = 300.0        # of a quantizer's run
DROP = 0.01             # relative, of NNCF's accuracy control and of our budget


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A quantizer with its settings: a module here, and the package whose version is told."""

    module: str
    package: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    each: bool = False          # makes another result for each backend, not one that both read
    trained: bool = False       # needs a metric


PEERS: Mapping[str, Peer] = {
    "ours": Peer(module="ours", package="torch", each=True),
    "ours-accuracy": Peer(module="ours", package="torch", settings={"max_drop": DROP}, each=True, trained=True),
    "nncf": Peer(module="nncf", package="nncf", each=True),
    "nncf-transformer": Peer(module="nncf", package="nncf", settings={"model_type": "transformer"}, each=True),
    "nncf-accuracy": Peer(module="nncf", package="nncf", settings={"max_drop": DROP}, each=True, trained=True),
    "onnxruntime": Peer(module="onnxruntime", package="onnxruntime"),
    "onnxruntime-plain": Peer(module="onnxruntime", package="onnxruntime", settings={"plain": True}, trained=True),
    "olive": Peer(module="olive", package="olive-ai"),
    "modelopt": Peer(module="modelopt", package="nvidia-modelopt"),
}
FLOATS: Mapping[str, Mapping[str, Mapping[str, str]]] = {     # backend -> precision -> options
    "openvino": {"fp32": {"INFERENCE_PRECISION_HINT": "f32"}, "bf16": {"INFERENCE_PRECISION_HINT": "bf16"}},
    "onnxruntime": {"fp32": {}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="*", metavar="MODEL[:PEER]", help=f"peers: {', '.join(PEERS)}; all by default")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--work", type=Path, default=Path("build/peers"), help="what is made is kept here")
    parser.add_argument("--trained", type=Path, default=Path("build/models"), help="where the reference models are")
    parser.add_argument("--python", nargs="+", default=[], metavar="PEER=PATH", help="the Python that a peer lives in")
    parser.add_argument("--samples", type=int, help="calibrate on fewer than there are, for a look at the speed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--restarts", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--turn", type=float, default=0.25, metavar="SECONDS", help="how long a result is timed")
    options = parser.parse_args()
    wanted = _wanted(options.pairs)
    pythons = dict(pair.split("=", 1) for pair in options.python)
    for name, peers in wanted.items():
        folder = options.work.resolve() / name
        if "prepare" in options.steps:
            _run("models", name, folder, options.trained.resolve())
        case = json.loads((folder / "case.json").read_text(encoding="utf-8"))
        case["samples"] = min(case["samples"], options.samples or case["samples"])
        if "build" in options.steps:
            for peer in peers:
                build_all(case, peer, folder, options.backends, pythons)
        for backend in options.backends:
            results = dict(results_of(case, folder, backend))
            if "score" in options.steps and case["metric"]:
                some = {key: made for key, made in results.items() if key in peers or key in FLOATS[backend]}
                score_all(case, backend, some, options.threads)
            if "time" in options.steps:
                time_all(case, backend, results, options)


def _wanted(pairs: Sequence[str]) -> dict[str, list[str]]:
    """Model -> its peers, in the order of the table."""
    from compress.zoo import MODELS

    cases = (*MODELS, "dual-encoder-uneven", "clip-b32", "whisper-base", "mobilenet-text")
    wanted: dict[str, list[str]] = {}
    for pair in pairs or cases:
        model, _, peer = pair.partition(":")
        if model not in cases or (peer and peer not in PEERS):
            raise SystemExit(f"there is no {pair!r}: models are {', '.join(cases)}, peers {', '.join(PEERS)}")
        wanted.setdefault(model, []).extend([peer] if peer else PEERS)
    return wanted


def build_all(
    case: Mapping[str, Any], name: str, folder: Path, backends: Sequence[str], pythons: Mapping[str, str]
) -> None:  # fmt: skip
    peer = PEERS[name]
    if peer.trained and not case["metric"]:
        return
    python = pythons.get(peer.module, sys.executable)
    version = _version(python, peer.package)
    for backend in backends if peer.each else [None]:
        if version is None:
            row: dict[str, Any] = {"failed": f"{peer.package} is not installed"}
        else:
            job = {**case, "backend": backend or "onnxruntime", "settings": dict(peer.settings)}
            into = folder / "built" / (backend or "onnx") / name
            made = build(peer.module, job, into, python=python, limit_s=LIMIT_S)
            row = {**made, "version": version, "samples": case["samples"]}
        for own in [backend] if backend else backends:
            keep(case, own, name, row)
        print(case["name"], name, backend or "", json.dumps(row), flush=True)


def results_of(case: Mapping[str, Any], folder: Path, backend: str) -> Iterator[tuple[str, Result]]:
    """The fp32 model with the precisions of the backend, and whatever has been built."""
    floats = {name: Path(graph["onnx"]) for name, graph in case["graphs"].items()}
    for precision, options in FLOATS[backend].items():
        yield precision, Result(backend=backend, files=floats, options=dict.fromkeys(floats, options))
    for name in PEERS:
        for into in (folder / "built" / backend / name, folder / "built/onnx" / name):
            if into.exists():
                yield name, found(into, backend)


def score_all(case: Mapping[str, Any], backend: str, results: Mapping[str, Result], threads: int) -> None:
    job = {**case, "threads": threads, "results": {name: result.to_json() for name, result in results.items()}}
    file = Path(case["folder"]) / f"score-{backend}.json"
    file.write_text(json.dumps(job), encoding="utf-8")
    for name, score in json.loads(_run("scoring", file)).items():
        keep(case, backend, name, score)


def time_all(
    case: Mapping[str, Any], backend: str, results: Mapping[str, Result], options: argparse.Namespace
) -> None:  # fmt: skip
    seen = latencies(results, case["timed"], threads=options.threads, restarts=options.restarts,
                     rounds=options.rounds, turn_s=options.turn)  # fmt: skip
    forget_times(case, backend)
    for name in sorted(results.keys() - seen.keys()):
        keep(case, backend, name, {"not_run": f"{backend} cannot open it"})
    for name, restarts in seen.items():
        size = results[name].size_bytes
        keep(case, backend, name, {"latency_ms": restarts, "size_bytes": size, "threads": options.threads})
        print(case["name"], backend, name, [restart[""] for restart in restarts], flush=True)


def forget_times(case: Mapping[str, Any], backend: str) -> None:
    """Latencies of another run are not to be compared with those of the next."""
    record = read()
    for row in record["models"].get(case["name"], {"results": {}})["results"].get(backend, {}).values():
        row.pop("latency_ms", None)
    write(record)


def keep(case: Mapping[str, Any], backend: str, name: str, row: Mapping[str, Any]) -> None:
    """Put what is new of a result into the record."""
    record = read()
    model = record["models"].setdefault(case["name"], {"results": {}})
    model |= {"metric": case["metric"], "graphs": list(case["graphs"])}
    held = model["results"].setdefault(backend, {}).setdefault(name, {})
    if "wall_s" in row or "failed" in row:      # another file: what was seen of the one before is not its
        held.clear()
    held |= row
    record["machine"] = machine_facts()
    record["versions"] = {package: _version(sys.executable, package) for package in ("openvino", "onnxruntime")}
    write(record)


def read() -> dict[str, Any]:
    if not RECORD.exists():
        return {"format": "compress.benchmark.peers", "version": 1, "models": {}}
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    return record


def write(record: Mapping[str, Any]) -> None:
    RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _version(python: str, package: str) -> str | None:
    """Of a package in another Python; None where it is not installed there."""
    asked = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"
    told = subprocess.run([python, "-c", asked, package], capture_output=True, text=True)
    return told.stdout.strip() if told.returncode == 0 else None


def _run(module: str, *arguments: str | Path) -> str:
    """What a module of ours prints; in its own process, since this one has to stay small (:func:`build`)."""
    command = [sys.executable, "-m", f"benchmarks.peers.{module}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
