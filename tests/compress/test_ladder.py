"""The parity ladder: its rungs, what each stands on, and the figures between them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from calibration import open_set
from compress.errors import CompressError
from compress.export import build_engine, export_onnx
from compress.ladder import REFERENCE, check, ladder, torch_runner
from compress.model import Model
from compress.program import run_program
from compress.quantize.prepare import convert
from compress.saving import export_model
from compress.stages.engines import Build
from compress.steps import graph_feeds
from compress.targets import targets
from runtimes.engineset import EngineSet
from tests.compress import captioner
from tests.compress.quantize import networks

TARGET = targets()["onnxruntime-cpu"]


@pytest.fixture(scope="module")
def quantized() -> Model:
    return networks.quantized(networks.TwoReaders)


@pytest.fixture(scope="module")
def builds(quantized: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Build]:
    """The original, a float control of what ships, and what ships, in int8; and one that was not built."""
    folder = tmp_path_factory.mktemp("ladder")
    plain = dataclasses.replace(quantized, quantization=None)
    made = {}
    forms = (("original", "original", plain), ("control", "control", plain), ("int8", "shipped", quantized))
    for name, role, model in forms:
        onnx = export_onnx(model, TARGET, folder / f"{name}.onnx")
        engine = build_engine(onnx, model, TARGET, folder / name)
        made[name] = Build(name=name, role=role, target=TARGET, precision=engine.precision,
                           onnx={"forward": onnx}, engines=EngineSet(engines={"forward": engine}))
    made["failed"] = dataclasses.replace(made["int8"], name="failed", engines=None, error="refused")
    return made


def names(builds: list[Build], model: Model, quantized: dict[str, Model]) -> list[tuple[str, str | None]]:
    return [(step.name, step.after) for step in ladder(builds, model, quantized)]


def test_each_rung_stands_on_the_one_it_was_made_from(builds: dict[str, Build], quantized: Model) -> None:
    found = names(list(builds.values()), dataclasses.replace(quantized, quantization=None), {"x86-vnni": quantized})
    assert found == [
        (REFERENCE, None),
        ("torch int8 x86-vnni", REFERENCE),
        ("onnx fp32", REFERENCE),
        ("control", "onnx fp32"),
        ("onnx int8 x86-vnni", "torch int8 x86-vnni"),
        ("int8", "onnx int8 x86-vnni"),
    ]


def test_without_pruning_the_original_is_the_control(builds: dict[str, Build], quantized: Model) -> None:
    plain = dataclasses.replace(quantized, quantization=None)
    found = names([builds["original"], builds["int8"]], plain, {"x86-vnni": quantized})
    assert ("original", "onnx fp32") in found
    assert not [n for n, _ in names([builds["original"], builds["control"]], plain, {}) if n == "original"]


def test_an_engine_for_another_machine_is_no_rung(builds: dict[str, Build], quantized: Model) -> None:
    assert builds["int8"].engines is not None
    elsewhere = dataclasses.replace(builds["int8"].engines.engines["forward"], state="built, not run")
    build = dataclasses.replace(builds["int8"], engines=EngineSet(engines={"forward": elsewhere}))
    plain = dataclasses.replace(quantized, quantization=None)
    assert [n for n, _ in names([build], plain, {"x86-vnni": quantized})][-1] == "onnx int8 x86-vnni"


def test_torch_runner_runs_int8_where_the_model_is_quantized(quantized: Model) -> None:
    (feed,) = networks.samples(quantized, 5).batches(5)
    np.testing.assert_array_equal(
        torch_runner(quantized)(feed)["output"], run_program(convert(quantized), feed)["output"]
    )
    plain = dataclasses.replace(quantized, quantization=None)
    np.testing.assert_array_equal(torch_runner(plain)(feed)["output"], run_program(plain, feed)["output"])


@pytest.mark.parametrize("name", ["openvino-cpu", "onnxruntime-cpu"])
def test_check_of_one_model_and_target(quantized: Model, name: str) -> None:
    data = networks.samples(quantized, 20)
    steps = {step.name: step for step in check(quantized, targets()[name], data).steps}
    assert list(steps) == [
        REFERENCE, "torch int8 x86-vnni", "onnx fp32", f"{name} fp32", "onnx int8 x86-vnni", f"{name} int8",
    ]  # fmt: skip
    (feed,) = data.batches(20)
    plain = dataclasses.replace(quantized, quantization=None)
    floats, integers = (torch_runner(model)(feed)["output"] for model in (plain, quantized))
    found = steps["torch int8 x86-vnni"].from_reference["output"]
    assert found.max_abs == pytest.approx(float(np.abs(floats - integers).max()), rel=1e-6)
    assert steps["onnx fp32"].from_reference["output"].max_abs < 1e-6
    assert steps[f"{name} fp32"].from_reference["output"].max_abs < 1e-5
    assert found.answers == 20


def test_scores_have_answers_and_embeddings_and_maps_have_none() -> None:
    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.scores = nn.Conv1d(3, 4, 1), nn.Linear(6, 5)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            found = self.scores(x.mean(1))
            return {"map": self.conv(x), "picture": x[:, :, None] * 2, "scores": found,
                    "embedding": torch.nn.functional.normalize(found), "chances": found.sigmoid()}  # fmt: skip

    x = np.random.default_rng(0).normal(size=(8, 3, 6)).astype(np.float32)
    model = export_model(Ends().eval(), name="ends", example={"x": x})
    found = check(model, TARGET, open_set([{"x": x}], model.inputs, name="noise")).steps[1].from_reference
    assert {name: one.answers for name, one in found.items()} == {
        "map": 0, "picture": 0, "scores": 8, "embedding": 0, "chances": 0}  # fmt: skip


@pytest.mark.slow
def test_check_of_a_captioner_and_of_its_decoder_alone() -> None:
    """Four pictures in one batch: the encoder once, the decoder on three of its steps, and the captions."""
    model = captioner.model()
    data = open_set([{"image": captioner.pictures(4)}], model.inputs, name="pictures")
    whole = check(model, TARGET, data)
    assert (whole.passed, whole.feeds, whole.samples) == (True, 1, 4)
    assert [step.name for step in whole.steps] == [REFERENCE, "onnx fp32", "onnxruntime-cpu fp32"]
    found = whole.steps[2].from_reference
    assert list(found) == ["encoder.memory", "decoder.logits", "decoder.key", "decoder.value", "caption"]
    assert (found["caption"].agreement, found["caption"].answers) == (1.0, 4)
    lengths = sum(feed["ids"].shape[1] for feed in graph_feeds(model, {"image": captioner.pictures(4)})["decoder"])
    assert found["decoder.logits"].answers == 4 * lengths
    alone = check(model, TARGET, data, graph="decoder")
    assert list(alone.steps[2].from_reference) == ["logits", "key", "value"]
    assert alone.steps[2].from_reference["logits"] == found["decoder.logits"]
    with pytest.raises(CompressError, match="there is no 'sound'"):
        check(model, TARGET, data, graph="sound")


def test_check_of_a_float_model_has_float_rungs_alone(tmp_path: Path) -> None:
    model = networks.make(networks.TwoReaders)
    result = check(model, TARGET, networks.samples(model, 4))
    assert [step.name for step in result.steps] == [REFERENCE, "onnx fp32", "onnxruntime-cpu fp32"]
