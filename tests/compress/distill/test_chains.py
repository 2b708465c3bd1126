"""Distillation of models of several graphs: towers, and a decoder that learns its teacher's answers."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from calibration import open_set
from compress.distill import DistillConfig, distill
from compress.distill.bound import bind
from compress.distill.forcing import at_once, teacher_tokens, tokens_key
from compress.distill.graphs import find_features
from compress.errors import CompressError
from compress.model import Graph, Model
from compress.program import model_runner
from compress.quantize import quantize
from compress.saving import export_model
from compress.weights import with_weights
from runtimes.loops import parse_loop
from tests.compress import captioner

KEY = tokens_key("decoder")


class Pair(nn.Module):
    """Two towers that share their last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.vision, self.text, self.shared = nn.Linear(4, 8), nn.Linear(5, 8), nn.Linear(8, 6)

    def encode_image(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"image_embeds": self.shared(torch.relu(self.vision(pixels)))}

    def encode_text(self, words: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"text_embeds": self.shared(torch.relu(self.text(words)))}


def pair(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    example = {"pixels": np.ones((2, 4), np.float32), "words": np.ones((2, 5), np.float32)}
    graphs = {"image": Graph("encode_image", ("pixels",)), "text": Graph("encode_text", ("words",))}
    return export_model(Pair(), name="pair", example=example, graphs=graphs)


def shaken(model: Model, by: float = 0.1) -> Model:
    generator = torch.Generator().manual_seed(1)
    return with_weights(model, {
        name: value + by * value.std() * torch.randn(value.shape, generator=generator)
        for name, value in model.weights.items() if value.is_floating_point() and value.numel() > 1
    })  # fmt: skip


def test_two_towers_are_trained_together_and_share_what_they_shared() -> None:
    teacher = pair()
    student = shaken(teacher, 0.5)
    rng = np.random.default_rng(0)
    feed = {"pixels": rng.normal(size=(160, 4)).astype("f4"), "words": rng.normal(size=(160, 5)).astype("f4")}
    data = open_set([feed], teacher.inputs)
    bound = bind(student)
    assert [spec.name for spec in bound.compared] == ["image_embeds", "text_embeds"]
    assert len(list(bound.module.parameters())) == 6        # of three layers: the shared one is there once
    result = distill(student, teacher, data,
                     config=DistillConfig(epochs=20, batch_size=32, learning_rate=1e-2, loss="mse"))  # fmt: skip
    assert result.history[-1]["loss"] < result.history[0]["loss"] / 20
    asked = {name: array[:64] for name, array in feed.items()}
    expected, given = model_runner(teacher)(asked), model_runner(result.model)(asked)
    for name in ("image_embeds", "text_embeds"):
        error = np.square(given[name] - expected[name]).mean() / np.square(expected[name]).mean()
        assert error < 0.01
    states = [graph.program.state_dict["shared.weight"] for graph in result.model.graphs.values()]
    assert torch.equal(*states)
    assert set(result.features) == {"vision", "text"}       # the shared layer's result is an output


def pairs_of(model: Model, count: int = 160) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"pixels": rng.normal(size=(count, 4)).astype("f4"), "words": rng.normal(size=(count, 5)).astype("f4")}


def likeness(model: Model, feed: dict[str, np.ndarray]) -> np.ndarray:
    found = model_runner(model)(feed)
    left, right = (found[name] / np.linalg.norm(found[name], axis=1, keepdims=True)
                   for name in ("image_embeds", "text_embeds"))  # fmt: skip
    matrix: np.ndarray = left @ right.T
    return matrix


def test_the_similarity_matrix_alone_teaches_it() -> None:
    """Its student ends at other embeddings, which are alike where the teacher's are."""
    teacher = pair()
    student = shaken(teacher, 0.5)
    feed = pairs_of(teacher)
    config = DistillConfig(epochs=30, batch_size=32, learning_rate=1e-2, logit_weight=0.0, feature_weight=0.0)
    result = distill(student, teacher, open_set([feed], teacher.inputs), config=config)
    assert result.outputs == {"image_embeds": "embedding", "text_embeds": "embedding"}
    assert set(result.history[0]) == {"epoch", "loss", "similarity_loss", "metric", "seconds"}
    asked = {name: array[:48] for name, array in feed.items()}
    wanted = likeness(teacher, asked)
    before, after = (np.abs(likeness(model, asked) - wanted).mean() for model in (student, result.model))
    assert after < before / 4


def test_towers_can_learn_from_their_samples_alone() -> None:
    """With label_weight: which words belong to which pixels, where the words are made of the pixels."""
    teacher = pair()
    feed = pairs_of(teacher)
    feed["words"][:, :4] = feed["pixels"]
    config = DistillConfig(epochs=40, batch_size=32, learning_rate=1e-2, logit_weight=0.0, feature_weight=0.0,
                           similarity_weight=0.0, label_weight=1.0)  # fmt: skip
    result = distill(teacher, teacher, open_set([feed], teacher.inputs), config=config)
    assert set(result.history[0]) == {"epoch", "loss", "label_loss", "metric", "seconds"}
    asked = {name: array[:32] for name, array in feed.items()}
    right = [(likeness(model, asked).argmax(1) == np.arange(32)).mean() for model in (teacher, result.model)]
    assert right[0] < 0.3
    assert right[1] > 0.8


