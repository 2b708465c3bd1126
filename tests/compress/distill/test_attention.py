"""Attention maps: those of torch's own operator, of a softmax that a module writes, and of what quantization makes."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from calibration import open_set
from compress.distill import DistillConfig, distill
from compress.distill.attention import Attention
from compress.distill.bound import bind
from compress.distill.graphs import find_attention
from compress.distill.pairs import match_features
from compress.model import Input
from compress.quantize import quantize
from compress.saving import export_model
from compress.weights import with_weights
from runtimes.spec import Dim

WIDTH, WORDS = 8, 5


class Reader(nn.Module):
    """Layers of attention over words, written out or by torch's operator."""

    def __init__(self, heads, layers, form):
        super().__init__()
        self.embed = nn.Linear(3, WIDTH)
        self.layers = nn.ModuleList(Layer(heads, form) for _ in range(layers))
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, words):
        x = self.embed(words)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x.mean(1))


class Layer(nn.Module):
    def __init__(self, heads, form):
        super().__init__()
        self.heads, self.form = heads, form
        self.query, self.key, self.value = (nn.Linear(WIDTH, 4 * heads) for _ in range(3))
        self.out = nn.Linear(4 * heads, WIDTH)

    def split(self, x):
        return x.unflatten(-1, (self.heads, 4)).transpose(1, 2)

    def map(self, x):
        scores = self.split(self.query(x)) @ self.split(self.key(x)).transpose(-1, -2) / 2
        return scores.softmax(-1)

    def forward(self, x):
        value = self.split(self.value(x))
        if self.form == "written":
            found = self.map(x) @ value
        else:
            query, key = self.split(self.query(x)), self.split(self.key(x))
            found = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.out(found.transpose(1, 2).flatten(2))


def network(heads=2, layers=1, form="fused", seed=0):
    torch.manual_seed(seed)
    return Reader(heads, layers, form).eval()


def exported(net):
    inputs = {"words": Input(modality="text", dims=("batch", Dim("length", 1, WORDS, 9)))}
    example = {"words": np.ones((2, WORDS, 3), np.float32)}
    components = {"reader": "layers", "head": "head"}
    return export_model(net, name="reader", example=example, inputs=inputs, components=components)


def words(count=6, length=WORDS):
    return np.random.default_rng(0).normal(size=(count, length, 3)).astype(np.float32)


def data(model):
    return open_set([{"words": words(96)}], model.inputs)


@pytest.mark.parametrize("form", ["fused", "written", "quantized"])
def test_the_map_is_what_the_layer_attends_to(form):
    net = network(form="written" if form == "written" else "fused")
    model = exported(net)
    if form == "quantized":
        model = quantize(model, data(model), scheme="x86-vnni").model
    features = find_attention(model)
    assert [feature.component for feature in features] == ["reader"]
    bound = bind(model, features)
    asked = torch.from_numpy(words(length=7))
    found = bound({"words": asked})[1]
    expected = net.layers[0].map(net.embed(asked))
    assert found.shape == (6, 2, 7, 7)
    np.testing.assert_allclose(found.detach(), expected.detach(), atol=0.05 if form == "quantized" else 1e-6)
    assert bound.batch_axes == (0, 0)


def attended(query, key, mask=None, *, scale=None, causal=False):
    fused = Attention(query="q", key="k", mask=None if mask is None else "m", scale=scale, causal=causal)
    assert fused.nodes == ("q", "k", *(() if mask is None else ("m",)))
    return fused.of([query, key, *(() if mask is None else (mask,))])


