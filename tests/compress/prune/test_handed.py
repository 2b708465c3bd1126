"""Heads of decoders with a cache: what their graphs hand to each other shrinks with them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from calibration import CalibrationSet, open_set
from compress.loading import load
from compress.model import Model
from compress.modelfile import read_model, write_model
from compress.program import model_runner
from compress.prune import PruneConfig, PruneResult, load_into, prunable, prune
from compress.prune.groups import Edit, Group, Share
from compress.prune.handed import Handed, _shares, given_less, handed_of, lost, made_less
from compress.saving import export_model
from compress.zoo import captioning
from compress.zoo.captioning import CAPTIONING
from tests.compress.huggingface.folders import bundle, opened, transformers
from tests.compress.huggingface.generators import generated, reader, whisper
from tests.compress.huggingface.pairs import blip, llava

BLOCKS = ("decoder.blocks.0", "decoder.blocks.1")
READ, LOOK = ("+".join(f"{block}.{part}" for block in BLOCKS) for part in ("read", "look"))


def network() -> Any:
    torch.manual_seed(0)
    made = captioning.build().eval()
    with torch.no_grad():       # so that the words depend on the picture, and on those before
        for block in made.decoder.blocks:
            block.look.out.weight.mul_(20.0)
            block.look.q.weight.mul_(20.0)
    return made


@pytest.fixture(scope="module")
def captioner() -> Model:
    composed = CAPTIONING.composed
    assert composed is not None
    return export_model(network(), name="captioner", graphs=composed.graphs, chain=composed.chain,
                        example={"image": pictures(2), **composed.given}, inputs=CAPTIONING.inputs)


def pictures(count: int) -> np.ndarray:
    """Dark ones to bright ones."""
    seen = np.random.default_rng(3).random((count, 3, 24, 24), np.float32)
    return seen * np.linspace(0, 4, count, dtype=np.float32)[:, None, None, None]


def samples(model: Model, count: int = 12) -> CalibrationSet:
    """The example over and over, its floats with noise."""
    generator = np.random.default_rng(0)
    feed = {}
    for spec in model.inputs:
        value = np.concatenate([model.example[spec.name]] * count)[:count]
        noise = 0.1 * generator.standard_normal(value.shape)
        feed[spec.name] = value + noise.astype(value.dtype) if value.dtype.kind == "f" else value
    return open_set([feed], model.inputs, name="noisy examples")


def heads(result: PruneResult) -> dict[str, int]:
    return {group.name: group.after for group in result.groups if group.kind == "heads"}


def shape(model: Model, graph: str, name: str) -> tuple[object, ...]:
    specs = model.graphs[graph]
    return next(spec.shape for spec in (*specs.inputs, *specs.outputs) if spec.name == name)


def test_what_is_handed_on_is_read_from_the_chain(captioner: Model) -> None:
    def array(output: str, name: str) -> Handed:
        return Handed(outputs=frozenset([output]), inputs=frozenset([name]))

    found = [array("encoder/0", "seen_key"), array("encoder/1", "seen_value"), array("decoder/1", "past_key"),
             array("decoder/2", "past_value")]
    assert list(handed_of(captioner)) == found
    assert captioner.chain is not None
    told = {**captioner.chain, "outputs": {"caption": "decoder.tokens", "seen": "encoder.seen_key"}}
    assert list(handed_of(dataclasses.replace(captioner, chain=told))) == found[1:]     # what the caller sees stays
    assert handed_of(dataclasses.replace(captioner, chain=None)) == ()


def test_heads_whose_keys_lie_in_one_array_are_one_group(captioner: Model) -> None:
    groups, _ = prunable(captioner, PruneConfig(structures=("heads",)))
    assert {group.name: group.before for group in groups} == {READ: 4, LOOK: 4}


@pytest.mark.parametrize("importance", ["taylor", "fisher", "activation", "magnitude"])
def test_the_cache_shrinks_with_the_heads(captioner: Model, tmp_path: Path, importance: Any) -> None:
    data = open_set([{"image": pictures(24)}], captioner.inputs, name="pictures")
    config = PruneConfig(params=0.85, structures=("heads",), importance=importance)
    result = prune(captioner, data, config)
    left = heads(result)
    assert sum(left.values()) < 8
    assert result.check < 1e-4
    write_model(result.model, tmp_path / "small.pt")
    small = read_model(tmp_path / "small.pt")
    assert small.chain == captioner.chain
    for name, group in (("key", READ), ("value", READ), ("past_key", READ), ("seen_key", LOOK), ("seen_value", LOOK)):
        assert shape(small, "decoder", name)[1:3] == (2, left[group])
        assert shape(captioner, "decoder", name)[1:3] == (2, 4)
    assert shape(small, "encoder", "seen_value")[1:3] == (2, left[LOOK])
    for path, group in ((f"{block}.{part}", group) for block in BLOCKS for part, group in
                        (("read", READ), ("look", LOOK))):
        assert small.weights[f"{path}.v.weight"].shape == (16 * left[group], 64)
    # the whole network, the heads that went silenced, says the same words
    whole, own = network(), load_into(network(), small)
    for path in (f"{block}.{part}" for block in BLOCKS for part in ("read", "look")):
        gone = ~torch.isin(whole.get_submodule(path).q.bias, own.get_submodule(path).q.bias)
        assert int(gone.sum()) == 16 * (4 - own.get_submodule(path).heads)
        with torch.no_grad():
            whole.get_submodule(path).out.weight[:, gone] = 0
    image = torch.from_numpy(pictures(5))
    words = torch.randint(3, 20, (1, 6)).expand(5, -1)
    scores = own(image, words).detach()
    torch.testing.assert_close(scores, whole(image, words).detach(), rtol=1e-4, atol=1e-4)
    assert float(scores.std(0).max()) > 0.01     # pictures make a difference
    found = model_runner(small)({"image": pictures(5)})["caption"]
    np.testing.assert_array_equal(found, said(whole, image, found.shape[1]))


def said(module: Any, image: torch.Tensor, steps: int) -> np.ndarray:
    """Greedy words, each after all those before it, without a cache; padded behind the end."""
    words = torch.full((len(image), 1), captioning.BEGIN)
    for _ in range(steps):
        with torch.no_grad():
            words = torch.cat([words, module(image, words)[:, -1].argmax(-1, keepdim=True)], 1)
    rows = words[:, 1:].numpy().copy()
    for row in rows:
        (ends,) = np.flatnonzero(row == captioning.END)[:1] if captioning.END in row else (steps,)
        row[ends + 1 :] = captioning.PADDING
    return rows


def test_again_and_in_company(captioner: Model) -> None:
    """A pruned one is pruned further, with widths and channels; nothing of it is tied to the first size."""
    data = open_set([{"image": pictures(24)}], captioner.inputs, name="pictures")
    first = prune(captioner, data, PruneConfig(params=0.9, structures=("heads",), importance="magnitude"))
    config = PruneConfig(params=0.6, structures=("heads", "channels", "width", "blocks"), importance="activation",
                         round_to=4)
    second = prune(first.model, data, config)
    assert {group.before for group in second.groups if group.kind == "heads"} == set(heads(first).values())
    again = load_into(network(), second.model)
    found = model_runner(second.model)({"image": pictures(5)})["caption"]
    np.testing.assert_array_equal(found, said(again, torch.from_numpy(pictures(5)), found.shape[1]))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnxruntime-cpu", "openvino-cpu"])
def test_engines_say_what_the_smaller_network_says(captioner: Model, tmp_path: Path, target: str) -> None:
    data = open_set([{"image": pictures(24)}], captioner.inputs, name="pictures")
    small = prune(captioner, data, PruneConfig(params=0.85, structures=("heads",), importance="magnitude")).model
    own = load_into(network(), small)
    with opened(bundle(small, tmp_path / "float", target)) as session:
        found = session.run({"image": pictures(5)})["caption"]
    np.testing.assert_array_equal(found, said(own, torch.from_numpy(pictures(5)), found.shape[1]))


@pytest.mark.slow
@pytest.mark.parametrize("make", [whisper, blip, lambda folder: reader(folder, "gpt2")])
def test_decoders_of_the_transformers_library(tmp_path: Path, make: Any) -> None:
    model = load(make(tmp_path / "whole"))
    config = PruneConfig(params=0.9, structures=("heads",), importance="magnitude", max_share=0.6)
    result = prune(model, samples(model), config)
    left = heads(result)
    decoders = [name for name in left if "decoder" in name]
    assert len(decoders) == 4                                     # two layers, each of its own and of what was seen
    assert any(left[name] < 4 for name in decoders)
    small = result.model
    for number in range(2):
        sizes = {kind: shape(small, "decoder", f"{kind}_{number}")[1] for kind in
                 ("past_key", "past_value", "present_key", "present_value", "cross_key", "cross_value")}
        assert len({sizes[kind] for kind in sizes if kind.startswith(("past", "present"))}) == 1
        assert sizes["cross_key"] == sizes["cross_value"]
    feed = samples(model).first(2)
    expected = model_runner(small)(feed)
    again = load_into(load(tmp_path / "whole").module, small)     # type: ignore[arg-type]
    if make is whisper:
        again.model.generation_config = transformers.GenerationConfig.from_pretrained(tmp_path / "whole")
        theirs = generated(again.model, 4, input_features=torch.from_numpy(feed["input_features"]), language="en",
                           force_unique_generate_call=True)
        np.testing.assert_array_equal(expected["text"], theirs)
    for target in ("onnxruntime-cpu", "openvino-cpu"):
        with opened(bundle(dataclasses.replace(small, processing=None), tmp_path / target, target)) as session:
            np.testing.assert_array_equal(session.run(feed)["text"], expected["text"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_heads_that_share_keys_go_from_the_cache_of_a_llama(tmp_path: Path, kind: str) -> None:
    """Four heads of queries, two of keys and values: each goes with both that share it."""
    model = load(llava(tmp_path / "whole", kind))
    config = PruneConfig(params=0.97, structures=("heads",), importance="magnitude", max_share=0.6,
                         protect=("*vision*",))
    result = prune(model, samples(model), config)
    left = {name: count for name, count in heads(result).items() if "language_model" in name}
    assert [group.before for group in result.groups if group.name in left] == [2, 2]
    assert 1 in left.values()
    small = result.model
    for number, (name, count) in enumerate(left.items()):
        assert shape(small, "decoder", f"past_key_{number}")[1] == shape(small, "decoder", f"present_value_{number}")[1]
        assert shape(small, "decoder", f"past_key_{number}")[1] == count
        assert small.weights[f"{name}.q_proj.weight"].shape[0] == 2 * small.weights[f"{name}.k_proj.weight"].shape[0]
    feed = samples(model).first(2)
    expected = model_runner(small)(feed)
    for target in ("onnxruntime-cpu", "openvino-cpu"):
        with opened(bundle(dataclasses.replace(small, processing=None), tmp_path / target, target)) as session:
            np.testing.assert_array_equal(session.run(feed)["text"], expected["text"])


def test_heads_in_an_order_of_their_own_are_found(captioner: Model) -> None:
    class Mixed(captioning.Captioner):
        def decode(self, words: Any, seen_key: Any, seen_value: Any, past_key: Any, past_value: Any) -> Any:
            made = super().decode(words, seen_key, seen_value, past_key.flip(2), past_value.flip(2))
            return {**made, "key": made["key"].flip(2), "value": made["value"].flip(2)}

    whole = network()
    mixed = Mixed(whole.image_encoder, whole.decoder).eval()
    composed = CAPTIONING.composed
    assert composed is not None
    model = export_model(mixed, name="mixed", graphs=composed.graphs, chain=composed.chain,
                         example={"image": pictures(2), **composed.given}, inputs=CAPTIONING.inputs)
    groups, _ = prunable(model, PruneConfig(structures=("heads",)))
    assert {group.name for group in groups} == {READ, LOOK}


def test_heads_have_one_axis_of_an_array_where_none_has_places_of_anothers() -> None:
    array = Handed(outputs=frozenset(["step/1"]), inputs=frozenset(["past"]))

    def places(*axes: tuple[int, ...]) -> dict[Handed, list[np.ndarray]]:
        return {array: [np.array(axis, bool) for axis in axes]}

    (share,) = _shares([places((1, 1), (1, 0, 0, 1)), places((1, 1), (0, 1, 1, 0))])
    assert (share.axis, share.index) == (1, ((0, 3), (1, 2)))
    assert _shares([places((1, 1), (1, 1)), places((1, 1), (0, 1))]) == ()       # the second is in the first's place
    assert _shares([places((1, 1), (1, 0, 0)), places((1, 1), (0, 1, 0))]) == ()     # a place is nobody's
    assert _shares([places((1, 0), (1, 0)), places((0, 1), (0, 1))]) == ()           # which of the two is it?
    assert _shares([places((1, 1), (1, 0)), {}]) == ()                               # one is in no array
    assert _shares([{}, {}]) == ()


def test_what_is_lost_of_arrays_by_hand() -> None:
    share = Share(inputs=frozenset(["past"]), outputs=frozenset(["step/1"]), axis=1, index=((0, 2), (1, 3)))
    edits = (Edit(path="k", role="out", index=((0,), (1,))),)
    group = Group(name="it", kind="heads", units=2, edits=edits, shares=(share,))
    less = lost([(group, (1,))])
    assert less == {"past": (1, (1, 3)), "step/1": (1, (1, 3))}
    value = torch.arange(8.0).view(2, 4)
    feeds = given_less({"step": [{"past": value, "ids": value}]}, less)
    assert feeds["step"][0]["past"].tolist() == [[0.0, 2.0], [4.0, 6.0]]
    assert feeds["step"][0]["ids"] is value
    made = made_less({"step/0": value, "step/1": value, "step/2/1": value}, less)
    assert [made[name].shape[1] for name in ("step/0", "step/1", "step/2/1")] == [4, 2, 2]
