"""``nn.MultiheadAttention`` with layers of its own: the same results, and heads that go."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calibration import open_set
from compress.errors import CompressError
from compress.factory import build_module
from compress.loading import load
from compress.model import Input, Model
from compress.modelfile import write_model
from compress.program import program_runner
from compress.prune import PruneConfig, load_into, prunable, prune
from compress.prune.multihead import DividedAttention, find_packed
from compress.prune.standins import put
from compress.saving import save
from tests.compress.huggingface.folders import bundle, opened

LENGTH, KEYS, WIDTH, HEADS = 5, 7, 24, 4
HIDDEN = torch.tensor([[False] * 7, [False] * 4 + [True] * 3])
MASKS = {
    "none": {},
    "causal": {"attn_mask": nn.Transformer.generate_square_subsequent_mask(7)[:LENGTH], "is_causal": True},
    "booleans": {"attn_mask": torch.ones(LENGTH, KEYS).triu(2).bool(), "key_padding_mask": HIDDEN},
    "floats": {"attn_mask": torch.linspace(-1, 1, LENGTH * KEYS).view(LENGTH, KEYS),
               "key_padding_mask": torch.where(HIDDEN, -torch.inf, 0.0)},
    "padding": {"key_padding_mask": HIDDEN},
    "each head": {"attn_mask": torch.linspace(-1, 1, 2 * HEADS * LENGTH * KEYS).view(2 * HEADS, LENGTH, KEYS)},
}


def divided(attention: nn.MultiheadAttention) -> DividedAttention:
    owner = nn.ModuleDict({"it": copy.deepcopy(attention)})
    put(owner, "multihead", ["it"])
    found = owner["it"]
    assert isinstance(found, DividedAttention)
    return found


def attention(**settings: object) -> nn.MultiheadAttention:
    packed = nn.MultiheadAttention(WIDTH, HEADS, **settings).eval()  # type: ignore[arg-type]
    for parameter in packed.parameters():
        nn.init.normal_(parameter, std=0.3)      # torch's biases are zeros
    return packed


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("form", ["batch first", "length first", "other widths", "no bias"])
def test_results_are_those_of_torch(mask: str, form: str) -> None:
    widths = {"kdim": 12, "vdim": 20} if form == "other widths" else {}
    packed = attention(batch_first=form != "length first", bias=form != "no bias", **widths)
    own = divided(packed)
    query, key = torch.randn(2, LENGTH, WIDTH), torch.randn(2, KEYS, widths.get("kdim", WIDTH))
    given = [query, key, torch.randn(2, KEYS, widths["vdim"]) if widths else key + 1]
    if form == "length first":
        given = [one.transpose(0, 1) for one in given]
    for need, average in itertools.product((False, True), repeat=2):
        settings = {"need_weights": need, "average_attn_weights": average, **MASKS[mask]}
        expected, weights = packed(*given, **settings)
        found, own_weights = own(*given, **settings)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert (own_weights is None) == (not need)
        if need:
            torch.testing.assert_close(own_weights, weights, rtol=1e-5, atol=1e-6)
    assert own.embed_dim == WIDTH
    assert own.head_dim == WIDTH // HEADS


def test_without_a_batch_and_with_dropout_in_training() -> None:
    packed = attention(dropout=0.5)
    own = divided(packed)
    query, key = torch.randn(LENGTH, WIDTH), torch.randn(KEYS, WIDTH)
    for one, other in zip(packed(query, key, key, key_padding_mask=HIDDEN[1]),
                          own(query, key, key, key_padding_mask=HIDDEN[1]), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)
    torch.manual_seed(1)
    _, weights = own.train()(query, key, key, average_attn_weights=False)
    assert weights is not None
    assert 0.3 < float((weights == 0).float().mean()) < 0.7
    assert not torch.equal(*(own(query, key, key, need_weights=False)[0] for _ in range(2)))
    with pytest.raises(RuntimeError, match="give attn_mask as well"):
        own(query, key, key, is_causal=True)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("norm_first", [False, True])
def test_layers_of_a_transformer_take_it(norm_first: bool) -> None:
    """Their fast paths would read the packed weights; of the padding they make zeros, which no engine does."""
    settings = {"dim_feedforward": 32, "batch_first": True, "norm_first": norm_first}
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, HEADS, **settings), 2).eval()
    decoder = nn.TransformerDecoderLayer(WIDTH, HEADS, **settings).eval()
    both = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    x, hidden = torch.randn(2, KEYS, WIDTH), HIDDEN
    causal = nn.Transformer.generate_square_subsequent_mask(KEYS)
    with torch.no_grad():
        seen = encoder(x, src_key_padding_mask=hidden)
        told = decoder(x, seen, tgt_mask=causal, tgt_is_causal=True, memory_key_padding_mask=hidden)
    paths, _ = find_packed(both)
    assert paths == ["encoder.layers.0.self_attn", "encoder.layers.1.self_attn", "decoder.self_attn",
                     "decoder.multihead_attn"]  # fmt: skip
    put(both, "multihead", paths)
    with torch.no_grad():
        own = encoder(x, src_key_padding_mask=hidden)
        torch.testing.assert_close(own[~hidden], seen[~hidden], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            decoder(x, own, tgt_mask=causal, tgt_is_causal=True, memory_key_padding_mask=hidden), told,
            rtol=1e-5, atol=1e-5)  # fmt: skip


def test_what_stays_whole_says_why() -> None:
    class Own(nn.MultiheadAttention):
        pass

    twins = [nn.MultiheadAttention(8, 2) for _ in range(2)]
    twins[1].in_proj_weight = twins[0].in_proj_weight
    hooked, normed = nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2)
    hooked.register_forward_hook(lambda *_: None)
    nn.utils.parametrizations.weight_norm(normed, "in_proj_weight")
    module = nn.ModuleDict({
        "own": Own(8, 2), "more": nn.MultiheadAttention(8, 2, add_bias_kv=True), "hooked": hooked, "normed": normed,
        "zero": nn.MultiheadAttention(8, 2, add_zero_attn=True), "one": twins[0], "other": twins[1],
        "plain": nn.MultiheadAttention(8, 2),
    })  # fmt: skip
    paths, reasons = find_packed(module)
    assert paths == ["plain"]
    told = {"own": "its class is Own", "more": "add_bias_kv", "zero": "add_zero_attn", "hooked": "hooks are registered",
            "one": "another layer's too", "other": "another layer's too"}
    assert all(words in reasons[path] for path, words in told.items())
    assert set(reasons) >= set(told)
    assert find_packed(twins[0])[1] == {"": "nn.MultiheadAttention that stays whole: it is the model itself, with "
                                            "nothing around it"}
    for path, words in {"zero": "add_zero_attn", "nowhere": "no nn.MultiheadAttention is there"}.items():
        with pytest.raises(CompressError, match=rf"nothing can stand for a layer at '{path}': .*{words}"):
            put(module, "multihead", [path])


def test_one_attention_in_two_places_stays_one() -> None:
    shared = nn.MultiheadAttention(8, 2)
    module = nn.ModuleDict({"one": shared, "two": nn.Sequential(shared)})
    put(module, "multihead", find_packed(module)[0])
    assert module["one"] is module["two"][0]
    assert isinstance(module["one"], DividedAttention)


class Reader(nn.Module):
    """A transformer of torch's own layers over features of any length, with a padding mask."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(6, 32)
        layer = nn.TransformerEncoderLayer(32, 4, dim_feedforward=64, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.look, self.head = nn.MultiheadAttention(32, 4, kdim=6, vdim=6, batch_first=True), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        read = self.encoder(self.enter(x), src_key_padding_mask=x[:, :, 0] > 1.5)
        scores: Tensor = self.head(read + self.look(read, x, x)[0]).mean(1)
        return scores


def build() -> nn.Module:
    torch.manual_seed(0)
    return Reader().eval()


def feed(count: int, length: int = 5, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).normal(size=(count, length, 6)).astype(np.float32)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("reader") / "model.pt"
    save(build(), path, example=feed(2), inputs={"x": Input(dims=("batch", "length"))}, factory=build)
    return load(path)


ATTENTION = ("encoder.layers.0.self_attn", "encoder.layers.1.self_attn", "look")


@pytest.mark.parametrize("importance", ["taylor", "fisher", "activation", "magnitude"])
def test_heads_of_torchs_own_layers_go(saved: Model, tmp_path, importance: str) -> None:
    data = open_set([feed(32)], saved.inputs, name="noise")
    config = PruneConfig(params=0.75, importance=importance, structures=("heads",))  # type: ignore[arg-type]
    result = prune(saved, data, config, factory=f"{__name__}:build")
    heads = {group.name: group.after for group in result.groups}
    assert set(heads) == set(ATTENTION)
    assert sum(heads.values()) < 12
    assert result.check < 1e-5
    assert result.model.channels["multihead"] == sorted(ATTENTION)
    assert result.model.weights["look.q_proj.weight"].shape == (8 * heads["look"], 32)
    assert result.model.weights["look.v_proj.weight"].shape == (8 * heads["look"], 6)
    write_model(result.model, tmp_path / "pruned.pt")
    small = load(tmp_path / "pruned.pt")
    expected = program_runner(small.graph)(feed(3, 8, 1))["output"]
    for module in (build_module(small, f"{__name__}:build"), load_into(build(), small)):
        np.testing.assert_allclose(module(torch.from_numpy(feed(3, 8, 1)["x"])).detach(), expected, atol=1e-5)
    # the whole network, its lost heads silenced, computes the same
    whole = build()
    put(whole, "multihead", ATTENTION)
    for path in ATTENTION:
        before, after = (one.get_submodule(path) for one in (whole, module))
        lost = ~torch.isin(before.q_proj.bias.detach(), after.q_proj.bias.detach())
        lost |= ~torch.isin(before.q_proj.weight.detach()[:, 0], after.q_proj.weight.detach()[:, 0])
        assert int(lost.sum()) == 8 * (4 - heads[path])
        with torch.no_grad():
            before.out_proj.weight[:, lost] = 0
    np.testing.assert_allclose(whole(torch.from_numpy(feed(3, 8, 1)["x"])).detach(), expected, atol=1e-5)


def test_a_pruned_one_is_pruned_again_and_its_width_goes_with_its_streams(saved: Model) -> None:
    data = open_set([feed(32)], saved.inputs, name="noise")
    first = prune(saved, data, PruneConfig(params=0.9, structures=("heads",)), factory=f"{__name__}:build").model
    config = PruneConfig(params=0.6, structures=("heads", "channels", "width"), round_to=4)
    second = prune(first, data, config, factory=f"{__name__}:build")
    assert {group.kind for group in second.groups} == {"heads", "channels", "width"}
    assert second.model.channels["multihead"] == sorted(ATTENTION)
    assert second.model.weights["look.q_proj.weight"].shape[1] == second.model.weights["enter.weight"].shape[0] < 32
    again = load_into(build(), second.model)
    np.testing.assert_allclose(again(torch.from_numpy(feed(3)["x"])).detach(),
                               program_runner(second.model.graph)(feed(3))["output"], atol=1e-5)


class Writer(nn.Module):
    """A decoder layer of torch's, length first, over numbers of any length; each looks at those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.see, self.head = nn.Linear(6, 32), nn.Linear(4, 32), nn.Linear(32, 3)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(32, 4, dim_feedforward=64), 2)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """``(batch, length, 6)`` and ``(batch, 3, 4)`` to ``(batch, length, 3)``."""
        told, memory = self.enter(x).transpose(0, 1), self.see(seen).transpose(0, 1)
        mask = torch.full((x.shape[1], x.shape[1]), -torch.inf).triu(1)
        scores: Tensor = self.head(self.decoder(told, memory, tgt_mask=mask, tgt_is_causal=True).transpose(0, 1))
        return scores


def build_writer() -> nn.Module:
    torch.manual_seed(0)
    return Writer().eval()


@pytest.mark.slow
@pytest.mark.parametrize("make", [build, build_writer])
def test_engines_of_what_is_left_compute_what_it_does(tmp_path: Path, make: Callable[[], nn.Module]) -> None:
    given = feed(2) if make is build else {**feed(2), "seen": feed(2, 3, 1)["x"][:, :, :4]}
    dims = {name: Input(dims=("batch", "length") if name == "x" else ("batch",)) for name in given}
    save(make(), tmp_path / "model.pt", example=given, inputs=dims, factory=make)
    model = load(tmp_path / "model.pt")
    data = open_set([{name: np.concatenate([value] * 8) for name, value in given.items()}], model.inputs, name="some")
    config = PruneConfig(params=0.7, structures=("heads", "channels", "width"), importance="activation", round_to=4)
    result = prune(model, data, config, factory=f"{__name__}:{make.__name__}")
    heads = [group for group in result.groups if group.kind == "heads"]
    assert len(heads) == (3 if make is build else 4)
    assert any(group.after < 4 for group in heads)
    longer = {**given, "x": feed(2, 7, 2)["x"]}
    with torch.no_grad():
        expected = load_into(make(), result.model)(**{name: torch.from_numpy(one) for name, one in longer.items()})
    for target in ("onnxruntime-cpu", "openvino-cpu"):
        with opened(bundle(result.model, tmp_path / target, target)) as session:
            np.testing.assert_allclose(session.run(longer)["output"], expected.numpy(), rtol=1e-4, atol=1e-4)


class Peeking(Reader):
    """Reads the packed weights by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.look.q_proj_weight.mean()


def build_peeking() -> nn.Module:
    torch.manual_seed(0)
    return Peeking().eval()


def test_a_network_that_reads_the_packed_weights_keeps_its_heads(tmp_path) -> None:
    save(build_peeking(), tmp_path / "model.pt", example=feed(2), factory=build_peeking)
    groups, skipped = prunable(load(tmp_path / "model.pt"), factory=f"{__name__}:build_peeking")
    assert [(group.name, group.kind) for group in groups] == [
        (f"encoder.layers.{layer}.linear1", "channels") for layer in range(2)]
    assert "'DividedAttention' object has no attribute 'q_proj_weight'" in skipped["look"]


def test_two_of_four_weights_of_each_of_its_layers_go(saved: Model) -> None:
    """Of queries, keys and values too, which torch packs into what is no layer's weight."""
    data = open_set([feed(32)], saved.inputs, name="noise")
    result = prune(saved, data, PruneConfig(sparsity="2:4", target="rtx"), factory=f"{__name__}:build")
    layers = ("q_proj", "k_proj", "v_proj", "out_proj")
    names = {f"{path}.{layer}.weight" for path in ATTENTION for layer in layers}
    assert names - {"look.k_proj.weight", "look.v_proj.weight"} <= set(result.sparse)   # six inputs are no fours
    fours = result.model.weights["encoder.layers.0.self_attn.k_proj.weight"].reshape(-1, 4)
    assert ((fours != 0).sum(1) == 2).all()
    assert load_into(build(), result.model).look.q_proj.weight.shape == (32, 32)


def test_a_channel_map_of_another_network_is_refused(saved: Model) -> None:
    data = open_set([feed(32)], saved.inputs, name="noise")
    small = prune(saved, data, PruneConfig(params=0.9, structures=("heads",)), factory=f"{__name__}:build").model
    with pytest.raises(CompressError, match=r"nothing can stand for a layer at 'encoder\.layers\.0\.self_attn'"):
        load_into(nn.Linear(2, 2), small)
    for wrong in (7, "look", [["look"]]):
        with pytest.raises(CompressError, match=r"the channel map's 'multihead' is .*, expected a list of"):
            load_into(build(), dataclasses.replace(small, channels={**small.channels, "multihead": wrong}))