@pytest.mark.parametrize("mask", ["none", "bool", "float", "causal", "scale"])
def test_the_map_of_the_operator_by_what_it_gives_of_one_hot_values(mask):
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 3, 2, 4, 5, generator=generator)
    given = {
        "none": {}, "bool": {"mask": torch.rand(4, 4, generator=generator) < 0.7},
        "float": {"mask": torch.randn(3, 1, 4, 4, generator=generator)}, "causal": {"causal": True},
        "scale": {"scale": 0.3},
    }[mask]  # fmt: skip
    if mask == "bool":
        given["mask"][:, 0] = True
    values = torch.eye(4).expand(3, 2, 4, 4)
    expected = nn.functional.scaled_dot_product_attention(
        query, key, values, attn_mask=given.get("mask"), is_causal=given.get("causal", False), scale=given.get("scale")
    )
    np.testing.assert_allclose(attended(query, key, **given), expected, atol=1e-6)


def test_heads_that_share_their_keys():
    query, key = torch.randn(1, 4, 3, 5), torch.randn(1, 2, 3, 5)
    expected = nn.functional.scaled_dot_product_attention(
        query, key, torch.eye(3).expand(1, 2, 3, 3), enable_gqa=True
    )
    np.testing.assert_allclose(attended(query, key), expected, atol=1e-6)


def test_a_query_that_sees_nothing_has_an_even_row_and_a_finite_gradient():
    query = torch.randn(1, 1, 2, 3, requires_grad=True)
    found = attended(query, torch.randn(1, 1, 2, 3), torch.tensor([[True, True], [False, False]]))
    np.testing.assert_allclose(found[0, 0, 1].detach(), [0.5, 0.5])
    found.square().sum().backward()
    assert torch.isfinite(query.grad).all()


def test_a_student_of_fewer_layers_learns_from_every_second_and_the_last():
    student, teacher = exported(network(layers=2)), exported(network(layers=4))
    config = DistillConfig(attention_weight=1.0, feature_weight=0.0)
    matched = match_features(student, teacher, config)
    theirs = find_attention(teacher)
    assert matched.teacher == (theirs[1], theirs[3])
    assert matched.components == ("reader",)
    turned = match_features(teacher, student, config)
    assert turned.skipped == ("reader: the student attends 4 times, the teacher 2",)


def test_a_student_of_fewer_heads_learns_where_its_teacher_looks():
    teacher = exported(network(heads=3))
    student = exported(network(heads=2, seed=1))
    config = DistillConfig(epochs=30, batch_size=32, learning_rate=1e-2, attention_weight=1.0, logit_weight=0.0,
                           feature_weight=0.0)  # fmt: skip
    result = distill(student, teacher, data(teacher), config=config)
    assert result.features == ("reader",)
    assert result.history[-1]["attention_loss"] < result.history[0]["attention_loss"] / 4
    pair = [bind(model, find_attention(model))({"words": torch.from_numpy(words())})[1].mean(1).detach()
            for model in (result.model, teacher)]  # fmt: skip
    by_hand = (pair[1] * (pair[1] / pair[0]).log()).sum(-1).mean()
    assert math.isclose(by_hand, result.history[-1]["attention_loss"], rel_tol=0.5)


def test_a_quantized_student_learns_from_a_float_teachers_maps():
    teacher = exported(network())
    samples = data(teacher)
    torch.manual_seed(3)
    worse = with_weights(teacher, {
        name: value + 0.3 * torch.randn(value.shape) for name, value in teacher.weights.items() if "query" in name
    })  # fmt: skip
    student = quantize(worse, samples, scheme="x86-vnni").model
    config = DistillConfig(epochs=10, batch_size=32, learning_rate=5e-3, attention_weight=1.0)
    result = distill(student, teacher, samples, config=config)
    assert result.skipped == ()
    assert result.history[-1]["attention_loss"] < result.history[0]["attention_loss"] / 2


def test_maps_of_other_sizes_are_skipped_with_both_shapes():
    teacher = exported(network())

    class Long(Reader):
        def forward(self, words):
            return super().forward(torch.cat([words, words[:, :1]], dim=1))

    torch.manual_seed(0)
    student = exported(Long(2, 1, "fused").eval())
    matched = match_features(student, teacher, DistillConfig(attention_weight=1.0))
    assert matched.skipped[-1] == (
        "reader: attention maps of shape (2, 2, 6, 6) in the student, (2, 2, 5, 5) in the teacher"
    )
