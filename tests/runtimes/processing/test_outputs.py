"""Outputs to labels, numbers, texts and similarities, by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from runtimes.errors import RuntimesError
from runtimes.processing import parse_processing
from runtimes.processing.outputs import activate
from runtimes.spec import Dim
from tests.runtimes.processing.describing import processor, spec

LABELS = ["cat", "dog", "fish"]
LOGITS = np.array([[0.0, math.log(2), math.log(5)], [math.log(7), 0.0, math.log(2)]], np.float32)


def read(entry: dict[str, Any], array: Any, *shape: int | Dim) -> Any:
    array = np.asarray(array)
    made = processor(outputs={"y": entry}, gives=[spec("y", array.dtype.name, *(shape or array.shape[1:]))])
    answers = made.answer({"y": array})["y"]
    assert json.loads(json.dumps(answers)) == answers       # plain Python values
    return answers


def test_classes_by_hand() -> None:
    first, second = read({"kind": "classes", "labels": LABELS}, LOGITS)
    assert (first["label"], first["index"]) == ("fish", 2)
    assert first["score"] == pytest.approx(5 / 8)
    assert (second["label"], second["index"]) == ("cat", 0)
    assert second["score"] == pytest.approx(0.7)


def test_the_best_few_in_order() -> None:
    first, _ = read({"kind": "classes", "labels": LABELS, "top": 2}, LOGITS)
    assert [entry["label"] for entry in first] == ["fish", "dog"]
    assert [entry["score"] for entry in first] == pytest.approx([0.625, 0.25])
    assert [e["index"] for e in read({"kind": "classes", "top": 9}, LOGITS)[0]] == [2, 1, 0]    # all there are


def test_of_equal_values_the_first_as_argmax() -> None:
    array = np.array([[1, 3, 3, 2]], np.float32)
    assert read({"kind": "classes", "activation": "none"}, array) == [{"index": 1, "score": 3.0}]


def test_leading_axes_become_lists() -> None:
    array = np.array([[[0, 1], [1, 0]], [[2, 3], [5, 4]]], np.float32)
    found = read({"kind": "classes", "activation": "none", "labels": ["a", "b"]}, array)
    assert [[answer["label"] for answer in sample] for sample in found] == [["b", "a"], ["b", "a"]]


def test_multilabel_by_hand() -> None:
    scores = np.array([[0.9, 0.4, 0.95], [0.1, 0.2, 0.3]], np.float32)
    logits = np.log(scores / (1 - scores))
    first, second = read({"kind": "multilabel", "labels": LABELS}, logits)
    assert [answer["label"] for answer in first] == ["fish", "cat"]
    assert [answer["score"] for answer in first] == pytest.approx([0.95, 0.9], abs=1e-6)
    assert second == []
    each = {"kind": "multilabel", "threshold": [0.95, 0.1, 0.99], "activation": "none"}
    assert [a["index"] for a in read(each, scores)[0]] == [1]


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_a_decision_by_hand(shape: tuple[int, ...]) -> None:
    array = np.array([0.0, math.log(3)], np.float32).reshape(shape)
    found = read({"kind": "decision", "labels": ["go", "stop"], "threshold": 0.6}, array)
    assert [(answer["label"], answer["index"]) for answer in found] == [("go", 0), ("stop", 1)]
    assert [answer["score"] for answer in found] == pytest.approx([0.5, 0.75])


def test_values_by_hand() -> None:
    array = np.array([[1, 2], [3, 4]], np.float32)
    assert read({"kind": "values", "scale": 10, "offset": [0, 1]}, array) == [[10, 21], [30, 41]]
    assert read({"kind": "values", "names": ["speed", "angle"]}, array)[1] == {"speed": 3, "angle": 4}
    assert read({"kind": "values"}, array[0]) == [[1], [2]]


WORDS = {"words": ["_", "|", "h", "e", "l", "o", "</s>"], "joiner": ""}


def test_text_of_ids_up_to_the_end() -> None:
    ids = np.array([[2, 3, 4, 4, 5, 6, 2], [2, 1, 2, 0, 0, 0, 0]])
    entry = {"kind": "text", "scores": False, "vocabulary": WORDS, "stop": 6, "skip": [0], "replace": [["|", " "]]}
    assert read(entry, ids) == ["hello", "h h"]
    spaced = {**entry, "vocabulary": {"words": WORDS["words"]}, "replace": []}
    assert read(spaced, ids) == ["h e l l o", "h | h"]


def test_text_of_scores_collapsed() -> None:
    """h h _ e l l _ l o -> hello: equal neighbours are one unless the blank parts them."""
    path = [2, 2, 0, 3, 4, 4, 0, 4, 5]
    entry = {"kind": "text", "scores": True, "vocabulary": WORDS, "collapse": True, "blank": 0}
    assert read(entry, np.eye(7, dtype=np.float32)[[path]]) == ["hello"]


def test_similarity_by_hand() -> None:
    """3-4-5 triangles: cosines 1 and 0.96, and 0.6 and 0.8."""
    entry = {"kind": "similarity", "of": ["image", "text"], "scale": 10.0}
    gives = [spec("image", "float32", 2), spec("text", "float32", 2)]
    outputs = {"image": np.array([[6, 8], [1, 0]], np.float32), "text": np.array([[3, 4], [8, 6]], np.float32)}
    answers = processor(outputs={"s": entry}, gives=gives).answer(outputs)
    np.testing.assert_allclose(answers["s"], [[10, 9.6], [6, 8]], atol=1e-6)
    plain = processor(outputs={"s": {**entry, "normalize": False, "bias": 1}}, gives=gives).answer(outputs)
    np.testing.assert_allclose(plain["s"], [[501, 961], [31, 81]])
    soft = processor(outputs={"s": {**entry, "activation": "softmax"}}, gives=gives).answer(outputs)
    np.testing.assert_allclose(np.sum(soft["s"], axis=1), [1, 1])
    with pytest.raises(RuntimesError, match=r"output 's' compares 'image' of shape \(1, 3\) with 'text' of \(2, 2\)"):
        processor(outputs={"s": entry}, gives=gives).answer({**outputs, "image": np.ones((1, 3), np.float32)})


def test_activations_never_overflow() -> None:
    huge = np.array([-1e4, 0, 1e4])
    np.testing.assert_array_equal(activate("sigmoid", huge), [0, 0.5, 1])
    np.testing.assert_array_equal(activate("softmax", huge), [0, 0, 1])


def test_a_batch_axis_elsewhere_and_none() -> None:
    from runtimes.spec import TensorSpec

    array = np.array([[0, 5], [1, 4]], np.float32)      # (classes, batch)
    for axis, expected in ((1, [1, 0]), (None, [[1, 1]])):
        gives = [TensorSpec(name="y", dtype="float32", shape=(2, 2), batch_axis=axis)]
        found = processor(outputs={"y": {"kind": "classes"}}, gives=gives).answer({"y": array})["y"]
        assert [[a["index"] for a in f] if isinstance(f, list) else f["index"] for f in found] == expected


@pytest.mark.parametrize(("entry", "array", "message"), [
    ({"kind": "classes", "labels": LABELS}, np.zeros((1, 4)), "output 'y' has 4 values, but there are 3 labels"),
    ({"kind": "classes"}, np.array([[np.nan, 1]]), "output 'y' has a value that is not finite"),
    ({"kind": "multilabel", "threshold": [0.5]}, np.zeros((1, 2)), "has 2 values, but 1 thresholds"),
    ({"kind": "decision"}, np.zeros((1, 2)), "has 2 values a sample, expected one to decide on"),
    ({"kind": "values", "names": ["a"]}, np.zeros((1, 2)), "has 2 values, but the record 1"),
    ({"kind": "text", "scores": False, "vocabulary": WORDS}, np.array([[9]]), "holds the id 9, but the .* has 7"),
    ({"kind": "text", "scores": False, "vocabulary": WORDS}, np.array([[1.0]]), "is float64, expected ids to decode"),
])
def test_outputs_that_do_not_fit(entry: dict[str, Any], array: np.ndarray, message: str) -> None:
    with pytest.raises(RuntimesError, match=message):
        read(entry, array)


def test_outputs_that_are_missing_or_not_described() -> None:
    gives = [spec("y", "float32", 2)]
    with pytest.raises(RuntimesError, match=r"output 'y' is not there: the outputs are \['z'\]"):
        processor(outputs={"y": {"kind": "classes"}}, gives=gives).answer({"z": np.zeros((1, 2))})
    with pytest.raises(RuntimesError, match=r"does not say how to read the outputs \['y'\]: use run\(\)"):
        processor(gives=gives).answer({"y": np.zeros((1, 2))})


@pytest.mark.parametrize(("entry", "message"), [
    ({"kind": "beam"}, "processing of 'y': 'kind' is 'beam', expected one of"),
    ({"kind": "classes", "top": 0}, "has the number of answers 0"),
    ({"kind": "classes", "labels": [1]}, r"'labels'\[0\] must be a string"),
    ({"kind": "decision", "labels": ["a"]}, "'labels' has 1 items, expected 2"),
    ({"kind": "decision", "activation": "softmax"}, "'activation' is 'softmax'"),
    ({"kind": "text", "vocabulary": WORDS}, "lacks 'scores'"),
    ({"kind": "text", "scores": 1, "vocabulary": WORDS}, "'scores' must be"),
    ({"kind": "text", "scores": True}, "needs either 'tokenizer' or 'vocabulary'"),
    ({"kind": "text", "scores": True, "tokenizer": "/t.json"}, "names the path '/t.json'"),
    ({"kind": "text", "scores": True, "vocabulary": WORDS, "replace": [["", "a"]]}, "has an empty string to replace"),
    ({"kind": "similarity", "of": ["a"]}, "'of' has 1 items, expected 2"),
    ({"kind": "similarity"}, "lacks 'of'"),
])
def test_bad_records(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimesError, match=message):
        parse_processing({"inputs": {}, "outputs": {"y": entry}}, "test")
