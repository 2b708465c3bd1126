"""Folders that cannot be used: each is one clear line that names the file, and nothing of theirs runs."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import compress
from compress.huggingface import FAMILIES, folder
from tests.compress.huggingface.folders import bert, change, clip, siglip, vit


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert(tmp_path_factory.mktemp("bert") / "it")


@pytest.fixture
def it(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "it"))


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(compress.CompressError) as caught:
        compress.load(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


def write(name: str, content: str) -> Callable[[Path], object]:
    return lambda path: (path / name).write_text(content)


def settings(name: str, **values: Any) -> Callable[[Path], object]:
    return lambda path: change(path, name, **values)


def remove(*names: str) -> Callable[[Path], object]:
    return lambda path: [(path / name).unlink() for name in names]


@pytest.mark.parametrize(("spoil", "told"), [
    (remove("config.json"), "is a folder: name the model file"),
    (write("config.json", "{"), "config.json cannot be read as JSON"),
    (write("config.json", "[" * 100000), "config.json cannot be read as JSON"),
    (write("config.json", "[]"), "config.json holds a list, expected an object"),
    (settings("config.json", model_type=None), 'config.json has no "model_type"'),
    (settings("config.json", model_type="mamba"), f"model_type 'mamba'; read are {', '.join(FAMILIES)}"),
    (settings("config.json", architectures=["BertForMaskedLM"]),
     "is a BertForMaskedLM: of 'bert' folders those of BertModel, BertForSequenceClassification are read"),
    (settings("config.json", quantization_config={"bits": 4}), "is quantized already"),
    (write("adapter_config.json", "{}"), "holds an adapter: merge it"),
    (settings("config.json", hidden_size="wide"), "config.json is not a BertConfig"),
    (settings("config.json", hidden_size=31), "BertForSequenceClassification cannot be built from its config.json"),
    (settings("config.json", intermediate_size=60),
     "weight 'bert.encoder.layer.0.intermediate.dense.bias' has the shape (64,), but config.json makes it (60,)"),
    (settings("config.json", num_hidden_layers=3), "lacks 'bert.encoder.layer.2.attention"),
    (settings("config.json", num_hidden_layers=1), "has 'bert.encoder.layer.1.attention"),
    (settings("config.json", id2label={"0": "a", "2": "b", "3": "c"}), "id2label does not name the labels 0 to 2"),
    (settings("config.json", vocab_size=20), "ids up to 62, but the embedding has 20 rows"),
    (remove("tokenizer.json", "tokenizer_config.json"), "has no tokenizer: expected tokenizer.json"),
    (write("tokenizer.json", "{}"), "its tokenizer cannot be read"),
    (remove("model.safetensors"), "has no weights: expected model.safetensors or model.safetensors.index.json"),
])  # fmt: skip
def test_a_spoilt_folder(it: Path, spoil: Callable[[Path], object], told: str) -> None:
    spoil(it)
    assert told in refused(it)


def test_a_config_that_is_too_large(it: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "LARGEST_JSON", 100)
    assert "config.json has more than 100 bytes" in refused(it)


def test_a_truncated_checkpoint(it: Path) -> None:
    weights = it / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors is damaged or not safetensors" in refused(it)
    weights.write_bytes(b"\x80\x02")
    assert "model.safetensors is damaged or not safetensors" in refused(it)


def test_a_weight_that_is_not_finite(it: Path) -> None:
    weights = load_file(it / "model.safetensors")
    weights["classifier.bias"] = torch.tensor([0.0, torch.nan, 0.0])
    save_file(weights, it / "model.safetensors", {"format": "pt"})
    assert "'model.classifier.bias' has values that are not finite" in refused(it)


def sharded(it: Path) -> dict[str, str]:
    """Split the checkpoint in two files with an index."""
    weights = load_file(it / "model.safetensors")
    (it / "model.safetensors").unlink()
    names = sorted(weights)
    files = {name: f"model-0000{1 + (at % 2)}-of-00002.safetensors" for at, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: weights[name] for name in names if files[name] == file}, it / file)
    write_index(it, files)
    return files


def write_index(it: Path, files: Any) -> None:
    (it / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def test_shards(it: Path, original: Path) -> None:
    sharded(it)
    model, whole = compress.load(it), compress.load(original)
    assert model.weights.keys() == whole.weights.keys()
    assert all(torch.equal(value, whole.weights[name]) for name, value in model.weights.items())


def test_shards_that_are_elsewhere(it: Path) -> None:
    """The index may come from anybody: what it names must lie beside it."""
    files = sharded(it)
    shutil.copy(it / "model-00001-of-00002.safetensors", it.parent / "outside.safetensors")
    (it / "below").mkdir()
    shutil.copy(it / "model-00001-of-00002.safetensors", it / "below" / "a.safetensors")
    name = min(files)
    for path in ("../outside.safetensors", str(it.parent / "outside.safetensors"), "a/../../outside.safetensors", ""):
        write_index(it, {**files, name: path})
        assert "which is not a plain path inside the folder" in refused(it)
    write_index(it, {**files, name: "below/a.safetensors"})
    assert "names 'below/a.safetensors': expected a .safetensors file beside it" in refused(it)
    write_index(it, {**files, name: "config.json"})
    assert "names 'config.json': expected a .safetensors file beside it" in refused(it)
    write_index(it, {key: file.replace("00001-of", "00000-of") for key, file in files.items()})
    assert "names 'model-00000-of-00002.safetensors', which the folder lacks" in refused(it)
    write_index(it, {key: file for key, file in files.items() if key != name})
    assert f"disagree about the weight {name!r}" in refused(it)
    write_index(it, {**files, name: 3})
    assert 'has no "weight_map"' in refused(it)


class Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("ran"),)


def test_pickles(it: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Refused; and where one is trusted, still no more than tensors is read from it."""
    monkeypatch.chdir(tmp_path)
    weights = load_file(it / "model.safetensors")
    (it / "model.safetensors").unlink()
    torch.save({"x": Evil()}, it / "pytorch_model.bin")
    assert "pytorch_model.bin is a pickle" in refused(it)
    assert "is no state dict of tensors" in refused(it, trust_pickle=True)
    assert not (tmp_path / "ran").exists()
    torch.save(weights, it / "pytorch_model.bin")
    assert "pass --trust-pickle" in refused(it)
    assert "model.classifier.bias" in compress.load(it, trust_pickle=True).weights


