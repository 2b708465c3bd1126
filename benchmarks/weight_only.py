"""Weights quantized alone against float32 and int8, for one token at a time: JSON on standard output.

    python benchmarks/weight_only.py [--folder FOLDER] [--rounds 7] > benchmarks/results/weight_only.json
    python benchmarks/weight_only.py --accuracy MODEL... > benchmarks/results/weight_only_accuracy.json
    python benchmarks/weight_only.py --tables       # those of docs/quantization.md, from both

Two networks with random weights, on which the time does not depend: one linear layer of 2048 inputs and 8192 outputs
without anything around it, 64 MB in float32; and the decoder of a Whisper of the base size (benchmarks/whisper.py), the
step behind 30 tokens, with its cache. Each runs a batch of one in float32, in int8 (activations too, as the pipeline
does by default), and with the weights of all its linear layers alone in int8 and in int4 (groups of 64), in OpenVINO
and ONNX Runtime, with float32 around them and two threads. All engines are opened once; a round times each for half a
second, in turning order; ``step_ms`` is the median over rounds of the medians, ``speedup`` that of float32 over it.
``layers`` are the products of the engine by the precision they are read back in.

``--accuracy`` takes folders of ``compress demo FOLDER --model NAME``: their model's metric on the first 400 samples of
its validation set, in torch, after calibration on 64 samples.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

TARGETS = ("openvino-cpu", "onnxruntime-cpu")
SECONDS = 0.5
INPUTS, OUTPUTS = 2048, 8192
GROUP = 64
RESULTS = ROOT / "benchmarks" / "results"
SAMPLES = 400
_INT4: dict[str, Any] = {"int4_weights": ("*",)}
WAYS: dict[str, dict[str, Any]] = {
    "int8": {}, "int8 weights": {"int8_weights": ("*",)}, "int4 weights": _INT4,
    "int4, groups of 32": {**_INT4, "group_size": 32}, "int4, gptq": {**_INT4, "rounding": "gptq"},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the Whisper is kept; default: a temporary folder")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--accuracy", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument("--tables", action="store_true")
    options = parser.parse_args()
    if options.tables:
        print(f"{time_table()}\n\n{accuracy_table()}")
        return 0
    if options.accuracy:
        print(json.dumps({"rows": [accuracy(folder) for folder in options.accuracy]}, indent=1))
        return 0
    rows = []
    with tempfile.TemporaryDirectory(prefix="compress-weight-only-") as temporary:
        for name, (model, feed) in {"linear": linear(), "whisper decoder": decoder(options.folder or Path(temporary))
                                    }.items():  # fmt: skip
            for target in TARGETS:
                place = Path(temporary) / name.replace(" ", "-") / target
                rows += measured(name, quantized(model, target), feed, target, place, options.rounds)
    from runtimes.machine import machine_facts

    print(json.dumps({"rows": rows, "group_size": GROUP, "threads": 2, "rounds": options.rounds, "versions": {
        name: version(name) for name in ("openvino", "onnxruntime", "torch", "transformers")},
        "machine": machine_facts()}, indent=1))  # fmt: skip
    return 0


def linear() -> tuple[Any, dict[str, np.ndarray]]:
    import torch

    from compress.model import Input
    from compress.saving import export_model

    class One(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(INPUTS, OUTPUTS)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    feed = {"x": np.random.default_rng(0).normal(size=(1, INPUTS)).astype(np.float32)}
    return export_model(One(), name="linear", example=feed, inputs={"x": Input(dims=("batch",))}), feed


def decoder(folder: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """The graph alone, and what the last of the steps that calibration runs reads."""
    import compress
    from benchmarks.whisper import write_folder
    from compress.export import only
    from compress.quantize.collect import shortened
    from compress.steps import graph_feeds

    model = compress.load(write_folder(folder / "whisper-base"))
    feed = graph_feeds(shortened(model), {spec.name: model.example[spec.name][:1] for spec in model.inputs})
    return only(model, "decoder"), {name: np.ascontiguousarray(value) for name, value in feed["decoder"][-1].items()}


def quantized(model: Any, target: str) -> dict[str, Any]:
    """The model in each precision; what it reads is of no matter for the time, so it is calibrated on its example."""
    import calibration
    from compress.quantize import QuantizeConfig, quantize
    from compress.targets import get_target

    example = {spec.name: model.example[spec.name] for spec in model.inputs}
    data, scheme = calibration.open_set([example], model.inputs), get_target(target).scheme
    every = ("*",)
    configs = {"int8": QuantizeConfig(), "int8 weights": QuantizeConfig(int8_weights=every),
               "int4 weights": QuantizeConfig(int4_weights=every, group_size=GROUP)}  # fmt: skip
    return {"fp32": model, **{name: quantize(model, data, scheme=scheme, config=config).model
                              for name, config in configs.items()}}  # fmt: skip


def measured(
    name: str, models: Mapping[str, Any], feed: dict[str, np.ndarray], target: str, folder: Path, rounds: int
) -> list[dict[str, Any]]:
    from compress.export import export
    from compress.targets import get_target
    from runtimes.backends import open_engine

    engines = {kind: export(model, get_target(target), folder / kind) for kind, model in models.items()}
    runners = {kind: open_engine(engine, threads=2) for kind, engine in engines.items()}
    times: dict[str, list[float]] = {kind: [] for kind in runners}
    order = list(runners)
    for _ in range(rounds + 1):
        for kind in order:
            times[kind].append(timed(runners[kind], feed))
        order = [*order[1:], order[0]]
    rows = []
    for kind, runner in runners.items():
        step_ms = float(np.median(times[kind][1:]))
        rows.append({
            "model": name, "target": target, "precision": kind, "step_ms": round(step_ms, 4),
            "speedup": round(float(np.median(np.divide(times["fp32"], times[kind])[1:])), 2),
            "size_bytes": sum(file.stat().st_size for file in engines[kind].path.iterdir()),
            "layers": dict(Counter(layer.precision for layer in runner.layers(feed) if layer.macs)),
        })  # fmt: skip
        print(json.dumps(rows[-1]), file=sys.stderr)
        runner.close()
    return rows


def timed(runner: Any, feed: dict[str, np.ndarray]) -> float:
    """The median of a run, in milliseconds."""
    runner.run(feed)
    found, end = [], time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter_ns()
        runner.run(feed)
        found.append(time.perf_counter_ns() - start)
    return float(np.median(found)) / 1e6


def accuracy(folder: Path) -> dict[str, Any]:
    import yaml

    import calibration
    import compress
    from compress.described import described
    from compress.evaluate import evaluate
    from compress.ladder import torch_runner
    from compress.metrics import get_metric
    from compress.quantize import QuantizeConfig, quantize

    model = compress.load(folder / "model.pt")
    name = str(yaml.safe_load((folder / "recipe.yaml").read_text())["metric"])
    metric = get_metric(name, described(model))
    samples, validation = (calibration.open_set(folder / kind, model.inputs) for kind in ("calibration", "validation"))
    scores = {"float": model}
    for way, settings in WAYS.items():
        config = QuantizeConfig(samples=64, **settings)
        scores[way] = quantize(model, samples, scheme="x86-vnni", config=config).model
    found = {way: evaluate(torch_runner(one), validation.take(SAMPLES), metric).estimate.value
             for way, one in scores.items()}  # fmt: skip
    print(folder.name, found, file=sys.stderr)
    return {"model": folder.name, "metric": name, "samples": SAMPLES, "scores": found}


def time_table() -> str:
    record = json.loads((RESULTS / "weight_only.json").read_text())
    lines = ["| network | backend | fp32 | int8 | int8 weights | int4 weights |", "| --- | --- |" + " ---: |" * 4]
    for key in dict.fromkeys((row["model"], row["target"]) for row in record["rows"]):
        cells = [f"{row['step_ms']:.3g} ms" + (f", {row['speedup']:.1f}×" if row["precision"] != "fp32" else "")
                 + f", {row['size_bytes'] / 1e6:.0f} MB"
                 for row in record["rows"] if (row["model"], row["target"]) == key]  # fmt: skip
        lines.append(f"| {key[0]} | {key[1]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def accuracy_table() -> str:
    rows = json.loads((RESULTS / "weight_only_accuracy.json").read_text())["rows"]
    ways = list(rows[0]["scores"])
    lines = [f"| model, metric | {' | '.join(ways)} |", "| --- |" + " ---: |" * len(ways)]
    lines += [f"| {row['model']}, {row['metric']} | " + " | ".join(f"{100 * row['scores'][way]:.1f}" for way in ways)
              + " |" for row in rows]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
