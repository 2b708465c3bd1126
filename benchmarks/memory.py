"""What each step on a 600 MB model needs of memory, as a multiple of the model's size: JSON on standard output.

    python benchmarks/memory.py [--folder FOLDER] [--only STEP]... > benchmarks/results/memory.json

The model is a CLIP ViT-B/32 of transformers with random weights (151 million parameters in float32, a sixth of them
one embedding), both towers in one graph. It and eight calibration samples are written to FOLDER once; what they take is
measured as a step too, beside a module that is in memory already. Each step is the command a user gives, in a process
of its own: its peak is what the kernel counted (``ru_maxrss``: anonymous memory and the file pages that are mapped).
``base_bytes`` is the peak of the same step on the same network with 0.1 million parameters: what imports and the
backend take before any weight is there. ``peak`` and ``growth`` are multiples of the model's size, with and without
that. Limit: a peak of 3 times the size, imports included. Exit code 1 beyond it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

LIMIT = 3.0     # times the size of the weights, for loading, exporting and quantizing
TARGETS = ("openvino-cpu", "onnxruntime-cpu")
SMALL = {
    "text_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
                    "vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2},
    "vision_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2},
    "projection_dim": 16,
}  # fmt: skip
LOAD = "import sys, compress; compress.load(sys.argv[1])"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the models are kept; default: a temporary folder")
    parser.add_argument("--only", action="append", help="a step to measure; may be given several times")
    parser.add_argument("--write", nargs=2, metavar=("SIZE", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write_model(options.write[0], Path(options.write[1]))
        return 0
    with tempfile.TemporaryDirectory(prefix="compress-memory-") as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = measure(folder, options.only)
    size = rows.pop("size_bytes")
    for row in rows["steps"]:
        row["peak"] = round(row["peak_bytes"] / size, 2)
        row["growth"] = round((row["peak_bytes"] - row["base_bytes"]) / size, 2)
    within = all(row["peak"] < LIMIT for row in rows["steps"] if row["step"] != "save")
    print(json.dumps({
        "model": "CLIP ViT-B/32, random weights, float32", "size_bytes": size, **rows, "limit": LIMIT, "within": within,
        "versions": {name: version(name) for name in ("torch", "torchao", "onnx", "openvino", "onnxruntime")},
        "machine": facts(),
    }, indent=1))  # fmt: skip
    return 0 if within else 1


def measure(folder: Path, only: list[str] | None) -> dict[str, Any]:
    """The peak of every step on the large and on the small network."""
    peaks: dict[str, dict[str, Any]] = {}
    for kind in ("small", "large"):
        for step, command in steps(folder, kind).items():
            made = Path(command[-1])
            needed = step in ("save", "quantize") and not made.exists()
            if only and step not in only and not needed:
                continue
            if made.is_dir():
                shutil.rmtree(made)
            peak, seconds = run(command)
            row = peaks.setdefault(step, {"step": step})
            row |= {"base_bytes": peak} if kind == "small" else {"peak_bytes": peak, "seconds": round(seconds, 1)}
    return {"size_bytes": (folder / "large.pt").stat().st_size, "steps": list(peaks.values())}


def steps(folder: Path, kind: str) -> dict[str, list[str]]:
    """Step -> its command line; the last argument is what it writes, or what it reads where it writes nothing."""
    compress, model, int8 = ["-m", "compress"], f"{folder}/{kind}.pt", f"{folder}/{kind}.int8.pt"
    found = {
        "save": [__file__, "--write", kind, model],
        "load": ["-c", LOAD, model],
        "quantize": [*compress, "quantize", model, "--calibration", f"{folder}/{kind}.samples", "--target",
                     TARGETS[0], "--quiet", "--output", int8],
    }  # fmt: skip
    for target in TARGETS:
        for precision, file in (("fp32", model), ("int8", int8)):
            found[f"export {target} {precision}"] = [
                *compress, "export", file, "--target", target, "--quiet", "--output",
                f"{folder}/{kind}.{target}.{precision}",
            ]  # fmt: skip
    return found


def run(command: list[str]) -> tuple[int, float]:
    """Peak resident memory in bytes and wall time in seconds of ``python command``."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=told, stderr=told)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        told.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)}\n{told.read().decode()}")
    return usage.ru_maxrss * 1024, time.perf_counter() - start


def write_model(size: str, path: Path) -> None:
    """Write the model file ``path`` and, beside it, its calibration samples."""
    import numpy as np
    import torch
    from transformers import CLIPConfig, CLIPModel

    import calibration
    import compress
    from compress import Dim, Input

    class Towers(torch.nn.Module):
        def __init__(self, config: CLIPConfig) -> None:
            super().__init__()
            self.clip = CLIPModel(config)

        def forward(self, image: torch.Tensor, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
            made = self.clip(pixel_values=image, input_ids=tokens)
            return {"image_embedding": made.image_embeds, "text_embedding": made.text_embeds}

    torch.manual_seed(0)
    model = Towers(CLIPConfig(**(SMALL if size == "small" else {}))).eval()
    rng = np.random.default_rng(0)
    image = rng.standard_normal((8, 3, 224, 224), dtype=np.float32)
    tokens = rng.integers(3, 99, (8, 16))
    shutil.rmtree(path.with_suffix(".samples"), ignore_errors=True)
    calibration.write(path.with_suffix(".samples"), {"image": image, "tokens": tokens})
    compress.save(
        model, path, example={"image": image[:2], "tokens": tokens[:2]},
        inputs={"tokens": Input(modality="text", dims=("batch", Dim("length", 1, 16, 77)))},
        components={"image": "clip.vision_model", "text": "clip.text_model"},
    )  # fmt: skip


def facts() -> dict[str, Any]:
    from runtimes.machine import machine_facts

    return machine_facts()


if __name__ == "__main__":
    sys.exit(main())
