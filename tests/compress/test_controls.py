"""The float controls of a bundle: written, read back, and refused where they are another's or damaged."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from compress.controls import Control, read_controls, write_controls
from compress.errors import CompressError
from compress.export import export
from compress.targets import targets
from runtimes.engineset import EngineSet
from runtimes.hashing import json_digest, tree_digest
from tests.compress import captioner
from tests.compress.quantize import networks

ORT = targets()["onnxruntime-cpu"]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> EngineSet:
    """A classifier's only engine."""
    model = dataclasses.replace(networks.quantized(networks.TwoReaders), quantization=None)
    return EngineSet(engines={"forward": export(model, ORT, tmp_path_factory.mktemp("one") / "engine")})


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> EngineSet:
    """A captioner's."""
    folder, model = tmp_path_factory.mktemp("two"), captioner.model()
    engines = {graph: export(model, ORT, folder / graph, graph=graph) for graph in model.graphs}
    return EngineSet(engines=engines, chain=model.chain)


def test_they_come_back_as_they_were_written(tmp_path: Path, one: EngineSet, two: EngineSet) -> None:
    written = [Control("original fp32", "original", "openvino-cpu", two),
               Control("pruned fp32", "control", "onnxruntime-cpu", one)]  # fmt: skip
    write_controls(written, tmp_path / "controls", ships=[one, two])
    found = read_controls(tmp_path / "controls", ships=[two.digest])
    assert [control[:3] for control in found] == [control[:3] for control in written]
    assert [control.engines.digest for control in found] == [two.digest, one.digest]
    assert two.digest == json_digest({graph: engine.digest for graph, engine in two.engines.items()})
    assert [control.engines.chain for control in found] == [captioner.chain(), None]
    digest = tree_digest(tmp_path / "controls")
    write_controls(written, tmp_path / "controls", ships=[one, two])
    assert tree_digest(tmp_path / "controls") == digest
    with pytest.raises(CompressError, match=r"holds the controls of another bundle .*abc…\): name this"):
        read_controls(tmp_path / "controls", ships=[two.digest, "abc"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "damaged or missing"),
        ("{", "damaged or missing"),
        ("[]", "damaged or missing"),
        ('{"format": "compress.controls", "version": 2}', "of another format or version"),
        ('{"format": "compress.controls", "version": 3}', r"damaged or missing \('ships'\)"),
        ('{"format": "compress.controls", "version": 3, "ships": []}', r"damaged or missing \('controls'\)"),
        ('{"format": "compress.controls", "version": 3, "ships": [], "controls": [{"name": "o", "role": "original", '
         '"target": "rpi5", "chain": null, "engines": {"g": {"path": "../0", "digest": ""}}}]}',
         "not a plain path inside"),
    ],
)
def test_damaged_ones_are_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "controls.json").write_text(text)
    with pytest.raises(CompressError, match=message):
        read_controls(tmp_path, ships=[])


def test_a_changed_one_is_refused(tmp_path: Path, two: EngineSet) -> None:
    write_controls([Control("o", "original", ORT.name, two)], tmp_path / "controls", ships=[two])
    with (tmp_path / "controls/0/decoder/model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(CompressError, match=r"0/decoder is not the control it was written as"):
        read_controls(tmp_path / "controls", ships=[two.digest])
