import dataclasses

import numpy as np
import torch
from torch import nn

from calibration import open_set
from compress.distill import DistillConfig, distill
from compress.distill.batches import Batches
from compress.distill.bound import bind
from compress.distill.graphs import Feature, find_features
from compress.distill.pairs import match_features
from compress.distill.teacher import Teacher
from compress.program import run_program
from compress.saving import export_model
from compress.weights import with_weights


class Towers(nn.Module):
    """Two towers whose answer compares every sample of the batch with every other."""

    def __init__(self):
        super().__init__()
        self.image = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        self.text = nn.Linear(5, 3)

    def forward(self, words, pixels):
        return self.image(pixels) @ self.text(words).T


def towers():
    torch.manual_seed(0)
    example = {"pixels": np.ones((2, 4), np.float32), "words": np.ones((2, 5), np.float32)}
    return export_model(Towers(), name="towers", example=example)


def pairs(model):
    rng = np.random.default_rng(0)
    feed = {"pixels": rng.normal(size=(40, 4)).astype("f4"), "words": rng.normal(size=(40, 5)).astype("f4")}
    return open_set([feed], model.inputs)


def test_features_are_what_leaves_a_component_and_is_no_output(build):
    model = build()  # head's last tensor is the output; the inner activations of seen and heard stay inside
    assert [feature.component for feature in find_features(model)] == ["seen", "heard"]
    nodes = {node.name: node for node in model.graph.program.graph.nodes}
    assert [str(nodes[f.node].target) for f in find_features(model)] == ["aten.relu.default"] * 2


def test_bound_returns_outputs_then_features_by_name_of_input():
    model = towers()
    feed = next(pairs(model).batches(8))
    features = find_features(model)
    assert [feature.component for feature in features] == ["text", "image"] or [
        feature.component for feature in features
    ] == ["image", "text"]
    values = bind(model, features)({name: torch.from_numpy(array) for name, array in feed.items()})
    np.testing.assert_array_equal(values[0].detach().numpy(), run_program(model, feed)["output"])
    own = model.weights
    by_hand = torch.from_numpy(feed["words"]) @ own["text.weight"].T + own["text.bias"]
    index = 1 + [feature.component for feature in features].index("text")
    np.testing.assert_allclose(values[index].detach().numpy(), by_hand.numpy(), rtol=1e-5, atol=1e-6)


def test_training_a_bound_graph_leaves_the_model_alone(build):
    model = build()
    bound = bind(model)
    with torch.no_grad():
        for parameter in bound.module.parameters():
            parameter.add_(1.0)
    feed = {"picture": np.ones((1, 6), np.float32), "sound": np.ones((1, 4), np.float32)}
    fresh = bind(model)({name: torch.from_numpy(array) for name, array in feed.items()})[0]
    np.testing.assert_array_equal(fresh.detach().numpy(), run_program(model, feed)["output"])


def test_answers_about_the_whole_batch_are_never_remembered(build, feeds):
    model = towers()
    bound = bind(model, find_features(model))
    assert bound.batch_axes == (None, 0, 0)
    data = pairs(model)
    assert Teacher(bound, Batches(data, 8, 0), epochs=4).remembers == "nothing"
    by_sample = build()
    assert Teacher(bind(by_sample), Batches(feeds(by_sample), 8, 0), epochs=4).remembers == "memory"
    assert Teacher(bind(by_sample), Batches(feeds(by_sample), 8, 0), epochs=1).remembers == "nothing"
    result = distill(model, model, data, config=DistillConfig(epochs=2, batch_size=8, loss="mse"))
    assert [entry["loss"] for entry in result.history] == [0.0, 0.0]


def test_components_of_different_structure_are_skipped(build):
    teacher = build()
    student = dataclasses.replace(teacher, components={"seen": "seen", "head": "head"})
    matched = match_features(student, teacher, DistillConfig())
    assert matched.components == ("seen",)
    assert matched.skipped == ("heard: the student hands on 0 tensors, the teacher 1",)
    assert match_features(student, teacher, DistillConfig(feature_weight=0.0)).skipped == ()


def test_new_weights_make_a_new_model(build):
    model = build()
    zeros = with_weights(model, {"head.2.weight": torch.zeros(3, 8), "head.2.bias": torch.tensor([1.0, 2.0, 3.0])})
    feed = {"picture": np.ones((2, 6), np.float32), "sound": np.ones((2, 4), np.float32)}
    np.testing.assert_array_equal(run_program(zeros, feed)["output"], [[1.0, 2.0, 3.0]] * 2)
    assert zeros.weights["seen.0.weight"] is model.weights["seen.0.weight"]
    assert not (run_program(model, feed)["output"] == [1.0, 2.0, 3.0]).any()
    assert Feature(graph="forward", component="seen", node="relu") in find_features(zeros)
