"""Heads by the names of their layers; those of queries that share keys and values go together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

from calibration import open_set
from compress.factory import build_module
from compress.loading import load
from compress.prune import PruneConfig, prunable, prune
from compress.prune.check import trial
from compress.prune.heads import find_head_groups
from compress.saving import save


class Grouped(nn.Module):
    """Eight heads of four channels, two for each key and value."""

    def __init__(self, projections: str) -> None:
        super().__init__()
        self.num_heads, self.num_key_value_heads, self.num_key_value_groups, self.head_dim = 8, 4, 2, 4
        if projections == "fused":
            self.q_size, self.kv_size = 32, 16
            self.qkv_proj = nn.Linear(24, 64)
        elif projections == "paired":
            self.to_q, self.to_kv = nn.Linear(24, 32), nn.Linear(24, 32)
        else:
            self.q_proj, self.k_proj, self.v_proj = nn.Linear(24, 32), nn.Linear(24, 16), nn.Linear(24, 16)
        self.o_proj = nn.Linear(32, 24)

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "qkv_proj"):
            q, k, v = self.qkv_proj(x).split([self.q_size, self.kv_size, self.kv_size], -1)
        elif hasattr(self, "to_kv"):
            q, (k, v) = self.to_q(x), self.to_kv(x).chunk(2, -1)
        else:
            q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        q = q.view(*x.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)
        k, v = (one.view(*x.shape[:2], self.num_key_value_heads, self.head_dim).transpose(1, 2)
                .repeat_interleave(self.num_key_value_groups, 1) for one in (k, v))
        return self.o_proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Network(nn.Module):
    def __init__(self, projections: str) -> None:
        super().__init__()
        self.attention, self.head = Grouped(projections), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.attention(x)).mean(1)


def build(*, projections: str = "separate") -> nn.Module:
    torch.manual_seed(0)
    return Network(projections).eval()


def test_a_unit_is_a_key_and_value_with_all_heads_that_read_it() -> None:
    ((group,),) = find_head_groups(Grouped("separate"))[0]
    assert group.units == 4
    assert [(edit.path, edit.role, edit.index[1]) for edit in group.edits] == [
        ("q_proj", "out", tuple(range(8, 16))), ("k_proj", "out", (4, 5, 6, 7)), ("v_proj", "out", (4, 5, 6, 7)),
        ("o_proj", "in", tuple(range(8, 16)))]  # fmt: skip
    assert group.attributes == {"": {"num_heads": 2, "num_key_value_heads": 1}}
    ((fused,),) = find_head_groups(Grouped("fused"))[0]
    assert [edit.index[1] for edit in fused.edits] == [
        (*range(8, 16), *range(36, 40), *range(52, 56)), tuple(range(8, 16))]
    assert fused.attributes == {"": {"num_heads": 2, "num_key_value_heads": 1, "q_size": 8, "kv_size": 4}}
    ((paired,),) = find_head_groups(Grouped("paired"))[0]
    assert [(edit.path, edit.index[1]) for edit in paired.edits] == [
        ("to_q", tuple(range(8, 16))), ("to_kv", (*range(4, 8), *range(20, 24))), ("o_proj", tuple(range(8, 16)))]


def test_the_width_of_a_head_tells_how_many_there_are() -> None:
    """As in the library's Llama, which looks at nothing else."""
    layer = Grouped("separate")
    for name in ("num_heads", "num_key_value_heads"):
        delattr(layer, name)
    ((group,),) = find_head_groups(layer)[0]
    assert (group.units, group.attributes, group.attention) == (4, {"": {}}, ("",))


@pytest.mark.parametrize("projections", ["separate", "paired", "fused"])
def test_what_is_left_computes_what_the_whole_does_without_them(tmp_path, projections: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 5, 24)).astype(np.float32)
    save(build(projections=projections), tmp_path / "it.pt", example={"x": x[:2]}, factory=build,
         factory_kwargs={"projections": projections})
    model, factory = load(tmp_path / "it.pt"), f"{__name__}:build"
    groups, _ = prunable(model, factory=factory)
    assert [(group.name, group.before) for group in groups] == [("attention", 4)]
    config = PruneConfig(params=0.6, structures=("heads",))
    result = prune(model, open_set([{"x": x}], model.inputs, name="noise"), config, factory=factory)
    own = build_module(result.model, factory)
    left = own.attention
    assert (left.num_heads, left.num_key_value_heads, left.num_key_value_groups, left.head_dim) == (4, 2, 2, 4)
    whole = build(projections=projections)
    gone = ~torch.isin(whole.attention.o_proj.weight[0], left.o_proj.weight[0])
    assert gone.view(4, 8).all(1).tolist().count(True) == 2                     # of the four pairs of heads
    with torch.no_grad():
        whole.attention.o_proj.weight[:, gone] = 0
        torch.testing.assert_close(own(torch.from_numpy(x)), whole(torch.from_numpy(x)), rtol=1e-5, atol=1e-6)
    assert result.check < 1e-6


def test_heads_of_debertas_disentangled_attention(calls) -> None:
    """Its position keys are of the heads too, through the same layers."""
    config = transformers.DebertaV2Config(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=16,
        relative_attention=True, position_buckets=4, max_relative_positions=8, pos_att_type="p2c|c2p",
        share_att_key=True, max_position_embeddings=8)
    module = transformers.DebertaV2Model(config).eval()
    ((group, *_),), skipped, _ = find_head_groups(module)
    assert skipped == {}
    feed = {"forward": [{"input_ids": torch.randint(1, 20, (2, 6))}]}
    assert trial(module, (group,), calls, feed) == group
    assert (group.name, group.units) == ("encoder.layer.0.attention.self", 4)


def test_heads_of_modernbert() -> None:
    config = transformers.ModernBertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=16, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2)
    ((group, *_),), skipped, _ = find_head_groups(transformers.ModernBertModel(config))
    assert (group.name, group.units, skipped) == ("layers.0.attn", 4, {})
    assert [(e.path, e.role) for e in group.edits] == [("layers.0.attn.Wqkv", "out"), ("layers.0.attn.Wo", "in")]
    assert group.edits[0].index[1] == (*range(4, 8), *range(20, 24), *range(36, 40))
