"""The model file: what is saved comes back whole, the same model gives the same bytes, and bad ones are refused."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from compress import CompressError, Dim, Graph, Input, Model, load, save
from compress.factory import build_module
from compress.model import Factory, Quantization
from compress.modelfile import read_members, read_model, write_model
from compress.program import run_program
from runtimes.hashing import bytes_digest, json_digest

pytestmark = pytest.mark.filterwarnings("ignore:The given buffer is not writable")

NETWORKS = '''
import torch
from torch import nn

class Output(dict):
    """Like Hugging Face's ModelOutput: a dict with attributes."""
    __getattr__ = dict.__getitem__

class Pair(nn.Module):
    """An image of 4 numbers and a text of token ids; everything a file must carry."""
    def __init__(self, width=4):
        super().__init__()
        self.vision = nn.Linear(4, width)
        self.text = nn.Embedding(8, width)
        self.decoder = nn.Linear(width, 8, bias=False)
        self.decoder.weight = self.text.weight
        self.register_buffer("scale", torch.full((width,), 2.0))
        self.register_buffer("mask", torch.full((9, 9), float("-inf")).triu(1), persistent=False)
        self.register_buffer("first", self.scale[:2])

    def forward(self, image, tokens, keep):
        length = tokens.shape[1]
        words = self.text(tokens) * self.scale
        weights = (words @ words.transpose(1, 2) + self.mask[:length, :length]).softmax(-1)
        mixed = (weights @ words * keep[..., None]).sum(1) + self.vision(image) + torch.tensor([1.0, 2.0, 3.0, 4.0])
        return Output(logits=self.decoder(mixed) + self.first.sum(), answer=self.decoder(mixed).argmax(-1))

    def encode_image(self, image):
        return self.vision(image) + torch.tensor([1.0, 1.0, 1.0, 1.0])

    def encode_text(self, tokens):
        return self.text(tokens).mean(1) + torch.tensor([5.0, 5.0, 5.0, 5.0])

def build(width=4):
    return Pair(width)

def other():
    return nn.Linear(4, 4)

def shifted():
    class Shifted(Pair):
        def forward(self, image, tokens, keep):
            result = super().forward(image, tokens, keep)
            return Output(logits=result.logits + 1, answer=result.answer)
    return Shifted()

def part():
    whole = Pair()
    del whole.vision
    return whole

def broken():
    raise KeyError("no such checkpoint")

def number():
    return 3
