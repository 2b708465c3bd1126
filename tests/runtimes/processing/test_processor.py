"""From raw inputs to a feed: names, batches, several inputs of one raw one, numbers, and records of every sort."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtimes.errors import FeedError, RuntimesError
from runtimes.processing import parse_processing
from runtimes.processing.values import FeaturesInput
from runtimes.spec import Dim, TensorSpec, check_feed
from tests.runtimes.processing.describing import processor, spec

LENGTH = Dim("length", 2, 4, 8)
TAKES = [spec("image", "float32", 1, 4, 4), spec("ids", "int32", LENGTH), spec("mask", "int64", LENGTH),
         spec("speed", "float32", 2), spec("start", "int64", 1), spec("extra", "float32", 3)]
INPUTS: dict[str, Any] = {
    "image": {"kind": "image", "from": "photo", "mode": "L", "steps": [
        {"op": "resize", "size": [4, 4], "resample": "bilinear"}, {"op": "rescale"}]},
    "ids": {"kind": "text", "from": "question", "vocabulary": {"words": ["_", "is", "it"]}, "pad_id": 0},
    "mask": {"kind": "mask", "of": "ids"},
    "speed": {"kind": "features", "from": "car", "names": ["speed", "angle"], "mean": [10, 0], "std": [5, 1],
              "low": [0, -1], "high": [50, 1]},
    "start": {"kind": "constant", "value": [7]},
}
PHOTO, CAR = np.full((8, 8, 3), 51, np.uint8), {"angle": -3, "speed": 20.0}


def test_one_sample_of_every_kind() -> None:
    made = processor(INPUTS, takes=TAKES)
    assert made.sources == ("photo", "question", "car")
    feed = made.feed({"photo": PHOTO, "question": "is it", "car": CAR, "extra": np.arange(3.0)})
    checked = check_feed(TAKES, feed)       # dtypes, shapes and all
    np.testing.assert_allclose(checked["image"], np.full((1, 1, 4, 4), 0.2), atol=1e-7)
    assert checked["ids"].tolist() == [[1, 2]]
    assert checked["mask"].tolist() == [[1, 1]]
    assert checked["speed"].tolist() == [[2, -1]]       # (20 - 10) / 5, and -3 clipped
    assert checked["start"].tolist() == [[7]]
    assert checked["extra"].tolist() == [[0, 1, 2]]     # not described: as it is, in the model's dtype


def test_a_batch_is_a_list() -> None:
    raw = {"photo": [PHOTO, PHOTO[:2]], "question": ["is it", "is it is"], "car": [CAR, (10, 0)],
           "extra": [np.zeros(3)] * 2}
    feed = check_feed(TAKES, processor(INPUTS, takes=TAKES).feed(raw))
    assert feed["image"].shape == (2, 1, 4, 4)
    assert feed["ids"].tolist() == [[1, 2, 0], [1, 2, 1]]
    assert feed["mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert feed["speed"].tolist() == [[2, -1], [0, 0]]
    assert feed["start"].tolist() == [[7], [7]]


@pytest.mark.parametrize(("raw", "message"), [
    ([PHOTO], r"the raw input is a list, expected a mapping with \['car', 'extra', 'photo', 'question'\]"),
    ({"photo": PHOTO, "car": CAR}, r"the raw input lacks 'question': expected \['car', 'extra', 'photo', 'question'\]"),
    ({"photo": PHOTO, "question": "is", "car": CAR, "imgae": 1}, "has the unknown name 'imgae': expected"),
    ({"photo": [PHOTO] * 2, "question": ["is"], "car": [CAR] * 2}, "'question' has 1 samples, but 'photo' has 2"),
    ({"photo": [PHOTO] * 2, "question": "is", "car": [CAR] * 2}, "'question' has 1 samples, but 'photo' has 2"),
    ({"photo": [], "question": [], "car": []}, "raw input 'photo' is an empty list"),
    ({"photo": PHOTO, "question": "is", "car": {"speed": 1}}, r"has the names \['speed'\], expected"),
    ({"photo": PHOTO, "question": "is", "car": (1, 2, 3)}, "raw input 'car' has 3 channels, expected 2"),
    ({"photo": PHOTO, "question": "is", "car": (1, float("nan"))}, r"'car' has a value that is not finite"),
    ({"photo": PHOTO, "question": "is", "car": "fast"}, "raw input 'car' is str .*, expected numbers"),
    ({"photo": PHOTO, "question": "is", "car": (1, (2, 3))}, "raw input 'car' is no array of numbers"),
])
def test_raw_inputs_that_are_refused(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(FeedError, match=message):
        processor(INPUTS, takes=TAKES).feed(raw)


def test_the_answers_of_a_batch_and_of_one() -> None:
    outputs = {"y": {"kind": "classes", "labels": ["no", "yes"]}}
    made = processor(INPUTS, outputs, takes=TAKES, gives=[spec("y", "float32", 2)])

    def run(feed: Any) -> dict[str, np.ndarray]:
        return {"y": np.array([[0, 1]] * len(feed["ids"]), np.float32)}

    one = made.ask(run, {"photo": PHOTO, "question": "is", "car": CAR})
    assert one["y"]["label"] == "yes"
    assert one["y"]["score"] == pytest.approx(np.e / (1 + np.e))
    two = made.ask(run, {"photo": [PHOTO] * 2, "question": ["is"] * 2, "car": [CAR] * 2})
    assert [answer["label"] for answer in two["y"]] == ["yes", "yes"]
    assert [a["label"] for a in made.ask(run, {"photo": [PHOTO], "question": ["is"], "car": [CAR]})["y"]] == ["yes"]


def test_towers_of_their_own_batch_sizes() -> None:
    """One picture and three texts, where the model's batches have names of their own."""
    takes = [TensorSpec(name="image", dtype="uint8", shape=(Dim("images", 1, 1, 8), 1, 2, 2)),
             TensorSpec(name="ids", dtype="int64", shape=(Dim("texts", 1, 1, 8), LENGTH))]
    inputs = {"image": {**INPUTS["image"], "steps": []}, "ids": INPUTS["ids"]}
    feed = processor(inputs, takes=takes).feed({"photo": PHOTO[:2, :2], "question": ["is", "it", "is it"]})
    assert (feed["image"].shape, feed["ids"].shape) == ((1, 1, 2, 2), (3, 2))


