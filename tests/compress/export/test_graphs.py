"""Models of several graphs: saved by the user, exported graph by graph, bundled, and run as a chain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import runtimes
from compress import bundle
from compress.cli import cli
from compress.errors import CompressError
from compress.export import export
from compress.golden import read_chain
from compress.loading import load
from compress.model import Graph, Input, Model
from compress.modelfile import write_model
from compress.saving import save
from compress.targets import targets
from runtimes.errors import RuntimesError
from runtimes.spec import Dim

WORDS, WIDTH = 20, 16
STOP, STEPS = 0, 8
BATCH = Dim("batch", 1, 2, 4)


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vision = nn.Linear(12, 8)
        self.table = nn.Embedding(WORDS, 8)

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.vision(image), dim=-1)

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.table(tokens).mean(1), dim=-1)

    def forward(self, image: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return self.encode_image(image) @ self.encode_text(tokens).T


class Captioner(nn.Module):
    """An encoder, and one layer of attention over its own past that puts out one more token."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, WIDTH)
        self.table = nn.Embedding(WORDS, WIDTH)
        self.key, self.query, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, WORDS)

    def encode(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"memory": torch.tanh(self.encoder(image))}

    def step(
        self, ids: torch.Tensor, memory: torch.Tensor, past_key: torch.Tensor, past_value: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        embedded = self.table(ids) + memory[:, None]
        key = torch.cat([past_key, self.key(embedded)], dim=1)
        value = torch.cat([past_value, self.value(embedded)], dim=1)
        weights = (self.query(embedded) @ key.transpose(1, 2) / WIDTH**0.5).softmax(-1)
        return {"logits": self.head(weights @ value + embedded), "key": key, "value": value}

    def generate(self, image: torch.Tensor) -> list[list[int]]:
        """Without a cache: the whole past is computed anew for each token, one sample at a time."""
        rows = []
        for sample in image:
            memory, ids, row = torch.tanh(self.encoder(sample[None])), [1], []
            while len(row) < STEPS and STOP not in row:
                embedded = self.table(torch.tensor([ids])) + memory[:, None]
                asked = self.query(embedded[:, -1:]) @ self.key(embedded).transpose(1, 2) / WIDTH**0.5
                found = asked.softmax(-1) @ self.value(embedded) + embedded[:, -1:]
                row.append(int(self.head(found)[0, -1].argmax()))
                ids.append(row[-1])
            rows.append(row)
        return rows


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Model:
    torch.manual_seed(0)
    example = {"image": torch.randn(2, 12), "tokens": torch.randint(0, WORDS, (2, 5))}
    graphs = {"image": Graph("encode_image", ("image",)), "text": Graph("encode_text", ("tokens",))}
    path = tmp_path_factory.mktemp("towers") / "model.pt"
    save(Towers(), path, example=example, graphs=graphs, inputs={"image": Input(modality="image", dims=(BATCH,))})
    return load(path)


def build(model: Model, names: list[str], folder: Path, chain: dict[str, Any] | None = None) -> runtimes.Bundle:
    """What `compress bundle create` does: each graph for each target, and a golden feed from the model's example."""
    engines = {
        graph: {name: export(model, targets()[name], folder / graph / name, graph=graph) for name in names}
        for graph in model.graphs
    }
    golden = {
        graph: {spec.name: model.example[spec.name] for spec in program.inputs}
        for graph, program in model.graphs.items()
    }
    return bundle(model, engines, golden, folder / "bundle", chain=chain)


@pytest.mark.parametrize("target", ["openvino-cpu", "onnxruntime-cpu"])
def test_a_dual_encoder(target: str, towers: Model, tmp_path: Path) -> None:
    made = build(towers, [target], tmp_path)
    module = Towers()
    module.load_state_dict(dict(towers.weights))
    image, tokens = np.random.default_rng(0).normal(size=(3, 12)).astype(np.float32), np.array([[1, 2, 3, 4, 5]])
    with runtimes.load(made, threads=1, self_test=True) as chain:
        outputs = chain.run({"image": image, "tokens": tokens})     # three images, one text
    with torch.no_grad():
        seen, read = module.encode_image(torch.from_numpy(image)), module.encode_text(torch.from_numpy(tokens))
    np.testing.assert_allclose(outputs["image.output"], seen.numpy(), atol=1e-5)
    np.testing.assert_allclose(outputs["text.output"], read.numpy(), atol=1e-5)


def create(folder: Path, *arguments: str) -> Path:
    """What a user types, for ONNX Runtime."""
    command = ["bundle", "create", str(folder / "model.pt"), "--target", "onnxruntime-cpu", "--quiet", *arguments]
    done = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return folder / "model.bundle"


def test_the_command_with_data_for_every_graph(towers: Model, tmp_path: Path) -> None:
    write_model(towers, tmp_path / "model.pt")
    rng = np.random.default_rng(0)
    image, tokens = rng.normal(size=(6, 12)).astype(np.float32), rng.integers(0, WORDS, (6, 5))
    np.savez(tmp_path / "data.npz", image=image, tokens=tokens)
    made = runtimes.read_bundle(create(tmp_path, "--data", str(tmp_path / "data.npz")))
    np.testing.assert_array_equal(made.read_arrays(made.graphs["image"].golden.feed)["image"], image[:4])
    np.testing.assert_array_equal(made.read_arrays(made.graphs["text"].golden.feed)["tokens"], tokens[:4])
    with runtimes.load(made, threads=1, self_test=True) as chain:
        assert set(chain.run({"image": image[:3], "tokens": tokens[:1]})) == {"image.output", "text.output"}


@pytest.mark.parametrize(("text", "message"), [
    ("{", r"chain\.json is not a chain"), ("[]", r"chain\.json must be an object")])
def test_a_file_that_is_no_chain(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "chain.json").write_text(text)
    with pytest.raises((CompressError, RuntimesError), match=message):
        read_chain(tmp_path / "chain.json")


def test_an_encoder_and_a_decoder_with_its_cache(tmp_path: Path) -> None:
    torch.manual_seed(21)     # rows that stop after eight, three and two tokens
    module = Captioner().eval()
    image = torch.randn(3, 6)
    with torch.no_grad():
        expected = module.generate(image)
    assert [len(row) for row in expected] == [8, 3, 2]
    past = Input(dims=(BATCH, Dim("past", 0, 3, 32)))
    example = {
        "image": image, "ids": torch.randint(0, WORDS, (3, 2)), "memory": torch.randn(3, WIDTH),
        "past_key": torch.randn(3, 3, WIDTH), "past_value": torch.randn(3, 3, WIDTH),
    }
    save(
        module, tmp_path / "model.pt", example=example,
        inputs={"image": Input(dims=(BATCH,)), "memory": Input(dims=(BATCH,)), "past_key": past, "past_value": past,
                "ids": Input(dims=(BATCH, Dim("length", 1, 2, 8)))},
        graphs={"encoder": Graph("encode", ("image",)),
                "decoder": Graph("step", ("ids", "memory", "past_key", "past_value"))})
    loop = {"token": "ids", "logits": "logits", "start": [1], "stop": [STOP], "max_steps": STEPS, "pick": "argmax",
            "state": {"past_key": {"from": "key"}, "past_value": {"from": "value"}}}
    chain = {"inputs": ["image"],
             "steps": [{"graph": "encoder", "inputs": {"image": "image"}},
                       {"graph": "decoder", "inputs": {"memory": "encoder.memory"}, "loop": loop}],
             "outputs": {"caption": "decoder.tokens"}}
    names = ["openvino-cpu", "onnxruntime-cpu"]
    made = build(load(tmp_path / "model.pt"), names, tmp_path / "by hand", chain)
    longest = max(map(len, expected))
    for name in names:
        with runtimes.load(made, target=name, threads=1, self_test=True) as opened:
            tokens = opened.run({"image": image.numpy()})["caption"]
        np.testing.assert_array_equal(tokens, [row + [STOP] * (longest - len(row)) for row in expected])

    np.savez(tmp_path / "data.npz", image=image.numpy())    # none for the decoder, whose golden feed is the example
    (tmp_path / "chain.json").write_text(json.dumps(chain))
    path = create(tmp_path, "--data", str(tmp_path / "data.npz"), "--chain", str(tmp_path / "chain.json"))
    with runtimes.load(path, threads=1, self_test=True) as opened:
        np.testing.assert_array_equal(opened.run({"image": image.numpy()})["caption"], tokens)


@pytest.mark.parametrize(("graph", "message"), [
    (None, r"has the graphs \['image', 'text'\]: name one with graph="), ("sound", "there is no 'sound'")])
def test_a_graph_must_be_named(graph: str | None, message: str, towers: Model, tmp_path: Path) -> None:
    with pytest.raises(CompressError, match=message):
        export(towers, targets()["onnxruntime-cpu"], tmp_path / "engine", graph=graph)
