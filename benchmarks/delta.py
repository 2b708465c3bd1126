"""How small the update between two versions of a bundle is, and how long it takes to make and to apply.

    python benchmarks/delta.py [--seconds 60] [--output benchmarks/results/delta.json]

The network is the demo's, of its full size, trained for ``--seconds``. Two updates of its int8 bundle, which holds the
OpenVINO and the ONNX Runtime engine: one to the same network calibrated on the other half of the calibration samples,
one to the network after an epoch of quantization-aware distillation, which changes every weight. Each is given as a
share of the new bundle and of the new bundle in a tar file compressed by zstd at level 19. Sizes are exact; the times
are single runs. Exit code 1 if the recalibrated one is more than 30 % of its bundle.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import zstandard

sys.path.insert(0, str(Path(__file__).parents[1]))

import calibration
import compress
from compress.delta import make_delta
from compress.model import Model
from compress.targets import targets
from compress.versions import versions
from compress.zoo.demo import FACTORY, FULL, make_demo, train_from_scratch
from runtimes.bundle import Bundle
from runtimes.delta import apply_delta
from runtimes.hashing import tree_digest
from runtimes.machine import machine_facts

TARGETS = ("openvino-cpu", "onnxruntime-cpu")
LIMIT = 0.30
REPETITIONS = 3         # of applying


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to train the network")
    parser.add_argument("--output", type=Path, help="write the record there too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), options.seconds)
    record = {
        "format": "compress.benchmark.delta", "version": 1, "rows": rows, "limit": LIMIT, "targets": TARGETS,
        "trained_s": options.seconds, "machine": machine_facts(),
        "versions": {**versions(), "zstandard": zstandard.__version__},
    }  # fmt: skip
    text = json.dumps(record, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")
    return 0 if rows[0]["share_of_bundle"] <= LIMIT else 1


def measure(folder: Path, seconds: float) -> list[dict[str, Any]]:
    """Rows for the two updates of one bundle."""
    make_demo(folder / "demo", quick=True)      # for its data
    network = train_from_scratch(FULL.network, seconds=seconds)
    small = compress.load(folder / "demo/model.pt")
    model = compress.save(
        network, folder / "model.pt", name="digits-vqa", factory=FACTORY, factory_kwargs=FULL.network,
        example=small.example, labels=small.labels,
        inputs={spec.name: compress.Input(modality=spec.modality, dims=tuple(
            None if isinstance(size, int) else size for size in spec.shape)) for spec in small.inputs},
    )  # fmt: skip
    halves = split(folder / "demo/calibration", folder, model)
    scheme = targets()[TARGETS[0]].scheme
    first, second = (compress.quantize(model, half, scheme=scheme).model for half in halves)
    train = calibration.open_set(folder / "demo/train", model.inputs)
    learned = compress.distill(first, model, train, config=compress.DistillConfig(epochs=1)).model
    old = write(first, halves[0], folder, "old")
    return [
        row("recalibrated on the other half of the samples", old, write(second, halves[0], folder, "second")),
        row("an epoch of quantization-aware distillation", old, write(learned, halves[0], folder, "learned")),
    ]


def split(samples: Path, folder: Path, model: Model) -> list[calibration.CalibrationSet]:
    """The two halves of a calibration set."""
    whole = calibration.open_set(samples, model.inputs)
    arrays = whole.first(len(whole))
    half = len(whole) // 2
    for name, part in (("a", slice(0, half)), ("b", slice(half, None))):
        calibration.write(folder / name, {key: value[part] for key, value in arrays.items()})
    return [calibration.open_set(folder / name, model.inputs) for name in ("a", "b")]


def write(model: Model, data: calibration.CalibrationSet, folder: Path, name: str) -> Bundle:
    engines = {target: compress.export(model, targets()[target], folder / f"{name}-{target}") for target in TARGETS}
    return compress.bundle(model, engines, data.first(4), folder / f"{name}.bundle")


def row(name: str, old: Bundle, new: Bundle) -> dict[str, Any]:
    """Make the delta, apply it, compare."""
    file = new.path.with_suffix(".delta")
    started = time.perf_counter()
    made = make_delta(old.path, new.path, file)
    make_s = time.perf_counter() - started
    apply_s = []
    for number in range(REPETITIONS):
        into = new.path.with_suffix(f".{number}")
        started = time.perf_counter()
        apply_delta(old.path, file, into)
        apply_s.append(time.perf_counter() - started)
        assert tree_digest(into) == tree_digest(new.path)
    packed = compressed_size(new.path)
    return {
        "update": name, "delta_bytes": made.size_bytes, "bundle_bytes": made.bundle_bytes,
        "compressed_bundle_bytes": packed, "share_of_bundle": round(made.size_bytes / made.bundle_bytes, 4),
        "share_of_compressed_bundle": round(made.size_bytes / packed, 4), "make_s": round(make_s, 2),
        "apply_s": round(min(apply_s), 3),
        "payload_bytes": {path: size for path, size in made.files.items() if size},
    }  # fmt: skip


def compressed_size(folder: Path) -> int:
    """The folder as a tar file, compressed: what an update without the old version would take."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        archive.add(folder, arcname=".")
    return len(zstandard.ZstdCompressor(level=19).compress(data.getvalue()))


if __name__ == "__main__":
    sys.exit(main())
