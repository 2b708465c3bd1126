"""Evaluation: the value by hand, whatever the batch and the shards, and what is said of a set that cannot be scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibration import CalibrationSet, open_set, write
from compress.errors import CompressError
from compress.evaluate import evaluate, groups_of, targets_of, try_metric
from compress.intervals import mean_interval
from compress.metrics import Metric, get_metric
from runtimes.spec import Dim, Feed, TensorSpec

SPEC = TensorSpec(name="x", dtype="float32", shape=(Dim("batch"), 2))
LOGITS = np.array([[2, 1], [0, 3], [5, 4], [1, 6], [0, 1]], np.float32)
TARGET = np.array([0, 1, 1, 1, 0])  # right, right, wrong, right, wrong


@pytest.fixture
def data(tmp_path: Path) -> CalibrationSet:
    np.savez(tmp_path / "0.npz", x=LOGITS[:2], target=TARGET[:2])
    np.savez(tmp_path / "1.npz", x=LOGITS[2:], target=TARGET[2:])
    return open_set(tmp_path, [SPEC], name="validation")


@pytest.mark.parametrize("batch", [1, 2, 3, 100])
def test_value_by_hand(data: CalibrationSet, batch: int) -> None:
    seen: list[int] = []
    done: list[tuple[int, int]] = []

    def run(feed: Feed) -> dict[str, np.ndarray]:
        seen.append(len(feed["x"]))
        return {"output": feed["x"]}

    found = evaluate(run, data, get_metric("accuracy"), batch, progress=lambda *what: done.append(what))
    np.testing.assert_array_equal(found.per_sample, [1, 1, 0, 1, 0])
    assert found.value == pytest.approx(0.6)
    assert max(seen) <= batch
    assert done[-1] == (5, 5)
    interval = mean_interval(np.array([1, 1, 0, 1, 0]))
    assert found.to_json() == {"metric": "accuracy", "data": data.digest, "value": 0.6, "n": 5,
                               "interval": [interval.low, interval.high]}


def test_questions_about_one_image_widen_the_interval(tmp_path: Path) -> None:
    images = np.array([[0, 1], [0, 1], [3, 2], [0, 1], [3, 2]], np.float32)
    data = _set(tmp_path, "image", images)
    result = evaluate(lambda feed: {"output": feed["image"]}, data, get_metric("accuracy"))
    expected = mean_interval(result.per_sample, np.array([0, 0, 1, 0, 1]))
    assert (result.estimate.low, result.estimate.high) == (expected.low, expected.high)
    assert result.estimate.high - result.estimate.low > 0.1


def test_a_failing_metric_names_the_samples(data: CalibrationSet) -> None:
    with pytest.raises(CompressError, match=r"'validation', samples 2 to 3: metric 'accuracy' failed .* one output"):
        evaluate(lambda feed: {"output": feed["x"], **({"more": feed["x"]} if feed["x"][0, 0] == 5 else {})}, data,
                 get_metric("accuracy"), 2)


def test_a_metric_is_tried_on_as_few_as_the_inputs_take(data: CalibrationSet, tmp_path: Path) -> None:
    sizes: list[int] = []

    def run(feed: Feed) -> dict[str, np.ndarray]:
        sizes.append(len(feed["x"]))
        return {"output": feed["x"]}

    three = open_set([{"x": LOGITS, "target": TARGET}], [TensorSpec(name="x", dtype="float32", shape=(3, 2))])
    for some in (data, three):
        try_metric(run, some, get_metric("accuracy"))
    assert sizes == [1, 3]
    with pytest.raises(CompressError, match=r"data set 'validation', .* the output has shape \(1, 2\) and the targets"):
        try_metric(run, data, get_metric("mse"))
    whole = Metric(name="all", statistics=lambda outputs, target: 1 / 0, whole=True)
    try_metric(run, data, whole)
    with pytest.raises(CompressError, match="'accuracy/words' is of an output that is not there"):
        try_metric(run, data, get_metric("accuracy/words"))


def test_a_set_without_targets(tmp_path: Path) -> None:
    np.savez(tmp_path / "0.npz", x=LOGITS)
    with pytest.raises(CompressError, match="'photos' has no targets: add an array `target`"):
        targets_of(open_set(tmp_path, [SPEC], name="photos"))


def test_no_more_samples_at_once_than_the_inputs_take() -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=(Dim("batch", 1, 1, 3), 2))
    sizes: list[int] = []

    def run(feed: Feed) -> dict[str, np.ndarray]:
        sizes.append(len(feed["x"]))
        return {"output": feed["x"]}

    data = open_set([{"x": LOGITS[:, :2], "target": TARGET}], [spec])
    evaluate(run, data, Metric(name="any", statistics=lambda outputs, target: np.zeros(len(target))))
    assert sizes == [min(3, len(LOGITS) - start) for start in range(0, len(LOGITS), 3)]


def test_a_batch_axis_that_is_not_the_first() -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=(2, Dim("batch")), batch_axis=1)
    data = open_set([{"x": LOGITS.T, "target": TARGET}], [spec])
    metric = Metric(name="first", statistics=lambda outputs, target: outputs["output"][:, 0] + 0 * target)
    found = evaluate(lambda feed: {"output": feed["x"].T}, data, metric, 2)
    np.testing.assert_array_equal(found.per_sample, LOGITS[:, 0])


def _set(tmp_path: Path, modality: str, images: np.ndarray) -> CalibrationSet:
    batch = Dim("batch", 1, 1, 64)
    specs = (
        TensorSpec(name="image", dtype="float32", shape=(batch, 2), modality=modality),  # type: ignore[arg-type]
        TensorSpec(name="question", dtype="int64", shape=(batch, 1), modality="text"),
    )
    questions = np.arange(len(images), dtype=np.int64)[:, None] % 2
    folder = write(tmp_path / "set", {"image": images, "question": questions}, np.zeros(len(images), int))
    return open_set(folder, specs)


def test_questions_about_one_image_are_one_group(tmp_path: Path) -> None:
    images = np.array([[0, 1], [2, 3], [0, 1], [2, 3], [4, 5]], np.float32)
    groups = groups_of(_set(tmp_path, "image", images))
    assert groups is not None
    np.testing.assert_array_equal(groups[:, None] == groups[None, :], (images[:, None] == images[None]).all(-1))


def test_samples_without_a_shared_recording_are_independent(tmp_path: Path) -> None:
    assert groups_of(_set(tmp_path, "image", np.arange(10, dtype=np.float32).reshape(5, 2))) is None
    assert groups_of(_set(tmp_path, "sensor", np.zeros((5, 2), np.float32))) is None


def test_targets_of_several_outputs(tmp_path: Path) -> None:
    samples = {"x": LOGITS}
    data = open_set(write(tmp_path / "set", samples, {"action": TARGET, "said": np.array(["up"] * 5)}), [SPEC])
    found = evaluate(lambda feed: {"action": feed["x"], "said": feed["x"]}, data, get_metric("accuracy/action"), 2)
    assert (found.metric, found.value) == ("accuracy/action", pytest.approx(0.6))
    with pytest.raises(CompressError, match=r"'set' has targets of the outputs action, said: say whose .*/action"):
        evaluate(lambda feed: {"action": feed["x"]}, data, get_metric("accuracy"))
    with pytest.raises(CompressError, match="of the outputs action, said, and none of 'speed': say whose"):
        targets_of(data, "speed")


def test_a_metric_that_is_no_mean_and_one_of_the_whole_set(data: CalibrationSet) -> None:
    """Answers 0 1 0 1 1 of targets 0 1 1 1 0: of three called 1 two are, of three that are 1 two are called."""
    found = evaluate(lambda feed: {"output": feed["x"]}, data, get_metric("f1"), 2)
    assert found.value == pytest.approx(2 / 3)
    np.testing.assert_array_equal(found.per_sample.sum(axis=0), [2, 1, 1])
    pairs = evaluate(lambda feed: {"image": feed["x"], "text": feed["x"]}, data, get_metric("zero-shot-accuracy"), 2)
    assert len(pairs.per_sample) == 5
