"""A decoder's cache: its tensors by name, the library's objects that hold them, and who may look at whom."""

from __future__ import annotations

import torch

from compress.huggingface.caches import CROSS, PAST, PRESENT, Cache, causal_bias, masked_bias, positions
from runtimes.spec import Dim
from tests.compress.huggingface.folders import transformers

CACHE = Cache(layers=2, heads=3, width=4)


def test_names_and_shapes() -> None:
    assert CACHE.names(PAST) == ["past_key_0", "past_value_0", "past_key_1", "past_value_1"]
    assert CACHE.state()["past_value_1"] == "present_value_1"
    past = Dim("past", 0, 4, 8)
    assert [spec.dims[2] for spec in CACHE.inputs(PAST, past).values() if spec.dims] == [past] * 4
    assert [spec.dims[2:] for spec in CACHE.inputs(CROSS, 5).values() if spec.dims] == [(None,)] * 4
    assert [tuple(value.shape) for value in CACHE.example(CROSS, 2, 5).values()] == [(2, 3, 5, 4)] * 4


def test_the_librarys_objects_hold_the_tensors() -> None:
    feed = {**CACHE.example(PAST, 2, 6), **CACHE.example(CROSS, 2, 5)}
    new = torch.ones(2, 3, 1, 4)
    for held in (CACHE.given(feed), CACHE.crossed(feed)):
        assert held.get_seq_length() == 6
        own = getattr(held, "self_attention_cache", held)
        own.update(new, -new, 1)
        present = CACHE.present(held)
        assert list(present) == CACHE.names(PRESENT)
        assert present["present_key_0"] is feed["past_key_0"]
        torch.testing.assert_close(present["present_key_1"], torch.cat([feed["past_key_1"], new], dim=2))
        torch.testing.assert_close(present["present_value_1"], torch.cat([feed["past_value_1"], -new], dim=2))
    both = CACHE.crossed(feed)
    assert isinstance(both, transformers.EncoderDecoderCache)
    assert both.is_updated == {0: True, 1: True}
    assert both.cross_attention_cache.layers[1].values is feed["cross_value_1"]


def test_who_may_look_at_whom() -> None:
    least = torch.finfo(torch.float32).min
    torch.testing.assert_close(causal_bias(3, 0), torch.tensor([[[[0, least, least], [0, 0, least], [0, 0, 0.0]]]]))
    torch.testing.assert_close(causal_bias(2, 1), torch.tensor([[[[0, 0, least], [0, 0, 0.0]]]]))
    masked = causal_bias(2, 1, torch.tensor([[1, 1, 1], [0, 1, 1]]))
    second = [[least, 0, least], [least, 0, 0]]
    torch.testing.assert_close(masked[:, 0], torch.tensor([[[0, 0, least], [0, 0, 0]], second]))
    torch.testing.assert_close(masked_bias(torch.tensor([[1, 0]])), torch.tensor([[[[0, least]]]]))


def test_where_tokens_stand() -> None:
    """Behind two of the padding, and none."""
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    assert positions(mask, 5, 0).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]]
    assert positions(mask, 2, 3).tolist() == [[1, 2], [3, 4]]