def test_code_beside_the_config_is_not_run(it: Path, tmp_path: Path) -> None:
    """A folder of a known kind may name code of its own: it is read as its kind, as if it did not."""
    ran = tmp_path / "ran"
    (it / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil: pass\n")
    for file in ("config.json", "tokenizer_config.json"):
        readers = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification", "AutoTokenizer", "AutoProcessor")
        change(it, file, auto_map=dict.fromkeys(readers, "evil.Evil"))
    change(it, "config.json", _attn_implementation="somebody/kernels", transformers_weights="evil.py")
    change(it, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})
    assert compress.load(it).labels == {"logits": ("no", "yes", "so so")}
    assert not ran.exists()


def test_missing_processors(tmp_path: Path) -> None:
    images = vit(tmp_path / "vit")
    for path in images.glob("*process*"):
        path.unlink()
    assert "has no image processor: expected preprocessor_config.json" in refused(images)
    pairs = clip(tmp_path / "clip")
    for path in pairs.glob("*process*"):
        path.unlink()
    assert "has no image processor" in refused(pairs)
    texts = siglip(tmp_path / "siglip")
    (texts / "tokenizer.json").unlink()
    assert "has no tokenizer.json: a spiece.model alone is not read" in refused(texts)


def test_without_the_library(it: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    assert 'pip install "compress-edge[hf]"' in refused(it)


def test_nothing_is_fetched(it: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where a file that could be elsewhere is missing, and the config names a model of the hub."""
    tried: list[Any] = []

    def connect(self: socket.socket, address: Any) -> None:
        tried.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **_: connect(socket.socket(), address))
    change(it, "config.json", _name_or_path="google-bert/bert-base-uncased")
    (it / "tokenizer_config.json").unlink()
    assert compress.load(it).labels == {"logits": ("no", "yes", "so so")}
    images = vit(it.parent / "vit")
    change(images, "config.json", transformers_version="4.30.0")
    assert compress.load(images).labels == {"logits": ("cat", "dog", "fish")}
    assert tried == []
