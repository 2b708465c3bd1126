"""Every Hugging Face architecture that is read, int8 against fp32: python -m benchmarks.huggingface [NAME ...]

Folders of networks with random weights, a hundred times as large as those of the tests and of the same builders, are
read, quantized and put in bundles; the chain is timed in one process, the two precisions of a backend in turn. The rows
of benchmarks/results/huggingface.json are what the README's table is made of (python benchmarks/readme.py). Where the
network writes a text, both precisions write as many tokens: stop tokens are never picked.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import compress
import runtimes
from calibration import open_set
from compress.golden import chain_feeds
from compress.model import Model
from compress.quantize import quantize
from compress.targets import get_target
from runtimes.machine import machine_facts
from tests.compress.huggingface import folders, generators, pairs

RECORD = Path(__file__).resolve().parent / "results/huggingface.json"
WIDTH = {"hidden_size": 384, "num_hidden_layers": 4, "num_attention_heads": 6, "intermediate_size": 1536}
DECODER = {"d_model": 384, "decoder_layers": 4, "decoder_attention_heads": 6, "decoder_ffn_dim": 1536}
WHISPER = {**DECODER, "encoder_layers": 4, "encoder_attention_heads": 6, "encoder_ffn_dim": 1536}
TOKENS = "tokens identical"
OUTPUTS = "outputs within 1e-4"
STEPS = 16              # tokens that a generator writes
THREADS = 2
SECONDS = 3.0           # of timing, for each backend

FOLDERS: Mapping[str, tuple[Callable[[Path], Path], str]] = {
    "BERT": (folders.bert, OUTPUTS),
    "ViT": (folders.vit, OUTPUTS),
    "Wav2Vec2 (CTC)": (folders.wav2vec2, OUTPUTS),
    "CLIP": (folders.clip, OUTPUTS),
    "SigLIP": (folders.siglip, OUTPUTS),
    "CLAP": (folders.clap, OUTPUTS),
    "ViLT (questions)": (pairs.vilt, OUTPUTS),
    "BLIP (captions)": (lambda path: pairs.blip(path, encoder_hidden_size=WIDTH["hidden_size"]), TOKENS),
    "BLIP (questions)": (lambda path: pairs.blip(
        path, "BlipForQuestionAnswering", encoder_hidden_size=WIDTH["hidden_size"]), TOKENS),
    "LLaVA (CLIP, Llama)": (pairs.llava, TOKENS),
    "Whisper": (lambda path: generators.whisper(path, **WHISPER), TOKENS),
    "Vision-Encoder-Decoder (TrOCR)": (lambda path: generators.reader(path, "trocr", **DECODER), TOKENS),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(FOLDERS)}; all by default")
    options = parser.parse_args()
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {"rows": {}}
    for name in options.names or FOLDERS:
        make, equal = FOLDERS[name]
        with tempfile.TemporaryDirectory() as folder, wide():
            row = measure(long(compress.load(make(Path(folder) / "model"))), Path(folder))
        record["rows"][name] = {**row, "equal": equal}
        record["rows"] = {name: record["rows"][name] for name in FOLDERS if name in record["rows"]}
        record["machine"] = {**machine_facts(), "threads": THREADS}
        RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(name, json.dumps({key: value["speedup"] for key, value in row["engines"].items()}), flush=True)


@contextlib.contextmanager
def wide() -> Iterator[None]:
    """The tests' builders with layers of a size that takes some time."""
    before = dict(folders.TINY)
    folders.TINY.update(WIDTH)
    try:
        yield
    finally:
        folders.TINY.update(before)


def long(model: Model) -> Model:
    """``model`` with a decoder that writes :data:`STEPS` tokens whatever it picks."""
    if model.chain is None:
        return model
    steps = [dict(step) for step in model.chain["steps"]]
    for step in steps:
        if "loop" in step:
            stop = step["loop"]["stop"]
            suppress = [*step["loop"].get("suppress", ()), *stop]
            step["loop"] = {**step["loop"], "max_steps": STEPS, "min_steps": 0, "stop": [], "suppress": suppress}
    return dataclasses.replace(model, chain={**model.chain, "steps": steps})


def measure(model: Model, folder: Path) -> dict[str, Any]:
    """Sizes, and of each backend the median time of one sample in fp32 and in int8."""
    feeds = [variant(model, seed) for seed in range(4)]
    int8 = quantize(model, open_set(feeds, model.inputs, name="random"), scheme="x86-vnni").model
    feed = {spec.name: feeds[0][spec.name][:1] for spec in model.inputs}
    engines = {}
    for target in ("openvino-cpu", "onnxruntime-cpu"):
        paths = {name: bundled(form, feeds[0], folder / f"{target}-{name}", target)
                 for name, form in (("fp32", model), ("int8", int8))}  # fmt: skip
        engines[target] = timed(paths, feed)
    return {
        "graphs": list(model.graphs), "parameters": sum(value.numel() for value in model.weights.values()),
        "engines": engines,
    }  # fmt: skip


def variant(model: Model, seed: int) -> dict[str, np.ndarray]:
    """The model's example with noise on what is no integer."""
    rng = np.random.default_rng(seed)
    example = {spec.name: model.example[spec.name] for spec in model.inputs}
    return {name: (array + 0.3 * rng.standard_normal(array.shape)).astype(array.dtype)
            if array.dtype.kind == "f" else array for name, array in example.items()}  # fmt: skip


def bundled(model: Model, feed: Mapping[str, np.ndarray], folder: Path, target: str) -> Path:
    engines = {graph: {target: compress.export(model, get_target(target), folder / graph, graph=graph)}
               for graph in model.graphs}  # fmt: skip
    single = {name: {spec.name: feed[spec.name] for spec in graph.inputs if spec.name in feed}
              for name, graph in model.graphs.items()}  # fmt: skip
    compress.bundle(model, engines, single if model.chain is None else chain_feeds(model, feed), folder / "bundle")
    return folder / "bundle"


def timed(bundles: Mapping[str, Path], feed: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Medians in milliseconds, of runs in turn; ``speedup`` is the median of the ratios of neighbours."""
    with contextlib.ExitStack() as stack:
        sessions = {name: stack.enter_context(runtimes.load(path, threads=THREADS))
                    for name, path in bundles.items()}  # fmt: skip
        times: dict[str, list[float]] = {name: [] for name in sessions}
        for session in sessions.values():
            session.run(feed)
        end = time.perf_counter() + SECONDS
        while time.perf_counter() < end or len(times["int8"]) < 10:
            for name, session in sessions.items():
                started = time.perf_counter_ns()
                session.run(feed)
                times[name].append((time.perf_counter_ns() - started) / 1e6)
    ratios = np.array(times["fp32"]) / np.array(times["int8"])
    return {"fp32_ms": float(np.median(times["fp32"])), "int8_ms": float(np.median(times["int8"])),
            "speedup": float(np.median(ratios)), "runs": len(ratios),
            "quartiles": np.quantile(ratios, [0.25, 0.75]).tolist()}  # fmt: skip


if __name__ == "__main__":
    main()
