"""What a part costs alone, on networks whose answer is known by construction."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration import CalibrationSet, open_set
from compress.errors import CompressError
from compress.metrics import Metric
from compress.model import Model
from compress.onnxmodel import OnnxModel
from compress.quantize import quantize
from compress.quantize import sensitivity as module
from compress.quantize.probe import Effect, Probe
from compress.quantize.sensitivity import PartSensitivity, SensitivityConfig, SensitivityResult, sensitivity, spread
from tests.compress import captioner
from tests.compress.quantize.networks import TwoReaders, make, samples
from tests.compress.quantize.networks import quantized as quantized_network
from tests.compress.quantize.towers import CLASSES, METRIC, labelled, poisoned, quantized, right, towers


def by_name(result: SensitivityResult, kind: Any = "layer") -> dict[str, PartSensitivity]:
    return {one.part.name: one for one in result.of(kind)}


def drop(effect: Effect | None) -> float:
    assert effect is not None
    assert effect.drop is not None
    return effect.drop.value


@functools.cache
def speaking() -> Model:
    """A captioner in int8: an encoder, and a decoder with a cache."""
    return quantize(captioner.model(), seen(), scheme="x86-vnni").model


def seen() -> CalibrationSet:
    return open_set([{"image": captioner.pictures(8)}], captioner.model().inputs, name="pictures")


def test_the_layer_with_a_poisoned_range_is_the_sensitive_one() -> None:
    data = labelled()
    found = sensitivity(poisoned("read"), data, metric=METRIC)
    layers = by_name(found)
    assert list(layers) == ["see", "read", "join", "spare"]
    # In int8 alone `read` answers by the image alone, and nothing else changes an answer: the margin is a tenth.
    (feed,) = data.batches(len(data))
    target = data.targets()
    assert target is not None
    blind = float(np.mean(feed["image"].argmax(1) != target))
    assert blind > 0.1
    assert drop(layers["read"].in_int8) == pytest.approx(blind)
    assert [drop(layers[name].in_int8) for name in ("see", "join", "spare")] == [0.0, 0.0, 0.0]
    # In float alone it gives all of that back, and the others none of it.
    assert drop(layers["read"].in_float) == 0.0
    assert [drop(layers[name].in_float) for name in ("see", "join", "spare")] == pytest.approx([blind] * 3)
    assert drop(found.everything) == pytest.approx(blind)
    assert found.in_float == 1.0
    assert found.complete
    worst = max(layers.values(), key=lambda one: one.in_int8.noise if one.in_int8 else 0.0)
    assert worst.part.name == "read"


def test_noise_by_hand() -> None:
    """In int8 with a range of [0, 1000] the tower reads 0: what it adds to the output is the noise."""
    data = labelled()
    (feed,) = data.batches(len(data))
    expected = np.square(feed["question"]).sum() / np.square(feed["image"] + feed["question"]).sum()
    effect = by_name(sensitivity(poisoned("read"), data))["read"].in_int8
    assert effect is not None
    assert effect.noise == pytest.approx(expected, rel=1e-5)
    assert effect.sqnr_db == pytest.approx(-10 * np.log10(expected), rel=1e-5)
    assert effect.drop is None


def test_components_and_modalities() -> None:
    found = sensitivity(poisoned("read"), labelled(), metric=METRIC, config=SensitivityConfig())
    assert {(one.part.kind, one.part.name): one.part.paths for one in found.parts if one.part.kind != "layer"} == {
        ("component", "see"): ("see",), ("component", "read"): ("read",), ("component", "join"): ("join",),
        ("component", "spare"): ("spare",), ("modality", "image"): ("see", "spare"), ("modality", "text"): ("read",),
        ("modality", "image + text"): ("join",),
    }  # fmt: skip
    modalities = by_name(found, "modality")
    assert drop(modalities["text"].in_int8) > 0.1
    assert drop(modalities["image"].in_int8) == drop(modalities["image + text"].in_int8) == 0.0


def test_a_part_that_nothing_reaches_is_told() -> None:
    layers = by_name(sensitivity(quantized(), labelled()))
    assert not layers["spare"].reached
    assert layers["see"].reached
    assert layers["spare"].to_json()["reached"] is False


def test_each_set_of_layers_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    effect = Probe.effect

    def counted(self: Probe, paths: tuple[str, ...]) -> Effect:
        asked.append(tuple(paths))
        return effect(self, paths)

    monkeypatch.setattr(Probe, "effect", counted)
    told: list[tuple[int, int, str]] = []
    sensitivity(quantized(), labelled(), progress=lambda done, total, text: told.append((done, total, text)))
    assert len(set(asked)) == len(asked) == 1 + 2 * 4 + 2      # all; four layers; the image's two of them
    assert told[0] == (0, 11, "all in int8")
    assert told[-1] == (11, 11, "done")


def test_interrupted_it_ends_with_what_was_found_and_goes_on_from_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = sensitivity(poisoned(), labelled(), metric=METRIC)
    effect, asked = Probe.effect, []

    def stopping(self: Probe, paths: tuple[str, ...]) -> Effect:
        asked.append(tuple(paths))
        if len(asked) == 4:
            raise KeyboardInterrupt
        return effect(self, paths)

    monkeypatch.setattr(Probe, "effect", stopping)
    found = sensitivity(poisoned(), labelled(), metric=METRIC, scratch=tmp_path)
    assert not found.complete
    assert found.everything == whole.everything
    assert [one.in_int8 is not None for one in found.of("layer")] == [True, False, False, False]
    again = sensitivity(poisoned(), labelled(), metric=METRIC, scratch=tmp_path)
    assert again.complete
    assert len(asked) == len(set(asked)) + 1                   # the one that was interrupted
    assert again.to_json() == whole.to_json()
    other = sensitivity(poisoned("see"), labelled(), metric=METRIC, scratch=tmp_path)     # takes none of these
    assert drop(by_name(other)["see"].in_int8) > 0


def test_a_damaged_file_of_measurements_costs_time_alone(tmp_path: Path) -> None:
    (tmp_path / "sensitivity.json").write_text("{")
    assert sensitivity(quantized(), labelled(), scratch=tmp_path).complete


def test_several_graphs_and_a_decoder() -> None:
    model = speaking()
    data = seen()
    found = sensitivity(model, data, config=SensitivityConfig(by=("component", "modality", "layer"), samples=8))
    modality = {one.part.name: one.part.modality for one in found.of("component")}
    assert modality["vision"] == "image"
    assert modality["query"] == "text"
    assert modality["join"] == modality["head"] == "image + text"
    assert all(one.in_int8 is not None and 0 < one.in_int8.noise < 1e-2 for one in found.of("layer"))


def test_the_record_is_json_and_an_effect_survives_it() -> None:
    record = sensitivity(poisoned(), labelled(), metric=METRIC).to_json()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["format"] == "compress.sensitivity"
    back = Effect.from_json(record["everything"])
    assert back.to_json() == record["everything"]


def test_a_metric_that_raises_is_named_with_the_sample() -> None:
    def fails(outputs: dict[str, np.ndarray], target: np.ndarray) -> np.ndarray:
        if (np.abs(outputs["output"] - special) < 1e-6).all(1).any():
            raise ValueError("no such class")
        return right(outputs, target)

    data = labelled()
    (feed,) = data.batches(len(data))
    special = (feed["image"] + feed["question"])[40]
    metric = Metric(name="mine", statistics=fails)
    with pytest.raises(CompressError, match=r"data set 'labelled', samples 32 to 63: metric 'mine' failed on 32 "
                                            r"samples: ValueError: no such class \(sample 40 fails by itself\)"):
        sensitivity(quantized(), data, metric=metric)


def test_a_metric_that_raises_in_int8_costs_that_part_its_drop_alone() -> None:
    def fails(outputs: dict[str, np.ndarray], target: np.ndarray) -> np.ndarray:
        if (right(outputs, target) == 0).any():
            raise ValueError("wrong")
        return right(outputs, target)

    layers = by_name(sensitivity(poisoned(), labelled(), metric=Metric(name="mine", statistics=fails)))
    failed = layers["read"].in_int8
    assert failed is not None
    assert failed.drop is None
    assert "metric 'mine' failed" in str(failed.failure)
    assert drop(layers["see"].in_int8) == 0.0


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(CompressError, match="model 'towers' is not quantized: run compress quantize first"):
        sensitivity(towers(), labelled())
    model = quantized()
    assert model.quantization is not None
    kept = dataclasses.replace(model, quantization=dataclasses.replace(model.quantization, keep_float=("*",)))
    with pytest.raises(CompressError, match="no layer of model 'towers' runs in int8"):
        sensitivity(kept, labelled())
    unknown = dataclasses.replace(speaking(), chain=None)
    with pytest.raises(CompressError, match=r"has the graphs .* of which one takes what another gives"):
        sensitivity(unknown, seen())
    with pytest.raises(CompressError, match="is an ONNX file, and what looks at its parts needs the PyTorch module"):
        sensitivity(OnnxModel(**vars(towers()), content=b""), labelled())
    network = quantized_network(TwoReaders)
    with pytest.raises(CompressError, match="'noise' has no targets"):
        sensitivity(network, samples(make(TwoReaders)), metric=METRIC)


def test_settings_are_checked() -> None:
    with pytest.raises(CompressError, match="by is 'tower': expected one of component, modality, block, layer"):
        SensitivityConfig(by=("tower",))
    with pytest.raises(CompressError, match="samples is 1: at least two are needed"):
        SensitivityConfig(samples=1)


def test_samples_are_spread_over_the_set() -> None:
    data = labelled(10)
    (few,), (every,) = spread(data, 4).batches(10), data.batches(10)
    np.testing.assert_array_equal(few["image"], every["image"][[0, 2, 5, 7]])
    assert spread(data, 10) is data
    assert module.SensitivityConfig().samples == 256
    assert every["image"].shape == (10, CLASSES)
