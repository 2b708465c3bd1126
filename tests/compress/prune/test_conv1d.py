"""GPT-2's layer: a linear one stands for it, whose channels and heads go."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calibration import open_set
from compress.errors import CompressError
from compress.factory import build_module
from compress.loading import load
from compress.model import Input
from compress.modelfile import write_model
from compress.program import program_runner
from compress.prune import PruneConfig, load_into, prune
from compress.prune.conv1d import find_transposed, linear
from compress.prune.standins import put
from compress.saving import save
from tests.compress.huggingface.folders import bundle, opened, transformers

from transformers.pytorch_utils import Conv1D  # isort: skip # behind what skips where it is not installed

LAYERS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


class Told(nn.Module):
    """Five classes of a picture and the words about it, which GPT-2 reads."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.read = transformers.GPT2Model(transformers.GPT2Config(
            vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=4, use_cache=False, bos_token_id=0,
            eos_token_id=1))
        self.head = nn.Linear(40, 5)

    def forward(self, picture: Tensor, words: Tensor) -> Tensor:
        read = self.read(input_ids=words).last_hidden_state.mean(1)
        scores: Tensor = self.head(torch.cat([self.seen(picture), read], 1))
        return scores


def build() -> nn.Module:
    torch.manual_seed(0)
    made = Told().eval()
    with torch.no_grad():       # as the library begins, they are 0
        for name, parameter in made.read.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
    return made


def feed(count: int, length: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"picture": rng.normal(size=(count, 3, 12, 12)).astype(np.float32),
            "words": rng.integers(0, 50, (count, length))}


def test_the_same_function_of_weights_by_hand() -> None:
    layer = Conv1D(2, 3)
    layer.weight.data, layer.bias.data = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.tensor([0.5, -0.5])
    made = linear(layer)
    assert made.weight.tolist() == [[1.0, 3.0, 5.0], [2.0, 4.0, 6.0]]
    assert made.weight.is_contiguous()
    assert made(torch.tensor([[1.0, 0.0, 2.0]])).tolist() == [[11.5, 13.5]] == layer(
        torch.tensor([[1.0, 0.0, 2.0]])).tolist()


def test_which_are_replaced() -> None:
    class Other(Conv1D):
        pass

    one, hooked, computed, twice, same = (Conv1D(4, 4) for _ in range(5))  # a parametrized one is of another class
    hooked.register_forward_hook(lambda *_: None)
    torch.nn.utils.parametrize.register_parametrization(computed, "weight", nn.Identity())
    same.weight = twice.weight
    module = nn.ModuleDict({"one": one, "again": one, "hooked": hooked, "computed": computed, "twice": twice,
                            "same": same, "other": Other(4, 4)})
    paths, reasons = find_transposed(module)
    assert paths == ["one"]
    start = "transformers' Conv1D that stays whole: "
    assert reasons == {"hooked": f"{start}hooks are registered on it",
                       "twice": f"{start}its weights are another layer's too",
                       "same": f"{start}its weights are another layer's too"}
    assert find_transposed(one) == ([], {"": f"{start}it is the model itself, with nothing around it"})
    put(module, "conv1d", paths)
    assert module["one"] is module["again"]
    assert type(module["one"]) is nn.Linear
    with pytest.raises(CompressError, match="nothing can stand for a layer at 'other': no transformers' Conv1D is"):
        put(module, "conv1d", ["other"])


@pytest.mark.slow
def test_heads_and_channels_of_a_gpt2_go(tmp_path: Path) -> None:
    save(build(), tmp_path / "model.pt", example=feed(2), factory=build,
         inputs={"picture": Input(dims=("batch",)), "words": Input(dims=("batch", "length"))})
    model, factory = load(tmp_path / "model.pt"), f"{__name__}:build"
    data = open_set([feed(32)], model.inputs, name="noise")
    config = PruneConfig(params=0.85, structures=("heads",), importance="activation")
    first = prune(model, data, config, factory=factory)
    heads = {group.name: group.after for group in first.groups}
    assert set(heads) == {"read.h.0.attn", "read.h.1.attn"}
    assert min(heads.values()) < 4
    assert first.model.channels == {
        "conv1d": [f"read.h.{at}.{layer}" for at in range(2) for layer in LAYERS],
        "attributes": {name: {"num_heads": left, "split_size": 8 * left} for name, left in heads.items()}}
    config = PruneConfig(params=0.7, structures=("channels", "heads", "width"), importance="activation", round_to=4)
    second = prune(first.model, data, config, factory=factory)
    kinds = {group.name: group.kind for group in second.groups if group.name.startswith("read.")}
    assert kinds == {"read.wte": "width", **{name: "heads" for name, left in heads.items() if left > 1},
                     "read.h.0.mlp.c_fc": "channels", "read.h.1.mlp.c_fc": "channels"}
    assert second.model.channels["conv1d"] == first.model.channels["conv1d"]
    assert max(first.check, second.check) < 1e-5
    small = second.model
    write_model(small, tmp_path / "small.pt")
    small, given = load(tmp_path / "small.pt"), feed(3, 9, 1)
    expected = program_runner(small.graph)(given)["output"]
    for module in (build_module(small, factory), load_into(build(), small)):
        with torch.no_grad():
            own = module(**{name: torch.from_numpy(value) for name, value in given.items()})
        np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-5)
    for target in ("onnxruntime-cpu", "openvino-cpu"):
        with opened(bundle(small, tmp_path / target, target)) as session:
            np.testing.assert_allclose(session.run(given)["output"], expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(CompressError, match=r"at 'read\.h\.0\.attn\.c_attn': no transformers' Conv1D is there"):
        load_into(nn.Linear(2, 2), small)
    wrong = dataclasses.replace(small, channels={**small.channels, "conv1d": "read"})
    with pytest.raises(CompressError, match=r"the channel map's 'conv1d' is 'read', expected a list of module paths"):
        load_into(build(), wrong)
