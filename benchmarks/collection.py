"""What collecting statistics adds to running a model, and whether its memory grows.

    python benchmarks/collection.py [--only NAME]... [--what ratio|memory] [--seconds 20]

What is measured takes its place in benchmarks/results/collection.json. Exit code 1 beyond a limit.

Networks with random weights: a CLIP ViT-B/32 of transformers from its configuration and one far smaller, both towers
in one graph; and two of the zoo: the demo's digits-vqa, and attention-vqa, whose text encoder is an LSTM.

``ratio``: in one process, batch after batch, the model's own program is run as it is and then its collecting form as
``compress quantize`` runs it: batch normalisations folded, attention in its parts, a histogram of every tensor that an
int8 operator reads. Medians of the times, and of the ratios of neighbours. Limit: 1.5, for networks that take at least
a millisecond a sample: binning costs about 2 ns a value, and what runs faster than that multiplies little with each.

``memory``: ``compress quantize`` of 100 and of 10,000 samples, each in a process of its own, whose peak is what the
kernel counted (``VmHWM``). ``growth`` is the second over the first, less one. Limit: 5 %. Not for the large CLIP,
whose 10,000 samples are hours of forward passes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from compress.model import Model

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

RECORD = ROOT / "benchmarks/results/collection.json"
TINY = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
MODELS: Mapping[str, Mapping[str, Any]] = {
    "CLIP ViT-B/32": {"image_size": 224, "batch": 16},
    "small CLIP": {"image_size": 32, "batch": 32, "text_config": TINY, "vision_config": {**TINY, "patch_size": 8}},
    "digits-vqa": {"image_size": 8, "batch": 32},
    "attention-vqa": {"image_size": 16, "batch": 32},
}
ZOO = ("digits-vqa", "attention-vqa")
SAMPLES = (100, 10_000)
RATIO, SMALL_MS, GROWTH = 1.5, 1.0, 0.05
WARMUP = 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=MODELS, help="a model; may be given several times")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to measure each ratio")
    parser.add_argument("--what", choices=("ratio", "memory"), help="measure one of the two alone")
    parser.add_argument("--quantize", nargs=2, metavar=("FOLDER", "SAMPLES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quantize:
        quantize(Path(options.quantize[0]), int(options.quantize[1]))
        return 0
    rows: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))["rows"] if RECORD.exists() else {}
    for name in options.only or MODELS:
        with tempfile.TemporaryDirectory(prefix="compress-collection-") as folder:
            rows[name] = {**rows.get(name, {}), **measured(name, Path(folder), options.what, options.seconds)}
        print(name, json.dumps(rows[name]), flush=True)
    within = all(row.get(what, {}).get("within") is not False for row in rows.values() for what in ("ratio", "memory"))
    from runtimes.machine import machine_facts

    RECORD.write_text(json.dumps({
        "rows": {name: rows[name] for name in MODELS if name in rows}, "within": within,
        "limits": {"ratio": RATIO, "small_ms": SMALL_MS, "growth": GROWTH},
        "versions": {name: version(name) for name in ("torch", "torchao", "transformers", "numpy")},
        "machine": machine_facts(),
    }, indent=1) + "\n", encoding="utf-8")  # fmt: skip
    return 0 if within else 1


def measured(name: str, folder: Path, what: str | None, seconds: float) -> dict[str, Any]:
    model = make(name)
    row: dict[str, Any] = {"parameters": sum(value.numel() for value in model.weights.values())}
    if what != "memory":
        row["ratio"] = slowdown(model, name, seconds)
    if what != "ratio" and name != "CLIP ViT-B/32":
        from calibration import write
        from compress.modelfile import write_model

        write_model(model, folder / "model.pt")
        for count in SAMPLES:
            write(folder / str(count), feeds(name, 512, count))
        del model
        peaks = {str(count): peak(folder, count) for count in SAMPLES}
        least, most = (peaks[str(count)] for count in SAMPLES)
        row["memory"] = {"peak_bytes": peaks, "growth": round(most / least - 1, 4),
                         "within": most <= (1 + GROWTH) * least}  # fmt: skip
    return row


def slowdown(model: Model, name: str, seconds: float) -> dict[str, Any]:
    """Median times in milliseconds of a batch as it is and collected, and the median of the ratios of neighbours."""
    import torch

    from compress.program import program_runner
    from compress.quantize.annotate import find_operators
    from compress.quantize.collect import Collector
    from compress.quantize.fold import fold
    from compress.quantize.prepare import int8_operators
    from compress.quantize.schemes import get_scheme

    batch = MODELS[name]["batch"]
    folded = fold(model).graph
    module = folded.program.module(check_guards=False)
    operators = int8_operators(find_operators(module, (), get_scheme("x86-vnni")))
    collector, plain = Collector(module, operators, folded, name), program_runner(model.graph)
    times: dict[str, list[float]] = {"plain": [], "collected": []}
    end = 0.0
    for count, feed in enumerate(feeds(name, batch, 1 << 40)):
        if count == WARMUP:
            times = {key: [] for key in times}
            end = time.perf_counter() + seconds
        if count > WARMUP + 4 and time.perf_counter() > end:
            break
        collector.samples = range(count * batch, (count + 1) * batch)
        for key, run in (("plain", plain), ("collected", collector)):
            start = time.perf_counter_ns()
            run(feed)
            times[key].append((time.perf_counter_ns() - start) / 1e6)
    values = sum(kept.histogram.count for kept in collector.tensors.values())
    samples = (len(times["plain"]) + WARMUP) * batch
    median = {key: statistics.median(found) for key, found in times.items()}
    ratio = statistics.median(c / p for p, c in zip(times["plain"], times["collected"], strict=True))
    return {
        "batch": batch, "batches": len(times["plain"]), "threads": torch.get_num_threads(),
        "tensors": len(collector.tensors), "values_per_sample": values // samples,
        **{f"{key}_ms": round(value, 2) for key, value in median.items()}, "ratio": round(ratio, 3),
        "within": None if median["plain"] < SMALL_MS * batch else ratio <= RATIO,
    }  # fmt: skip


def peak(folder: Path, count: int) -> int:
    """Peak resident memory in bytes of quantizing with ``count`` samples."""
    command = [sys.executable, __file__, "--quantize", str(folder), str(count)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return 1024 * int(done.stdout.split()[-1])


def quantize(folder: Path, count: int) -> None:
    import compress
    from calibration import open_set

    model = compress.load(folder / "model.pt")
    data = open_set(folder / str(count), model.inputs)
    compress.quantize(model, data, scheme="x86-vnni", config=compress.QuantizeConfig(samples=count))
    # Not ru_maxrss, which a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))


def make(name: str) -> Model:
    import torch

    from compress import Dim, Input
    from compress.saving import export_model

    torch.manual_seed(0)
    example = next(feeds(name, 2, 2))
    if name in ZOO:
        network = import_module(f"compress.zoo.{name.replace('-', '_')}").build().eval()
        text = {"question": Input(modality="text", dims=("batch", Dim("length", 1, 6, 12)))}
        return export_model(network, name=name, example=example, inputs=text)
    text = {"tokens": Input(modality="text", dims=("batch", Dim("length", 1, 16, 77)))}
    return export_model(clip(MODELS[name]), name=name, example=example, inputs=text)


def clip(settings: Mapping[str, Any]) -> Any:
    import torch
    from transformers import CLIPConfig, CLIPModel

    class Towers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            vision = {**settings.get("vision_config", {}), "image_size": settings["image_size"]}
            self.clip = CLIPModel(CLIPConfig(text_config=settings.get("text_config"), vision_config=vision))

        def forward(self, image: torch.Tensor, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
            made = self.clip(pixel_values=image, input_ids=tokens)
            return {"image_embedding": made.image_embeds, "text_embedding": made.text_embeds}

    return Towers().eval()


def feeds(name: str, size: int, count: int) -> Iterator[dict[str, np.ndarray]]:
    """Noise, ``count`` samples of it in feeds of up to ``size``."""
    rng = np.random.default_rng(0)
    side = MODELS[name]["image_size"]
    for start in range(0, count, size):
        number = min(size, count - start)
        if name in ZOO:
            image = rng.random((number, 1, side, side), np.float32)
            yield {"image": image, "question": rng.integers(1, 12, (number, 6))}
        else:
            image = rng.standard_normal((number, 3, side, side), np.float32)
            yield {"image": image, "tokens": rng.integers(3, 49_000, (number, 16))}


if __name__ == "__main__":
    sys.exit(main())
