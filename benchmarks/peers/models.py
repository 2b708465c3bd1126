"""The models of the comparison, and what each quantizer is given of one.

    python -m benchmarks.peers.models NAME FOLDER TRAINED

Trained are the reference models of ``compress.zoo``, and the dual encoder with uneven channels. For their speed alone
there are, with random weights, a CLIP ViT-B/32 and a Whisper of the base size as transformers builds them, and a
MobileNetV2 beside a small text tower. In the folder of a case there is its model file, and of every graph the fp32 ONNX
and the feeds it sees in the float chain on the calibration samples: what this project is given are the model file and
the samples, the peers get ONNX and feeds.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peers.uneven import UNEVEN
from compress.zoo import MODELS

if TYPE_CHECKING:
    import numpy as np
    import torch

    from compress.model import Model

SAMPLES = 300
RANDOM = {"clip-b32": 300, "whisper-base": 32, "mobilenet-text": 300}     # name -> calibration samples
CASES = (*MODELS, UNEVEN.name, *RANDOM)


def prepare(name: str, folder: Path, trained: Path) -> None:
    """Write ``case.json`` and what it names into ``folder``, where it is not there yet.

    Args:
        trained: where the reference models are, or are made if they are not: a folder of ``compress demo`` each.
    """
    if (folder / "case.json").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    case = _random(name, folder) if name in RANDOM else _trained(name, trained / name)
    case["graphs"], case["timed"] = _graphs(Path(case["model"]), Path(case["calibration"]), case["samples"], folder)
    case["folder"] = str(folder)
    (folder / "case.json").write_text(json.dumps(case, indent=1), encoding="utf-8")


def _trained(name: str, source: Path) -> dict[str, Any]:
    import yaml

    from calibration import open_set
    from compress import load
    from compress.zoo import make
    from compress.zoo.reference import make_reference

    if name == UNEVEN.name:
        make_reference(UNEVEN, source)
    else:
        make(name, source)
    recipe = yaml.safe_load((source / "recipe.yaml").read_text(encoding="utf-8"))
    data = open_set(source / "calibration", load(source / "model.pt").inputs)
    return {
        "name": name, "model": str((source / "model.pt").resolve()), "samples": min(SAMPLES, len(data)),
        **{key: str((source / key).resolve()) for key in ("calibration", "validation")}, "metric": recipe["metric"],
    }  # fmt: skip


def _random(name: str, folder: Path) -> dict[str, Any]:
    from compress.modelfile import write_model

    builders: Mapping[str, Callable[[Path], Model]] = {
        "clip-b32": clip, "whisper-base": whisper, "mobilenet-text": mobilenet_text,
    }  # fmt: skip
    model = builders[name](folder)
    write_model(model, folder / "model.pt")
    return {"name": name, "model": str(folder / "model.pt"), "samples": RANDOM[name],
            "calibration": str(folder / "calibration"), "validation": None, "metric": None}  # fmt: skip


def _graphs(
    file: Path, calibration: Path, samples: int, folder: Path
) -> tuple[dict[str, dict[str, str]], list[dict[str, Any]]]:
    """Graph -> its ONNX and feeds; and the feeds that are timed, with how often each is run in a pass of the chain.

    Of a graph that is run often, a decoder, the feeds are its first, one of the middle and the last of each sample;
    timed are the first and the middle one, which stands for all behind the first.
    """
    import numpy as np

    from calibration import open_set
    from compress import load
    from compress.export import export_onnx, only
    from compress.steps import graph_feeds, watch
    from compress.targets import get_target

    model, target = load(file), get_target("openvino-cpu")
    graphs = {name: {"onnx": str(folder / name / "model.onnx"), "feeds": str(folder / name / "feeds")}
              for name in model.graphs}  # fmt: skip
    for name, graph in graphs.items():
        Path(graph["feeds"]).mkdir(parents=True)
        export_onnx(only(model, name), target, Path(graph["onnx"]))
    data = open_set(calibration, model.inputs).take(samples)
    seen: dict[str, list[Any]] = {}
    for sample, feed in enumerate(data.batches(1)):
        seen = graph_feeds(model, feed)
        for name, feeds in seen.items():
            for number, given in enumerate(feeds):
                np.savez(Path(graphs[name]["feeds"]) / f"{sample:05}-{number}.npz", **given)
    runs = dict.fromkeys(model.graphs, 1)
    if model.chain is not None:
        watch(model, feed, lambda graph, run, _: runs.update({graph: run + 1}))
    timed = []
    for name, feeds in seen.items():
        at = Path(graphs[name]["feeds"]) / f"{samples - 1:05}"
        timed.append({"graph": name, "file": f"{at}-0.npz", "times": 1})
        if len(feeds) > 1:
            timed.append({"graph": name, "file": f"{at}-1.npz", "times": runs[name] - 1})
    return graphs, timed


# --- random weights ---------------------------------------------------------------------------------------------------


def _samples(folder: Path, **arrays: np.ndarray) -> None:
    from calibration import write

    write(folder / "calibration", arrays)


def clip(folder: Path, samples: int = RANDOM["clip-b32"]) -> Model:
    """ViT-B/32 with pictures of 224x224 and texts of 77 tokens, a graph for each tower."""
    import numpy as np
    import torch
    from transformers import CLIPConfig, CLIPModel

    from compress.model import Graph
    from compress.saving import export_model

    class Towers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.clip = CLIPModel(CLIPConfig())

        def see(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"image_embeds": self.clip.visual_projection(self.clip.vision_model(image).pooler_output)}

        def read(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"text_embeds": self.clip.text_projection(self.clip.text_model(tokens).pooler_output)}

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    image = rng.standard_normal((samples, 3, 224, 224), dtype=np.float32)
    tokens = rng.integers(3, 49000, (len(image), 77))
    _samples(folder, image=image, tokens=tokens)
    graphs = {"image": Graph("see", inputs=("image",)), "text": Graph("read", inputs=("tokens",))}
    return export_model(Towers().eval(), name="clip-b32", example={"image": image[:2], "tokens": tokens[:2]},
                        graphs=graphs)  # fmt: skip


def whisper(folder: Path) -> Model:
    """The base size: encoder and a decoder with its cache, as a Hugging Face folder is read; 100 tokens a sound."""
    from benchmarks.whisper import RATE, speech, write_folder
    from compress import load
    from compress.data import make_data

    model = load(write_folder(folder / "folder"))
    sounds = [{"audio": {"array": speech(seed), "sampling_rate": RATE}} for seed in range(RANDOM["whisper-base"])]
    make_data(sounds, model, folder / "calibration")
    return model


def mobilenet_text(folder: Path) -> Model:
    """MobileNetV2 of width 1 on pictures of 224x224, and four transformer layers of width 256 on 32 tokens."""
    import numpy as np
    import torch

    from compress.model import Graph
    from compress.saving import export_model

    words, length, width = 8000, 32, 256

    class Towers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image_encoder = mobilenet_v2(width)
            self.table = torch.nn.Embedding(words, width)
            self.position = torch.nn.Parameter(torch.randn(length, width) * 0.02)
            layer = torch.nn.TransformerEncoderLayer(width, 4, 4 * width, activation="gelu", batch_first=True,
                                                     norm_first=True)  # fmt: skip
            self.text_encoder = torch.nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)

        def see(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"image_embeds": self.image_encoder(image)}

        def read(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"text_embeds": self.text_encoder(self.table(tokens) + self.position).mean(1)}

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    image = rng.standard_normal((RANDOM["mobilenet-text"], 3, 224, 224), dtype=np.float32)
    tokens = rng.integers(0, words, (len(image), length))
    _samples(folder, image=image, tokens=tokens)
    graphs = {"image": Graph("see", inputs=("image",)), "text": Graph("read", inputs=("tokens",))}
    return export_model(Towers().eval(), name="mobilenet-text", example={"image": image[:2], "tokens": tokens[:2]},
                        graphs=graphs)  # fmt: skip


def mobilenet_v2(embedding: int) -> torch.nn.Module:
    """Table 2 of Sandler et al. 2018, arXiv:1801.04381: expansion, channels, repetitions and stride of each stage."""
    from torch import nn

    def convolution(given: int, made: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
        return [nn.Conv2d(given, made, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(made)]

    class Inverted(nn.Module):
        def __init__(self, given: int, made: int, stride: int, factor: int) -> None:
            super().__init__()
            inside = given * factor
            widened = [*convolution(given, inside, 1), nn.ReLU6()] if factor > 1 else []
            self.layers = nn.Sequential(
                *widened, *convolution(inside, inside, 3, stride, inside), nn.ReLU6(), *convolution(inside, made, 1))
            self.added = stride == 1 and given == made

        def forward(self, seen: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = self.layers(seen)
            return seen + made if self.added else made

    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    layers, channels = [*convolution(3, 32, 3, 2), nn.ReLU6()], 32
    for factor, made, repetitions, stride in stages:
        for number in range(repetitions):
            layers.append(Inverted(channels, made, stride if number == 0 else 1, factor))
            channels = made
    layers += [*convolution(channels, 1280, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(1280, embedding))


if __name__ == "__main__":
    prepare(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
