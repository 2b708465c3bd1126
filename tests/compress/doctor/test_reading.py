"""Every form a model comes in is taken in, also with what keeps it from being loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

import compress
from compress import Dim, Graph, Input
from compress.doctor.reading import admit
from tests.compress.doctor.networks import Branches, Healthy, changed

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
FACTORY = "tests.compress.doctor.networks:Healthy"


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen, self.heard = nn.Linear(4, 3), nn.Embedding(10, 3)

    def image(self, picture: torch.Tensor) -> torch.Tensor:
        return self.seen(picture)

    def text(self, words: torch.Tensor) -> torch.Tensor:
        return self.heard(words).mean(1)

    def forward(self, picture: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        return self.image(picture) @ self.text(words).t()


def test_a_state_dict_that_fits_its_factory(tmp_path: Path) -> None:
    torch.save(Healthy().state_dict(), tmp_path / "weights.pt")
    patient = admit(tmp_path / "weights.pt", [], tmp_path, example={"x": X}, factory=FACTORY)
    assert patient.model is not None
    assert patient.name == "weights"


def test_a_state_dict_with_nan_is_a_patient_although_load_refuses_it(tmp_path: Path) -> None:
    torch.save(changed(Healthy(), up__bias=torch.full((16,), torch.nan)).state_dict(), tmp_path / "weights.pt")
    diagnosis = compress.doctor(tmp_path / "weights.pt", ["onnxruntime-cpu"], example={"x": X}, factory=FACTORY)
    assert [finding.where for finding in diagnosis.findings if finding.severity == "blocks"] == ["up.bias"]


def test_a_pickle_that_cannot_be_traced_is_one_only_when_trusted(tmp_path: Path) -> None:
    torch.save(Branches(), tmp_path / "net.pt")
    patient = admit(tmp_path / "net.pt", [], tmp_path, example={"x": X}, trust_pickle=True)
    assert patient.model is None
    assert patient.refusals[0].place.source is not None


def test_a_program_keeps_its_dynamic_sizes(tmp_path: Path) -> None:
    x = torch.ones(3, 4)
    exported = torch.export.export(Healthy(), (x,), dynamic_shapes={"x": {0: torch.export.Dim("n", max=32)}})
    torch.export.save(exported, tmp_path / "net.pt2")
    patient = admit(tmp_path / "net.pt2", [], tmp_path)
    assert isinstance(patient.inputs[0].shape[0], Dim)
    assert patient.training == ()
    assert patient.refusals == ()


def test_each_graph_of_a_model_is_examined(tmp_path: Path) -> None:
    compress.save(
        Towers(), tmp_path / "towers.pt", example={"picture": X, "words": np.arange(6).reshape(3, 2)},
        inputs={"words": Input(modality="text")},
        graphs={"image": Graph("image", ("picture",)), "text": Graph("text", ("words",))},
    )  # fmt: skip
    diagnosis = compress.doctor(tmp_path / "towers.pt", ["onnxruntime-cpu"])
    assert not diagnosis.blocked
    assert diagnosis.of("inputs") == ()
    assert [finding.what for finding in diagnosis.of("stays_float") if finding.where == "heard"]
    assert "it cannot be pruned: " in diagnosis.of("pruning")[0].what


def test_the_similarities_of_the_same_model_in_one_graph_block(tmp_path: Path) -> None:
    example = {"picture": X, "words": np.arange(6).reshape(3, 2)}
    diagnosis = compress.doctor(Towers(), ["onnxruntime-cpu"], example=example)
    assert [finding.examination for finding in diagnosis.findings if finding.severity == "blocks"] == ["batch"]