def test_a_teacher_of_another_vocabulary_is_refused(network: captioner.Captioner, model: Model) -> None:
    class Wider(nn.Module):
        """A captioner that scores one token more."""

        def __init__(self) -> None:
            super().__init__()
            self.whole = network

        def encode(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
            return self.whole.encode(image)

        def decode(self, ids: Any, memory: Any, past_key: Any, past_value: Any) -> dict[str, torch.Tensor]:
            told = self.whole.decode(ids, memory, past_key, past_value)
            return {**told, "logits": torch.cat([told["logits"], told["logits"][..., :1]], -1)}

    data = open_set([{"image": captioner.pictures(4)}], model.inputs)
    message = r"differ in the scores of output 'caption': .*, 20\] and .*, 21\]; a teacher needs"
    with pytest.raises(CompressError, match=message):
        distill(model, captioner.model(Wider()), data)


@pytest.fixture(scope="module")
def network() -> captioner.Captioner:
    return captioner.network()


@pytest.fixture(scope="module")
def model(network: captioner.Captioner) -> Model:
    return captioner.model(network)


def test_the_teachers_tokens_are_its_captions(model: Model, network: captioner.Captioner) -> None:
    image = captioner.pictures(40)
    data = open_set([{"image": image[:7]}, {"image": image[7:]}], model.inputs)
    told: list[str] = []
    tokens = teacher_tokens(model, data, told.append)
    np.testing.assert_array_equal(tokens[KEY], captioner.padded(captioner.captions(network, image)))
    assert told[-1] == "teacher's tokens, 40 of 40 samples"
    assert teacher_tokens(pair(), data, told.append) == {}


class Last(nn.Module):
    """A captioner that scores the last token alone."""

    def __init__(self, whole: captioner.Captioner) -> None:
        super().__init__()
        self.whole = whole

    def encode(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.whole.encode(image)

    def decode(self, ids: Any, memory: Any, past_key: Any, past_value: Any) -> dict[str, torch.Tensor]:
        told = self.whole.decode(ids, memory, past_key, past_value)
        return {**told, "logits": told["logits"][:, -1]}


def scores_by_hand(network: captioner.Captioner, image: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Scores of each token after those before it, in one uncached run; 0 behind the stop token."""
    start = np.full((len(tokens), 1), captioner.BEGIN)
    ids = torch.from_numpy(np.concatenate([start, tokens[:, :-1]], axis=1))
    nothing = torch.zeros(len(tokens), captioner.HEADS, 0, captioner.WIDTH // captioner.HEADS)
    with torch.no_grad():
        memory = network.encode(torch.from_numpy(image))["memory"]
        scores: np.ndarray = network.decode(ids, memory, nothing, nothing)["logits"].numpy()
    for row, said in zip(scores, tokens, strict=True):
        ends = np.flatnonzero(said == captioner.END)
        if len(ends):
            row[ends[0] + 1 :] = 0
    return scores


@pytest.mark.parametrize("form", ["at once", "token by token"])
def test_scores_after_given_tokens(network: captioner.Captioner, model: Model, form: str) -> None:
    image = captioner.pictures(6)
    tokens = model_runner(model)({"image": image})["caption"]
    tested = model if form == "at once" else captioner.model(Last(network))
    decoder: Any = tested.graphs["decoder"]
    loop = parse_loop(captioner.chain()["steps"][1]["loop"], decoder, (), "here")
    assert at_once(loop, decoder) is (form == "at once")
    bound = bind(tested)
    (scores,) = bound({"image": torch.from_numpy(image), KEY: torch.from_numpy(tokens)})
    expected = scores_by_hand(network, image, tokens)
    assert (expected == 0).all(-1).any()        # some captions stop early
    np.testing.assert_allclose(scores.detach().numpy(), expected, atol=1e-5)
    assert bound.batch_axes == (0,)


def test_features_of_a_decoder_are_compared_only_where_it_is_run_at_once(
    network: captioner.Captioner, model: Model
) -> None:
    assert {feature.graph for feature in find_features(model)} == {"decoder"}       # the encoder's are its output
    assert all(feature.graph == "encoder" for feature in find_features(captioner.model(Last(network))))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["float", "int8"])
def test_a_decoder_learns_to_say_what_its_teacher_says(model: Model, form: str) -> None:
    image, asked = captioner.pictures(300), captioner.pictures(400)[300:]
    data = open_set([{"image": image}], model.inputs)
    student = shaken(model, 0.15)
    if form == "int8":
        student = quantize(student, data, scheme="x86-vnni").model

    def share(tested: Model) -> float:
        from compress.ladder import torch_runner

        said, expected = torch_runner(tested)({"image": asked[:16]})["caption"], told(asked[:16])
        width = min(said.shape[1], expected.shape[1])
        return float((said[:, :width] == expected[:, :width]).mean())

    def told(image: np.ndarray) -> np.ndarray:
        return model_runner(model)({"image": image})["caption"]

    result = distill(student, model, data, config=DistillConfig(epochs=12, batch_size=16, learning_rate=3e-3))
    assert result.history[-1]["loss"] < result.history[0]["loss"] / 3
    assert share(student) < 0.75 < share(result.model)
    assert result.quantized is (form == "int8")


def test_what_cannot_be_distilled_is_refused(network: captioner.Captioner, model: Model) -> None:
    data = open_set([{"image": captioner.pictures(4)}], model.inputs)
    with pytest.raises(CompressError, match="'captioner' picks tokens, and learns those of its teacher: set it to 0"):
        distill(model, model, data, config=DistillConfig(label_weight=1.0))
    other = captioner.model(copy.deepcopy(network), chain=captioner.chain(stop=[3]))
    with pytest.raises(CompressError, match="teacher 'captioner' chain their graphs in different ways"):
        distill(model, other, data)
    alone = dataclasses.replace(model, chain=None)
    with pytest.raises(CompressError, match=r"\['encoder', 'decoder'\], of which one takes what another"):
        distill(alone, alone, open_set([{s.name: model.example[s.name] for s in alone.inputs}], alone.inputs))