def test_a_graph_of_several_gets_its_own_inputs() -> None:
    from types import SimpleNamespace

    from runtimes.processing import Processor

    section = parse_processing({
        "inputs": {"image": INPUTS["image"], "ids": INPUTS["ids"]},
        "outputs": {"s": {"kind": "similarity", "of": ["a", "b"]}, "a": {"kind": "values"}},
    }, "test")
    graphs = {"image": SimpleNamespace(inputs=TAKES[:1], outputs=[spec("a", "float32", 2)]),
              "text": SimpleNamespace(inputs=TAKES[1:2], outputs=[spec("b", "float32", 2)])}
    bundle = SimpleNamespace(processing=section, graphs=graphs, chain=None, read_file=None)
    assert Processor(bundle, "image").sources == ("photo",)
    assert list(Processor(bundle, "text").feed({"question": "is it"})) == ["ids"]
    outputs = {"a": np.array([[3, 4]], np.float32), "b": np.array([[3, 4]], np.float32)}
    assert set(Processor(bundle).answer(outputs)) == {"s", "a"}
    assert set(Processor(bundle, "image").answer(outputs)) == {"a"}


def test_features_without_names_and_of_unequal_lengths() -> None:
    steps = Dim("steps", 1, 4, 9)
    entry = {"kind": "features", "from": "x", "std": 2, "pad_value": -1}
    made = processor({"x": entry}, takes=[spec("x", "float32", steps, 2)])
    feed = made.feed({"x": [np.array([[2, 4]]), ((6, 8), (2, 2))]})
    assert feed["x"].tolist() == [[[1, 2], [-1, -1]], [[3, 4], [1, 1]]]
    one = processor({"x": {"kind": "features", "from": "x"}}, takes=[spec("x", "float32", 1)])
    assert one.feed({"x": 3})["x"].tolist() == [[3]]


