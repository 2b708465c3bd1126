"""Training on another device than the processor: here torch's ``meta``, whose tensors have no values.

Every operator of a step, forward and backward, must find all that it computes with there. A real GPU is asked where
there is one.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from calibration import CalibrationSet, open_set
from compress.distill import DistillConfig, distill, learner, teacher, training
from compress.distill.averaging import Average
from compress.distill.bound import bind
from compress.distill.loop import Run
from compress.distill.placement import device_of
from compress.errors import CompressError
from compress.model import Model
from compress.quantize import quantize
from compress.saving import export_model
from compress.weights import with_weights
from tests.compress import captioner
from tests.compress.distill.test_chains import Last

META = torch.device("meta")
MOVES = ("_to_copy", "copy_")
ALL = DistillConfig(epochs=1, batch_size=8, attention_weight=1.0, relation_weight=1.0, similarity_weight=0.0)


class Placed(nn.Module):
    """Makes tensors in its code, and has a buffer, a constant, an embedding and attention with a mask."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.query, self.key = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.wide, self.head = nn.Sequential(nn.Linear(8, width), nn.BatchNorm1d(width), nn.ReLU()), nn.Linear(width, 3)
        self.register_buffer("shift", torch.ones(8))

    def forward(self, words: Tensor, sound: Tensor) -> Tensor:
        x = self.embed(words) + torch.arange(4)[None, :, None] + self.shift + torch.tensor([0.5])
        seen = (words != 0)[:, None, None]
        x = nn.functional.scaled_dot_product_attention(
            self.query(x)[:, None], self.key(x)[:, None], x[:, None], attn_mask=seen)[:, 0]
        return self.head(self.wide(x.mean(1) + sound))


class OneDevice(TorchDispatchMode):
    """Refuses operators on tensors of several devices, as a GPU does; a number, or one that moves, may be anywhere."""

    seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        where = {value.device.type for value in tree_leaves((args, kwargs or {}))
                 if isinstance(value, Tensor) and value.ndim}  # fmt: skip
        assert len(where) < 2 or func.overloadpacket.__name__ in MOVES, f"{func} is given tensors on {where}"
        self.seen += "meta" in where
        return func(*args, **(kwargs or {}))


class DoneError(Exception):
    """The step was made."""


@pytest.fixture
def step_elsewhere(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """One step of a distillation, up to its gradients, on another device; how many operators computed there."""

    @contextlib.contextmanager
    def computing(precision: str, device: torch.device) -> Iterator[None]:
        assert (precision, device) == ("fp32", META)        # torch has no autocast for it
        yield

    mode = OneDevice()

    def train(run: Run) -> None:
        batch = next(iter(run.batches.epoch(0)))
        assert batch.rows.device.type == "cpu"              # places of samples, in tensors that stay there
        with mode:
            batch = batch.to(run.learner.bound.device)
            losses = run.criterion(run.learner(batch.feed), run.teacher(batch), batch.labels)
            losses.total.backward()     # type: ignore[no-untyped-call]
            average = Average(run.learner.bound.named(), 0.9)
            average.load({name: torch.zeros(value.shape) for name, value in run.learner.bound.named().items()})
            average.update(0)
        held = dict(run.learner.named_parameters())
        assert {value.device.type for value in held.values()} == {"meta"}
        assert sum(value.grad is not None for value in held.values()) > len(held) / 2
        raise DoneError

    for module in (learner, teacher):
        monkeypatch.setattr(module, "computing", computing)
    monkeypatch.setattr(training, "device_of", lambda name: META)
    monkeypatch.setattr(training, "train", train)

    def make(student: Model, other: Model, data: CalibrationSet, config: DistillConfig) -> int:
        with pytest.raises(DoneError):
            distill(student, other, data, config=dataclasses.replace(config, device="cuda"))
        return mode.seen

    return make


def placed(width: int) -> Model:
    example = {"words": np.ones((2, 4), np.int64), "sound": np.ones((2, 8), np.float32)}
    return export_model(Placed(width).eval(), name="placed", example=example)


def samples(model: Model) -> CalibrationSet:
    rng = np.random.default_rng(0)
    feed = {"words": rng.integers(1, 9, (16, 4)), "sound": rng.normal(size=(16, 8)).astype(np.float32)}
    return open_set([{**feed, "target": rng.integers(0, 3, 16)}], model.inputs)


def test_a_step_computes_where_it_is_told_to(step_elsewhere: Callable[..., int]) -> None:
    """With projections, since the student is narrower, and every loss that the two have."""
    student, other = placed(6), placed(10)
    config = dataclasses.replace(ALL, label_weight=1.0)
    assert step_elsewhere(student, other, samples(other), config) > 100


def test_a_quantized_student_is_moved_whole() -> None:
    """Its quantizers look at values, which ``meta`` has none of: so only where everything is."""
    model = placed(6)
    bound = bind(quantize(model, samples(model), scheme="x86-vnni").model, device=META)
    held = [value for part in bound.module.modules() for value in (*part._buffers.values(), *part._parameters.values(),
                                                                   *vars(part).values())]  # fmt: skip
    tensors = [value for value in held if isinstance(value, Tensor)]
    assert len(tensors) > 30
    assert {value.device.type for value in tensors} == {"meta"}


@pytest.mark.parametrize("form", ["at once", "token by token"])
def test_so_does_a_decoder(step_elsewhere: Callable[..., int], form: str) -> None:
    network = captioner.network()
    model = captioner.model(network if form == "at once" else Last(network))
    data = open_set([{"image": captioner.pictures(16)}], model.inputs)
    assert step_elsewhere(model, model, data, dataclasses.replace(ALL, relation_weight=0.0)) > 100


def test_a_tensor_left_behind_is_found(step_elsewhere: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    from compress.distill import bound

    monkeypatch.setattr(bound, "place", lambda module, device: None)
    model = placed(6)
    with pytest.raises((AssertionError, RuntimeError), match="meta"):
        step_elsewhere(model, model, samples(model), ALL)


def test_no_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(CompressError, match=r"device is 'cuda', but torch .* finds no GPU here: use 'cpu'"):
        device_of("cuda")


def test_more_processes_than_gpus_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(CompressError, match="this is process 3 of this machine, which has 2 GPUs"):
        device_of("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")
def test_a_gpu_teaches_what_the_processor_does() -> None:
    model = placed(6)
    data = samples(model)
    student = with_weights(model, {name: value * 0.9 for name, value in model.weights.items()
                                   if value.is_floating_point()})  # fmt: skip
    results = [distill(student, model, data, config=dataclasses.replace(ALL, epochs=3, device=device))
               for device in ("cpu", "cuda")]  # fmt: skip
    for name, value in results[0].model.weights.items():
        other = results[1].model.weights[name]
        assert other.device.type == "cpu"
        np.testing.assert_allclose(value.detach(), other.detach(), atol=1e-3, err_msg=name)
