import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from calibration import open_set
from compress.distill import DistillConfig, distill
from compress.model import Model
from compress.modelfile import read_model, write_model
from compress.program import run_program
from compress.quantize import QuantizeConfig, quantize
from compress.quantize.prepare import convert
from compress.saving import export_model

CONFIG = DistillConfig(epochs=10, batch_size=32, learning_rate=5e-4, loss="mse")


@pytest.fixture
def teacher(build) -> Model:
    """A teacher whose weights lie badly on a 7-bit grid: each row has one outlier."""
    from compress.weights import with_weights

    model = build()
    weights = {}
    for name, value in model.weights.items():
        weights[name] = value.clone()
        if value.ndim == 2:
            weights[name][:, 0] = 1.0
    return with_weights(model, weights)


def error(model, reference, data):
    ours, theirs = (
        np.concatenate([run_program(m, feed)["output"] for feed in data.batches(50)]) for m in (model, reference)
    )
    return float(np.square(ours - theirs).mean())


def test_quantization_aware_distillation_lowers_the_error_of_the_int8_model(teacher, feeds, tmp_path):
    data, unseen = feeds(teacher, count=400), feeds(teacher, seed=5)
    quantized = quantize(teacher, data, scheme="x86", config=QuantizeConfig(ranges="minmax")).model
    write_model(quantized, tmp_path / "before.pt")
    result = distill(quantized, teacher, data, config=CONFIG)
    write_model(quantized, tmp_path / "after.pt")
    assert (tmp_path / "before.pt").read_bytes() == (tmp_path / "after.pt").read_bytes()
    assert result.quantized
    assert result.features == ("seen", "heard")
    assert result.model.quantization == quantized.quantization
    assert set(result.model.weights) == set(quantized.weights)
    before, after = error(convert(quantized), teacher, unseen), error(convert(result.model), teacher, unseen)
    assert after < 0.7 * before
    write_model(result.model, tmp_path / "result.pt")
    read = convert(read_model(tmp_path / "result.pt"))
    assert error(read, convert(result.model), unseen) == 0.0


def test_the_metric_of_a_quantized_student_is_its_int8_models(teacher, feeds):
    from compress.metrics import get_metric

    data = feeds(teacher)
    quantized = quantize(teacher, data, scheme="x86-vnni").model
    result = distill(
        quantized, teacher, data, validation=data, metric=get_metric("accuracy"),
        config=dataclasses.replace(CONFIG, epochs=2),
    )  # fmt: skip
    for model, value in ((quantized, result.before), (result.model, result.after)):
        int8 = convert(model)
        answers = np.concatenate([run_program(int8, feed)["output"] for feed in data.batches(50)]).argmax(-1)
        assert float((answers == data.targets()).mean()) == value


def test_a_folded_batch_norm_trains_as_part_of_its_convolution(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
            self.head = nn.Linear(4, 3)

        def forward(self, image):
            return self.head(self.encoder(image).mean((2, 3)))

    torch.manual_seed(0)
    net = Net()
    net.encoder[1].running_mean.normal_(0, 0.1)
    teacher = export_model(net, name="norms", example={"image": np.zeros((1, 1, 8, 8), np.float32)})
    images = np.random.default_rng(0).normal(size=(64, 1, 8, 8)).astype(np.float32)
    data = open_set([{"image": images}], teacher.inputs)
    still = distill(teacher, teacher, data, config=CONFIG)  # its statistics are frozen, its dropout is off
    assert all(torch.equal(still.model.weights[key], value) for key, value in teacher.weights.items())
    quantized = quantize(teacher, data, scheme="x86-vnni").model
    result = distill(quantized, teacher, data, config=CONFIG)
    moved = {key for key, value in quantized.weights.items() if not torch.equal(result.model.weights[key], value)}
    assert moved == {"encoder.0.weight", "encoder.0.weight_bias", "head.weight", "head.bias"}


def test_the_learning_rate_of_a_quantized_student_is_smaller(teacher, feeds):
    data = feeds(teacher)
    quantized = quantize(teacher, data, scheme="x86").model
    for student, rate in ((quantized, 3e-5), (teacher, 2e-4)):
        settings = DistillConfig(epochs=1, label_weight=0.1)
        chosen = distill(student, teacher, data, config=settings).model
        given = distill(student, teacher, data, config=dataclasses.replace(settings, learning_rate=rate)).model
        assert all(torch.equal(chosen.weights[key], given.weights[key]) for key in student.weights)
        assert not torch.equal(chosen.weights["head.0.weight"], student.weights["head.0.weight"])


def test_buffers_and_ranges_do_not_move(teacher, feeds):
    data = feeds(teacher)
    kept = QuantizeConfig(keep_float=("head*",))
    quantized = quantize(teacher, data, scheme="tensorrt", config=kept).model
    result = distill(quantized, teacher, data, config=dataclasses.replace(CONFIG, epochs=1))
    assert result.model.quantization.keep_float == ("head*",)
    assert not torch.equal(result.model.weights["seen.0.weight"], quantized.weights["seen.0.weight"])
    assert result.model.components == quantized.components


def test_weights_that_are_quantized_alone_are_trained_on_their_grids(teacher, feeds):
    """Four bits, a scale for all of an output's inputs: what is read stays float."""
    data, unseen = feeds(teacher, count=400), feeds(teacher, seed=5)
    config = QuantizeConfig(int4_weights=("*",))
    student = quantize(teacher, data, scheme="x86-vnni", config=config).model
    result = distill(student, teacher, data, config=dataclasses.replace(CONFIG, learning_rate=3e-3))
    assert result.quantized
    assert result.model.quantization == student.quantization
    before, after = error(convert(student), teacher, unseen), error(convert(result.model), teacher, unseen)
    assert after < 0.7 * before
