"""Tables lose rows, layers that score ids lose outputs, and the ids keep their numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from compress.errors import CompressError
from compress.prune.channels import apply_channels
from compress.prune.rows import keep_rows


class Speaker(nn.Module):
    """Scores of six tokens; its table is the layer's weight, or one of its own."""

    def __init__(self, *, tied: bool, bias: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 2, padding_idx=5)
        self.head = nn.Linear(2, 6, bias=bias)
        with torch.no_grad():
            self.table.weight.copy_(torch.arange(12.0).view(6, 2))
            self.head.weight.copy_(torch.arange(12.0).view(6, 2) - 6)
            if bias:
                self.head.bias.copy_(torch.arange(6.0))
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        scores: Tensor = self.head(self.table(ids))
        return scores


IDS = torch.tensor([[0, 1, 2, 3, 4, 5]])


def test_rows_that_are_gone_share_their_mean() -> None:
    module = Speaker(tied=False)
    keep_rows(module, ["table"], [], [0, 2, 5], None)
    expected = torch.tensor([[0, 1], [4, 5], [10, 11], [(2 + 6 + 8) / 3, (3 + 7 + 9) / 3]])
    torch.testing.assert_close(module.table.weight.data, expected)
    assert module.table.num_embeddings == 4
    assert module.table.padding_idx == 2
    assert module.table.rows.tolist() == [0, 3, 1, 3, 3, 2]
    torch.testing.assert_close(module.table(IDS)[0, [0, 2, 5]], torch.tensor([[0.0, 1], [4, 5], [10, 11]]))


def test_or_take_the_row_of_an_unknown_token() -> None:
    module = Speaker(tied=False)
    keep_rows(module, ["table"], [], [0, 2, 5], 2)
    assert module.table.weight.tolist() == [[0, 1], [4, 5], [10, 11]]
    assert module.table(IDS)[0].tolist() == [[0, 1], [4, 5], [4, 5], [4, 5], [4, 5], [10, 11]]


@pytest.mark.parametrize("bias", [False, True])
def test_scores_stay_where_they_were_and_those_that_are_gone_are_below_all(bias: bool) -> None:
    module = Speaker(tied=False, bias=bias)
    ids = torch.tensor([[0, 2]])
    before = module(ids)
    keep_rows(module, ["table"], ["head"], [0, 2, 5], None)
    after = module(ids)
    assert module.head.weight.shape == (3, 2)
    assert module.head.out_features == 3
    torch.testing.assert_close(after[..., [0, 2, 5]], before[..., [0, 2, 5]])
    least = before[..., [0, 2, 5]].amin(-1, keepdim=True) - 1
    torch.testing.assert_close(after[..., [1, 3, 4]], least.expand(-1, -1, 3))


@pytest.mark.parametrize("stand_in", [None, 0])
def test_what_was_tied_stays_tied(stand_in: int | None) -> None:
    module = Speaker(tied=True, bias=True)
    ids = torch.tensor([[0, 2, 5]])
    before = module(ids)
    keep_rows(module, ["table"], ["head"], [0, 2, 5], stand_in)
    assert module.head.weight is module.table.weight
    assert len(module.table.weight) == (4 if stand_in is None else 3)
    after = module(ids)
    torch.testing.assert_close(after[..., [0, 2, 5]], before[..., [0, 2, 5]])
    assert (after[..., [1, 3, 4]] < after[..., [0, 2, 5]].amin(-1, keepdim=True)).all()
    torch.testing.assert_close(copy.deepcopy(module)(ids), after)


def test_a_fresh_network_takes_them() -> None:
    small, fresh = Speaker(tied=True, bias=True), Speaker(tied=True, bias=True)
    keep_rows(small, ["table"], ["head"], [0, 2, 5], None)
    weights = {name: value.detach().clone() for name, value in small.state_dict().items()}
    apply_channels(fresh, {"vocabulary": {"tables": ["table"], "heads": ["head"]}}, weights)
    fresh.load_state_dict(weights)
    assert fresh.head.weight is fresh.table.weight
    assert fresh.table.padding_idx == 2
    torch.testing.assert_close(fresh(IDS), small(IDS))


def test_a_map_of_another_network_is_refused() -> None:
    weights = {"table.rows": torch.zeros(6, dtype=torch.int64)}
    with pytest.raises(CompressError, match="names 'head' among its tables, which is no Embedding of the factory's"):
        apply_channels(Speaker(tied=False), {"vocabulary": {"tables": ["head"], "heads": []}}, weights)
    with pytest.raises(CompressError, match=r"names 'head' among its heads, .* lacks its map of ids"):
        apply_channels(Speaker(tied=False), {"vocabulary": {"tables": ["table"], "heads": ["head"]}}, weights)
