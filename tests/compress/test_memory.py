"""What loading, quantizing and exporting take of memory, beside the size of the model: each step once, in a process.

The step is first done on a small network, so that imports and whatever a backend keeps are there before.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import calibration
import compress
from compress.modelfile import write_model
from compress.quantize import QuantizeConfig, quantize

LIMIT, ALLOWANCE_MB = 3.0, 40      # times the size of the weights, and of what does not grow with it
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the kernel does not say what a process takes"),
]

STEP = """
import sys
from pathlib import Path
import calibration, compress
from compress.modelfile import write_model
from compress.targets import targets

def step(folder):
    model = compress.load(folder / sys.argv[3])
    if sys.argv[4] == "quantize":
        data = calibration.open_set(folder / "samples", model.inputs)
        write_model(compress.quantize(model, data, scheme="x86-vnni").model, folder / "again.pt")
    elif sys.argv[4] != "load":
        compress.export(model, targets()[sys.argv[4]], folder / (sys.argv[3] + sys.argv[4]))

def kilobytes(what):
    return next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(what))

step(Path(sys.argv[1]))
before = kilobytes("VmRSS")
step(Path(sys.argv[2]))
print(kilobytes("VmHWM") - before)
"""


class Texts(nn.Module):
    """An embedding, a quarter of the weights, and layers."""

    def __init__(self, width: int, words: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.layers = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layers(self.embed(tokens))).mean(dim=1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small and a large model of 84 MB, in float and quantized, with their samples."""
    made = []
    tokens = np.random.default_rng(0).integers(0, 16, (4, 8))
    for width, words, layers in ((16, 16, 2), (1024, 5 * 1024, 15)):
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp(f"width{width}")
        calibration.write(folder / "samples", {"tokens": tokens})
        model = compress.save(Texts(width, words, layers).eval(), folder / "float.pt", example={"tokens": tokens[:2]})
        data = calibration.open_set(folder / "samples", model.inputs)
        write_model(quantize(model, data, scheme="x86-vnni", config=QuantizeConfig()).model, folder / "int8.pt")
        made.append(folder)
    return made[0], made[1]


@pytest.mark.parametrize(("step", "model"), [
    ("load", "float.pt"), ("quantize", "float.pt"), ("openvino-cpu", "float.pt"), ("openvino-cpu", "int8.pt"),
    ("onnxruntime-cpu", "float.pt"), ("onnxruntime-cpu", "int8.pt"),
])  # fmt: skip
def test_a_step_takes_less_than_thrice_the_models_size(folders: tuple[Path, Path], step: str, model: str) -> None:
    command = [sys.executable, "-c", STEP, *map(str, folders), model, step]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    size_mb = (folders[1] / "float.pt").stat().st_size / 1e6
    assert size_mb > 80
    growth_mb = int(done.stdout) / 1e3
    assert growth_mb < LIMIT * size_mb + ALLOWANCE_MB, f"{step} {model}: {growth_mb:.0f} MB of {size_mb:.0f}"
    print(f"{step} {model}: {growth_mb / size_mb:.2f} times")
