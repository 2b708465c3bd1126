"""Other ways to a smaller network: Torch-Pruning's keeps to the limit, and untrained weights have the right size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import calibration
from benchmarks.pruning.methods import by_torch_pruning, untrained
from benchmarks.pruning.recovery import parts, some
from compress.complexity import count_model
from compress.factory import build_module
from compress.model import Factory, Model
from compress.program import run_program
from compress.prune.channels import cut
from compress.saving import export_model
from compress.zoo.commands import COMMANDS
from compress.zoo.commands import build as commands
from compress.zoo.demo import QUICK
from compress.zoo.digits_vqa import build


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    example = {"image": np.zeros((2, 1, 8, 8), np.float32), "question": np.ones((2, 8), np.int64)}
    kwargs = {**QUICK.network, "width": 64, "image_hidden": [256, 256]}
    return export_model(build(**kwargs).eval(), name="digits-vqa", example=example,
                        factory=Factory(reference="compress.zoo.digits_vqa:build", kwargs=kwargs))


def test_torch_pruning_keeps_no_more_than_it_may(model: Model) -> None:
    """Its widths are those of a smaller network that the factory's channel map builds again, and that answers alike."""
    made = by_torch_pruning(model, 0.5)
    share = count_model(made).total.macs / count_model(model).total.macs
    assert 0.2 < share <= 0.5
    network = build_module(made)
    with torch.no_grad():
        answer = network(**{name: torch.from_numpy(array) for name, array in made.example.items()})
    np.testing.assert_allclose(run_program(made, made.example)["output"], answer.numpy(), atol=1e-5)
    assert network.image_encoder.blocks[0].up.out_features < 256


def test_untrained_weights_are_spread_as_those_of_so_many_inputs(model: Model) -> None:
    """Xavier's uniform numbers for 256 inputs and 64 outputs, of which 64 inputs are left: twice as wide."""
    module = build_module(model)
    cut(module.image_encoder.blocks[0].down, "in", range(64, 256))
    cut(module.image_encoder.blocks[0].up, "out", range(64, 256))
    small = export_model(module, name="digits-vqa", example=model.example, factory=model.factory)
    drawn = untrained(small, seed=1).weights["image_encoder.blocks.0.down.weight"]
    assert drawn.shape == (64, 64)
    assert float(drawn.std()) == pytest.approx(2 * (2 / (256 + 64)) ** 0.5, rel=0.05)
    assert not torch.equal(drawn, untrained(small, seed=2).weights["image_encoder.blocks.0.down.weight"])


def test_parts_are_the_samples_with_their_encoded_targets(tmp_path) -> None:
    """Of two tasks each its own; words become places in the vocabulary, and ``some`` picks the same ones every time."""
    rows = {"audio": np.arange(4 * 32 * 25, dtype=np.float32).reshape(4, 32, 25), "state": np.ones((4, 4), np.int64)}
    calibration.write(tmp_path / "train", {**rows, "target.action": np.array([0, 1, 2, 3]),
                                           "target.transcript": np.array(["turn on", "on", "off", "turn"])})
    torch.manual_seed(0)
    example = {name: array[:2] for name, array in rows.items()}
    inputs = export_model(commands(channels=8, width=8, hidden=8).eval(), name="spoken-command", example=example,
                          inputs=COMMANDS.inputs).inputs
    data = calibration.open_set(tmp_path / "train", inputs)
    (feed, target), = parts(data, COMMANDS.tasks)
    np.testing.assert_array_equal(feed["audio"], rows["audio"])
    np.testing.assert_array_equal(target["action"], [0, 1, 2, 3])
    np.testing.assert_array_equal(target["transcript"], [[1, 2], [2, 0], [5, 0], [1, 0]])
    assert some(data, 3).digest == some(data, 3).digest
    assert len(some(data, 3)) == 3