def test_numbers_that_the_models_dtype_cannot_hold() -> None:
    made = processor({"x": {"kind": "tensor", "from": "x"}}, takes=[spec("x", "int8", 1)])
    assert made.feed({"x": np.array([-128])})["x"].dtype == np.int8
    for value, was in ((np.array([128]), "int64"), (np.array([0.5]), "float64")):
        with pytest.raises(FeedError, match=f"raw input 'x' becomes {was}, but input 'x' takes int8"):
            made.feed({"x": value})


def test_an_input_without_a_batch() -> None:
    made = processor({"x": {"kind": "tensor", "from": "x"}}, takes=[spec("x", "float32", 2, batch=False)])
    assert made.feed({"x": np.array([1, 2])})["x"].tolist() == [1, 2]
    with pytest.raises(FeedError, match="raw input 'x' has 2 samples, but 'x' has no batch: give one"):
        made.feed({"x": [np.zeros(2)] * 2})


@pytest.mark.parametrize(("inputs", "outputs", "message"), [
    ({"other": INPUTS["ids"]}, {}, r"describes input 'other', but the model's are \['extra', 'ids'"),
    ({}, {"other": {"kind": "classes"}}, r"describes output 'other', but the model's are \['y'\]"),
    ({}, {"s": {"kind": "similarity", "of": ["y", "z"]}}, "describes output 'z'"),
])
def test_names_the_model_does_not_have(inputs: Any, outputs: Any, message: str) -> None:
    with pytest.raises(RuntimesError, match=message):
        processor(inputs, outputs, takes=TAKES, gives=[spec("y", "float32", 2)])


@pytest.mark.parametrize(("inputs", "message"), [
    ({"m": {"kind": "mask", "of": "ids"}}, "input 'm' is derived from 'ids', which is no input made of raw data"),
    ({"ids": INPUTS["start"], "m": {"kind": "mask", "of": "ids"}}, "is derived from 'ids', which is no input"),
    ({"i": INPUTS["image"], "t": {"kind": "token_types", "of": "i"}}, "has the token types of 'i', which is no text"),
    ({"x": {"kind": "constant", "value": ["a"]}}, "is list .*, expected numbers"),
    ({"x": {"kind": "constant", "value": [[1], [1, 2]]}}, "is no array of numbers"),
    ({"x": {"kind": "constant", "value": 1e999}}, "has values that are too many or not finite"),
    ({"x": {"kind": "features", "from": "x", "mean": [1, 2], "std": [1]}}, r"has lists of \[1, 2\] channels"),
    ({"x": {"kind": "features", "from": "x", "low": 2, "high": 1}}, "has low 2.* above high 1"),
    ({"x": {"kind": "features", "from": "x", "std": 0}}, "has the std 0"),
    ({"x": {"kind": "tensor"}}, "processing of 'x' lacks 'from'"),
    ({"x": []}, "processing of 'x' must be an object"),
])
def test_bad_records(inputs: Any, message: str) -> None:
    with pytest.raises(RuntimesError, match=message):
        parse_processing({"inputs": inputs, "outputs": {}}, "test")


def test_sections() -> None:
    with pytest.raises(RuntimesError, match="manifest: 'processing' has the unknown key 'code'"):
        parse_processing({"inputs": {}, "outputs": {}, "code": 1}, "manifest")
    with pytest.raises(RuntimesError, match="manifest: 'processing' lacks 'outputs'"):
        parse_processing({"inputs": {}}, "manifest")


def test_records_come_back_as_they_were() -> None:
    outputs = {"y": {"kind": "classes", "labels": ["a"], "top": 3}}
    section = parse_processing({"inputs": INPUTS, "outputs": outputs}, "test")
    assert parse_processing(json.loads(json.dumps(section.to_json())), "test") == section
    assert FeaturesInput(from_="x", std=2.0).names is None


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, child in children for path in paths(child, (*at, key)))]