'''
FEED = {
    "image": np.arange(4, dtype=np.float32)[None] / 4,
    "tokens": np.array([[1, 2, 3]], np.int64),
    "keep": np.array([[True, True, False]]),
}
INPUTS = {
    "image": Input(modality="sensor"),
    "tokens": Input(modality="text", dims=("batch", Dim("length", 2, 3, 8))),
    "keep": Input(modality="text", dims=("batch", "length")),
}
LABELS = {"logits": tuple("abcdefgh")}


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A module of the user's, importable as ``user_networks``."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "user_networks.py").write_text(NETWORKS)
    sys.path.insert(0, str(folder))
    import user_networks

    yield user_networks
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def net(networks: Any) -> nn.Module:
    torch.manual_seed(0)
    built: nn.Module = networks.build()
    return built


@pytest.fixture(scope="module")
def saved(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Model]:
    path = tmp_path_factory.mktemp("model") / "model.pt"
    return path, save(
        net, path, example=FEED, inputs=INPUTS, components={"eye": "vision", "words": "text", "head": "decoder"},
        factory="user_networks:build", factory_kwargs={"width": 4}, labels=LABELS,
    )  # fmt: skip


def expected(net: nn.Module, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    with torch.no_grad():
        return {k: v.numpy() for k, v in net(**{k: torch.from_numpy(v) for k, v in feed.items()}).items()}


def rewritten(path: Path, into: Path, change: Callable[[dict[str, bytes], dict[str, Any]], None]) -> Path:
    """A copy whose members ``change`` edited, with every digest in its header right again."""
    members = {name: bytes(data) for name, data in read_members(path).items()}
    header = json.loads(members.pop("model.json"))
    change(members, header)
    if "files" in header:
        header["files"] = {name: bytes_digest(data) for name, data in members.items()} | header.pop("listed", {})
    into.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(into, "w") as archive:
        archive.writestr("model.json", json.dumps(header))
        for name, data in members.items():
            archive.writestr(name, data)
    return into


# --- round trips ------------------------------------------------------------------------------------------------------


def test_a_model_comes_back_whole(saved: tuple[Path, Model], net: nn.Module) -> None:
    path, written = saved
    read = load(path)
    assert read.inputs == written.inputs
    assert [spec.describe() for spec in read.inputs] == [
        "float32[batch=1..64, 4]", "int64[batch=1..64, length=2..8] within 0..7", "bool[batch=1..64, length=2..8]",
    ]  # fmt: skip
    assert [spec.modality for spec in read.inputs] == ["sensor", "text", "text"]
    assert [(spec.name, spec.describe()) for spec in read.outputs] == [
        ("logits", "float32[batch=1..64, 8]"), ("answer", "int64[batch=1..64]"),
    ]  # fmt: skip
    assert read.outputs == written.outputs
    assert (read.name, read.labels, read.factory) == ("Pair", LABELS, written.factory)
    assert read.components == {"eye": "vision", "words": "text", "head": "decoder"}
    assert read.component_of("vision") == "eye"
    assert read.module is None
    for name, array in FEED.items():
        np.testing.assert_array_equal(read.example[name], array)
    state = {**net.state_dict(), "mask": net.get_buffer("mask")}
    for name, tensor in state.items():
        assert torch.equal(read.weights[name], tensor), name
    assert read.weights["decoder.weight"].data_ptr() == read.weights["text.weight"].data_ptr()


@pytest.mark.parametrize(("batch", "length"), [(1, 3), (5, 8), (2, 2)])
def test_a_loaded_model_answers_as_the_module(
    saved: tuple[Path, Model], net: nn.Module, batch: int, length: int
) -> None:
    rng = np.random.default_rng(batch)
    feed = {
        "image": rng.standard_normal((batch, 4)).astype(np.float32),
        "tokens": rng.integers(0, 8, (batch, length)),
        "keep": rng.random((batch, length)) < 0.5,
    }
    found = run_program(load(saved[0]), feed)
    np.testing.assert_allclose(found["logits"], expected(net, feed)["logits"], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found["answer"], expected(net, feed)["answer"])


def test_saving_leaves_the_module_as_it_was(networks: Any, tmp_path: Path) -> None:
    module = networks.build().train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    save(module, tmp_path / "m.pt", example=FEED, inputs=INPUTS)
    assert module.training
    assert "forward" not in vars(module)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize(
    ("forward", "names"),
    [
        (lambda x: x * 2, ["output"]),
        (lambda x: (x * 2, x + 1), ["output_0", "output_1"]),
        (lambda x: {"b": x * 2, "a": x + 1, "none": None}, ["b", "a"]),
    ],
    ids=["tensor", "tuple", "dict"],
)
@pytest.mark.parametrize("dtype", ["float32", "float16", "int32"])
def test_outputs_have_names(forward: Any, names: list[str], dtype: str, tmp_path: Path) -> None:
    class Wrapped(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return forward(x)

    save(Wrapped(), tmp_path / "m.pt", example={"x": np.ones((2, 3), dtype)})
    read = load(tmp_path / "m.pt")
    found = run_program(read, {"x": np.full((3, 3), 4, dtype)})
    assert list(found) == [spec.name for spec in read.outputs] == names
    assert {spec.dtype for spec in read.outputs} == {dtype}
    np.testing.assert_array_equal(found[names[0]], np.full((3, 3), 8, dtype))


def test_two_graphs_keep_their_own_constants(net: nn.Module, tmp_path: Path) -> None:
    graphs = {"image": Graph("encode_image", ("image",)), "text": Graph("encode_text", ("tokens",))}
    feed = {name: FEED[name] for name in ("image", "tokens")}
    save(net, tmp_path / "m.pt", example=feed, graphs=graphs, factory="user_networks:build",
         inputs={"tokens": INPUTS["tokens"]})  # fmt: skip
    read = load(tmp_path / "m.pt")
    with torch.no_grad():
        image = net.encode_image(torch.from_numpy(FEED["image"])).numpy()  # type: ignore[operator]
        text = net.encode_text(torch.from_numpy(FEED["tokens"])).numpy()  # type: ignore[operator]
    np.testing.assert_allclose(run_program(read, feed, "image")["output"], image, rtol=1e-6)
    np.testing.assert_allclose(run_program(read, feed, "text")["output"], text, rtol=1e-6)


def test_the_factory_rebuilds_the_module(saved: tuple[Path, Model], net: nn.Module) -> None:
    rebuilt = build_module(load(saved[0]), "user_networks:build")
    assert not rebuilt.training
    np.testing.assert_array_equal(expected(rebuilt, FEED)["logits"], expected(net.eval(), FEED)["logits"])


# --- the same bytes ---------------------------------------------------------------------------------------------------


def test_the_same_model_gives_the_same_bytes(saved: tuple[Path, Model], tmp_path: Path) -> None:
    write_model(load(saved[0]), tmp_path / "again.pt")
    write_model(saved[1], tmp_path / "twice.pt")
    assert (tmp_path / "twice.pt").read_bytes() == saved[0].read_bytes()
    assert json_digest(sorted(zip_digests(tmp_path / "again.pt"))) == json_digest(sorted(zip_digests(saved[0])))


def zip_digests(path: Path) -> list[tuple[str, str]]:
    return [(name, bytes_digest(data)) for name, data in read_members(path).items()]


def test_another_process_and_another_checkout_give_the_same_bytes(saved: tuple[Path, Model], tmp_path: Path) -> None:
    checkout = tmp_path / "elsewhere"
    checkout.mkdir()
    (checkout / "user_networks.py").write_text("# a line more, so that every line has another number\n" + NETWORKS)
    script = (
        "import torch, numpy as np, user_networks, compress\nfrom compress import Dim, Input\ntorch.manual_seed(0)\n"
        "feed = {'image': np.arange(4, dtype=np.float32)[None] / 4, 'tokens': np.array([[1, 2, 3]], np.int64),"
        " 'keep': np.array([[True, True, False]])}\n"
        "inputs = {'image': Input(modality='sensor'), 'tokens': Input(modality='text', dims=('batch',"
        " Dim('length', 2, 3, 8))), 'keep': Input(modality='text', dims=('batch', 'length'))}\n"
        "compress.save(user_networks.build(), 'm.pt', example=feed, inputs=inputs, components={'eye': 'vision',"
        " 'words': 'text', 'head': 'decoder'}, factory='user_networks:build', factory_kwargs={'width': 4},"
        " labels={'logits': tuple('abcdefgh')})\n"
    )
    here = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": f"{here}:{checkout}", "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], cwd=checkout, env=environment, check=True)
    assert (checkout / "m.pt").read_bytes() == saved[0].read_bytes()


def test_the_file_holds_no_path_and_no_line_of_source(saved: tuple[Path, Model], networks: Any) -> None:
    data = saved[0].read_bytes()
    leaks = (str(Path(networks.__file__).parent), "user_networks.py", str(Path(__file__).parents[2]), "softmax(-1)",
             "site-packages", "File \\", "def forward", str(Path.home()) + "/")  # fmt: skip
    for leak in leaks:
        assert leak.encode() not in data, leak


# --- what save refuses ------------------------------------------------------------------------------------------------


def in_main() -> nn.Module:
    return nn.Linear(4, 4)


def test_factories_that_cannot_be_found_again_are_refused(net: nn.Module, tmp_path: Path) -> None:
    def closure() -> nn.Module:
        return net

    in_main.__module__ = "__main__"
    for factory in (closure, lambda: net, in_main, "__main__:build", "no_colon", "a:b:c"):
        with pytest.raises(CompressError, match="factory"):
            save(net, tmp_path / "m.pt", example=FEED, inputs=INPUTS, factory=factory)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("factory", "kwargs", "message"),
    [
        ("user_networks:other", {}, "builds a network with a weight 'weight' that the model lacks"),
        ("user_networks:build", {"width": 6}, r"of shape \(6,\), the model has \(4,\): check factory_kwargs"),
        ("user_networks:build", {"depth": 6}, r"'user_networks:build' failed with \{'depth': 6\}: TypeError"),
        ("user_networks:broken", {}, "'user_networks:broken' failed with {}: KeyError"),
        ("user_networks:number", {}, "returned int, not an nn.Module"),
        ("user_networks:absent", {}, "cannot be imported"),
        ("no_such_package:build", {}, "cannot be imported .*: is its package on PYTHONPATH"),
    ],
)
def test_factories_that_build_something_else_are_refused(
    factory: str, kwargs: dict[str, Any], message: str, saved: tuple[Path, Model]
) -> None:
    model = dataclasses.replace(saved[1], factory=Factory(reference=factory, kwargs=kwargs))
    with pytest.raises(CompressError, match=message):
        build_module(model, factory)


@pytest.mark.parametrize(
    ("factory", "kwargs", "message"),
    [
        ("user_networks:shifted", {}, "does not reproduce output 'logits' of the example"),
        ("user_networks:part", {}, "builds another network: its weights differ by"),
        ("user_networks:build", {"width": {1, 2}}, "factory_kwargs must be JSON"),
        ("user_networks:build", {"width": float("nan")}, "factory_kwargs must be JSON"),
    ],
)
def test_factories_that_do_not_rebuild_the_model_are_refused(
    factory: str, kwargs: dict[str, Any], message: str, net: nn.Module, tmp_path: Path
) -> None:
    with pytest.raises(CompressError, match=message):
        save(net, tmp_path / "m.pt", example=FEED, inputs=INPUTS, factory=factory, factory_kwargs=kwargs)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"example": {**FEED, "sound": FEED["image"]}}, r"an input 'sound', but forward\(\) takes \['image', 'tokens'"),
        ({"example": {"image": FEED["image"]}, "inputs": {}}, r"Pair\.forward fails on the example .*tokens"),
        ({"example": {**FEED, "image": np.array(["a"])}}, "example input 'image' has dtype <U1"),
        ({"example": {**FEED, "image": 3.0}}, "example input 'image' is a single number"),
        ({"example": {**FEED, "image": torch.ones(1, 4).bfloat16()}}, "example input 'image' is bfloat16"),
        ({"inputs": {"sound": Input()}}, "inputs names 'sound', which the example lacks"),
        ({"inputs": {"image": Input(dims=("batch", None, None))}}, "input 'image' has 2 axes .* 3 dims are given"),
        ({"components": {"ear": "hearing"}}, "component 'ear' is at 'hearing', but Pair has no such sub-module"),
        ({"labels": {"logits": ("yes", "no")}}, r"output 'logits' is float32\[.*\], but 2 labels are given"),
        ({"labels": {"output": ("yes",)}}, r"labels names output 'output', but the model's outputs are \['logits'"),
        ({"graphs": {"a": Graph("encode")}}, "Pair has no method 'encode'"),
        ({"graphs": {"a": Graph("encode_text", ("words",))}}, "takes 'words', which the example lacks"),
    ],
)
def test_bad_descriptions_are_refused(change: dict[str, Any], message: str, net: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(CompressError, match=message):
        save(net, tmp_path / "m.pt", **{"example": FEED, "inputs": INPUTS, **change})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "value"), [("vision.weight", float("nan")), ("text.weight", float("-inf")),
                                             ("scale", float("inf")), ("scale", float("nan"))])  # fmt: skip
def test_a_weight_that_is_not_finite_is_refused(name: str, value: float, networks: Any, tmp_path: Path) -> None:
    module = networks.build()
    module.state_dict()[name].view(-1)[-1] = value
    with pytest.raises(CompressError, match=f"weight '{name}' has values that are not finite"):
        save(module, tmp_path / "m.pt", example=FEED, inputs=INPUTS)
    assert list(tmp_path.iterdir()) == []


def test_a_forward_that_cannot_be_traced_is_refused(tmp_path: Path) -> None:
    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(CompressError, match=r"Branch\.forward cannot be exported: .*data-dependent"):
        save(Branch(), tmp_path / "m.pt", example={"x": np.ones((2, 2), np.float32)})
    assert list(tmp_path.iterdir()) == []


# --- what load refuses ------------------------------------------------------------------------------------------------


def cut_or_flip(data: bytes, at: int, bit: int | None) -> bytes:
    if bit is None:
        return data[:at]
    return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True), bit=st.none() | st.integers(0, 7))
def test_a_damaged_file_is_refused_or_still_the_same(
    share: float, bit: int | None, saved: tuple[Path, Model], tmp_path: Path
) -> None:
    data = saved[0].read_bytes()
    path = tmp_path / "damaged.pt"
    path.write_bytes(cut_or_flip(data, int(share * len(data)), bit))
    try:
        read = load(path)
    except CompressError as error:
        assert str(path) in str(error)  # noqa: PT017
    else:
        assert all(torch.equal(read.weights[name], tensor) for name, tensor in saved[1].weights.items())
        assert read.inputs == saved[1].inputs


def test_every_cut_and_flip_of_the_table_of_contents_is_refused_or_harmless(
    saved: tuple[Path, Model], tmp_path: Path
) -> None:
    data = saved[0].read_bytes()
    path = tmp_path / "damaged.pt"
    table = data.index(b"PK\x01\x02")
    for at in range(table, len(data), 3):
        for bit in (None, at % 8):
            path.write_bytes(cut_or_flip(data, at, bit))
            try:
                members = read_members(path)
            except CompressError as error:
                assert str(path) in str(error)  # noqa: PT017
            else:
                assert len(members) <= 4


def set_in(*keys: str, to: Any) -> Callable[[dict[str, bytes], dict[str, Any]], None]:
    def change(members: dict[str, bytes], header: dict[str, Any]) -> None:
        place = header
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = to

    return change


def member(name: str, data: bytes | None) -> Callable[[dict[str, bytes], dict[str, Any]], None]:
    def change(members: dict[str, bytes], header: dict[str, Any]) -> None:
        if data is None:
            del members[name]
        else:
            members[name] = data

    return change


def nan_weight(members: dict[str, bytes], header: dict[str, Any]) -> None:
    import safetensors.torch

    tensors = safetensors.torch.load(members["weights.safetensors"])
    tensors["vision.weight"][0, 0] = torch.nan
    members["weights.safetensors"] = safetensors.torch.save(tensors)


class Planted:
    """A pickle of it makes a folder when it is unpickled."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (os.mkdir, (self.marker,))


EDITS: dict[str, tuple[Callable[[dict[str, bytes], dict[str, Any]], None], str]] = {
    "another format": (set_in("format", to="zip"), "is not a model file: its format is 'zip'"),
    "a later version": (set_in("version", to=5), "has version 5 of the model format, this release reads up to 4"),
    "no graphs": (set_in("graphs", to=3), r"has no valid model\.json"),
    "a listed digest": (set_in("listed", to={"weights.safetensors": "0" * 64}), "does not have the SHA-256"),
    "a listed member that is not there": (set_in("listed", to={"more": "0" * 64}), "do not agree on"),
    "a member more": (member("more.bin", b"x"), r"do not agree on \['more.bin'\]"),
    "a member less": (member("example.safetensors", None), "do not agree on"),
    "weights that are none": (member("weights.safetensors", b"x" * 64), "is damaged"),
    "a NaN": (nan_weight, "weight 'vision.weight' has values that are not finite"),
    "a program that is none": (member("graphs/forward.json", b"\xff\xfe{"), "is damaged"),
    "deep JSON": (member("graphs/forward.json", b"[" * 200_000), "is damaged"),
    "a name that is no text": (set_in("name", to=[1]), r"\[1\] is not text"),
    "a component that is no path": (set_in("components", "eye", to=3), "3 is not text"),
    "labels that are no words": (set_in("labels", "logits", to=[[1]]), r"\[1\] is not text"),
    "an alias of nothing": (set_in("aliases", "decoder.weight", to="gone"), "is damaged: 'gone'"),
    "a factory that is no reference": (set_in("factory", "reference", to={"a": 1}), "is not text"),
    "another input": (set_in("graphs", "forward", "inputs", to=[]), "its program takes"),
    "no outputs": (set_in("graphs", "forward", "outputs", to=[]), "its program has 2 outputs, its list 0"),
    "a modality of its own": (
        lambda m, h: h["graphs"]["forward"]["inputs"][0].update(modality="smell"), "unknown modality 'smell'"),
    "a method that is no text": (set_in("graphs", "forward", "method", to=3), "3 is not text"),
    "a method of every module": (
        set_in("graphs", "forward", "method", to="load_state_dict"), "'load_state_dict' is no method that a graph is"),
    "a method that is an expression": (
        set_in("graphs", "forward", "method", to="encode()"), r"'encode\(\)' is no method that a graph is"),
    "groups of no size": (
        set_in("quantization", to={"scheme": "x86-vnni", "ranges": {}, "settings": {}, "keep_float": [],
                                   "weight_only": {"int8": [], "int4": ["*"], "group": 0}}),
        "its weights have groups of 0, expected one of"),
    "a glob that is no text": (
        set_in("quantization", to={"scheme": "x86-vnni", "ranges": {}, "settings": {}, "keep_float": [],
                                   "weight_only": {"int8": [3], "int4": [], "group": 64}}), "3 is not text"),
    "a size below none": (lambda m, h: h["graphs"]["forward"]["inputs"][0].update(shape=[-1]), "negative"),
}  # fmt: skip


def test_a_file_of_version_3_has_no_weights_quantized_alone(saved: tuple[Path, Model], tmp_path: Path) -> None:
    def older(members: dict[str, bytes], header: dict[str, Any]) -> None:
        header["version"] = 3
        header["quantization"] = {"scheme": "x86-vnni", "ranges": {}, "settings": {}, "keep_float": ["head"]}

    assert load(rewritten(saved[0], tmp_path / "old.pt", older)).quantization == Quantization(
        scheme="x86-vnni", ranges={}, settings={}, keep_float=("head",))


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_file_is_refused_by_name(edit: str, saved: tuple[Path, Model], tmp_path: Path) -> None:
    change, message = EDITS[edit]
    path = rewritten(saved[0], tmp_path / "edited.pt", change)
    with pytest.raises(CompressError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["weights.safetensors", "example.safetensors", "graphs/forward.json"])
def test_a_pickle_in_any_member_is_not_unpickled(name: str, saved: tuple[Path, Model], tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    planted = pickle.dumps(Planted(str(marker)))
    path = rewritten(saved[0], tmp_path / "edited.pt", member(name, planted))
    with pytest.raises(CompressError, match="is damaged"):
        load(path)
    assert not marker.exists()
    pickle.loads(planted)
    assert marker.exists()


def test_a_factory_that_only_the_file_names_is_not_called(saved: tuple[Path, Model], tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for reference, kwargs in (
        ("os:mkdir", {"path": str(marker)}),
        ("compress.zoo.demo:make_demo", {"folder": str(marker)}),
        ("compress.zoo.demo:Path", {}),
        ("compress.zoo.digits_vqa:build.__globals__", {}),
        ("compress.zoo.../evil:build", {}),
    ):
        path = rewritten(
            saved[0], tmp_path / "edited.pt", set_in("factory", to={"reference": reference, "kwargs": kwargs})
        )
        with pytest.raises(CompressError, match=r"the model file asks to call .*--factory"):
            build_module(load(path))
    assert not marker.exists()


def test_a_model_without_a_factory_says_how_to_give_one(net: nn.Module, tmp_path: Path) -> None:
    save(net, tmp_path / "m.pt", example=FEED, inputs=INPUTS)
    with pytest.raises(CompressError, match=r"model 'Pair' has no factory.*--factory"):
        build_module(load(tmp_path / "m.pt"))


def test_archives_that_are_not_plain_are_refused_unread(saved: tuple[Path, Model], tmp_path: Path) -> None:
    bomb, twice, outside = (tmp_path / name for name in ("bomb.pt", "twice.pt", "outside.pt"))
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.json", b"{}" + b" " * 10_000_000)
    with pytest.raises(CompressError, match=r"bomb\.pt .*it would unpack to more than its own size"):
        load(bomb)
    twice.write_bytes(saved[0].read_bytes())
    with zipfile.ZipFile(twice, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("model.json", b"{}")
    with pytest.raises(CompressError, match=r"twice\.pt .*it holds a member twice"):
        load(twice)
    outside.write_bytes(saved[0].read_bytes())
    with zipfile.ZipFile(outside, "a") as archive:
        archive.writestr("../planted.txt", b"x")
    with pytest.raises(CompressError, match=r"outside\.pt .*do not agree on \['\.\./planted\.txt'\]"):
        load(outside)
    assert not (tmp_path.parent / "planted.txt").exists()


def test_read_model_of_a_file_that_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(b"")
    with pytest.raises(CompressError, match=r"m\.pt is damaged or not a model file"):
        read_model(tmp_path / "m.pt")


class _Named(nn.Module):
    def __init__(self, output: str) -> None:
        super().__init__()
        self.output = output

    def forward(self, target: torch.Tensor) -> dict[str, torch.Tensor]:
        return {self.output: target * 2}


@pytest.mark.parametrize(
    ("name", "message"), [("../x", "files cannot carry"), (3, "files cannot carry"), ("y", "name of the labels")]
)
def test_a_name_that_files_cannot_carry_is_refused(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(CompressError, match=message):
        save(_Named(name), tmp_path / "m.pt", example={"target": np.ones((2, 3), np.float32)})
    assert not list(tmp_path.iterdir())


def test_an_example_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CompressError, match=r"the example: input 'input' has a value that is not finite"):
        save(nn.Linear(3, 2), tmp_path / "m.pt", example={"input": np.full((2, 3), np.nan, np.float32)})