FULL: dict[str, Any] = {
    "inputs": {
        **INPUTS,
        "sound": {"kind": "audio", "from": "sound", "rate": 8000, "layout": "TF", "copies": 2, "steps": [
            {"op": "fit", "length": 800, "fill": "repeat_zero"}, {"op": "standardize"},
            {"op": "spectrogram", "n_fft": 64, "hop": 32, "log": "log10", "mel": {"count": 8, "high_hz": 4000.0}},
            {"op": "floor_below_max", "range": 8.0}, {"op": "normalize", "mean": [0.0] * 8, "std": 2.0}]},
        "types": {"kind": "token_types", "of": "ids"},
    },
    "outputs": {
        "y": {"kind": "classes", "labels": ["a", "b"], "top": 2}, "m": {"kind": "multilabel", "threshold": [0.5, 0.1]},
        "d": {"kind": "decision"}, "v": {"kind": "values", "names": ["a", "b"]},
        "t": {"kind": "text", "scores": True, "vocabulary": {"words": ["a", "b"]}, "replace": [["a", "b"]]},
        "s": {"kind": "similarity", "of": ["y", "v"]},
    },
}
SOUND = np.sin(np.arange(500) / 9)


@settings(max_examples=600, deadline=None, derandomize=True)
@given(st.data())
def test_mutated_records_are_refused_or_work(data: st.DataObject) -> None:
    """One to three values changed: a RuntimesError when it is read or used, or an answer; nothing else."""
    changed = copy.deepcopy(FULL)
    odd = st.sampled_from([None, True, 0, -1, 1, 2, 3, 10**6, 10**400, 0.5, -0.0, 1e999, "", "a", "{}", "\ud800",
                           "../x", [], {}, [0], [[]], ["a"], {"a": 1}, "ids", "resize", "text", [1, 2], "softmax"])
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from([path for path in paths(changed) if len(path) > 1]))
        parent = changed
        for key in path[:-1]:
            parent = parent[key]
        if data.draw(st.booleans()) or isinstance(parent, list):
            parent[path[-1]] = copy.deepcopy(data.draw(odd))
        else:
            parent[data.draw(st.sampled_from(["op", "kind", "from", "steps", "x", path[-1]]))] = parent.pop(path[-1])
    takes = [spec(name, "float32", *shape) for name, shape in {
        "image": (1, 4, 4), "speed": (2,), "sound": (2, 26, 8), "extra": (3,)}.items()]
    takes += [spec("ids", "int64", LENGTH), spec("mask", "int64", LENGTH), spec("types", "int64", LENGTH),
              spec("start", "int64", 1)]
    gives = [spec(name, "float32", *shape) for name, shape in {
        "y": (2,), "m": (2,), "d": (1,), "v": (2,), "t": (3, 2)}.items()]
    try:
        made = processor(changed["inputs"], changed["outputs"], takes=takes, gives=gives)
        made.feed({"photo": PHOTO, "question": "is it", "car": CAR, "sound": SOUND})
        made.answer({s.name: np.zeros((1, *s.shape[1:]), np.float32) for s in gives})
    except RuntimesError as error:
        assert str(error)       # noqa: PT017 - what it says depends on the mutation


def test_the_record_that_is_mutated_works() -> None:
    takes = [*TAKES[:5], spec("sound", "float32", 2, 26, 8), spec("types", "int64", LENGTH)]
    gives = [spec(name, "float32", *shape) for name, shape in {
        "y": (2,), "m": (2,), "d": (1,), "v": (2,), "t": (3, 2)}.items()]
    made = processor(FULL["inputs"], FULL["outputs"], takes=takes, gives=gives)
    check_feed(takes, made.feed({"photo": PHOTO, "question": "is it", "car": CAR, "sound": SOUND}))
    assert len(made.answer({s.name: np.zeros((1, *s.shape[1:]), np.float32) for s in gives})) == 6
