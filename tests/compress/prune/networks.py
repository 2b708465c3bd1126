"""Small networks whose pruned shapes can be worked out by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.prune.groups import Edit, Group


class Perceptron(nn.Module):
    """8 -> 32 -> 16 -> 4: MACs 8*32 + 32*16 + 16*4 = 832."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, 32), nn.Linear(32, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x).relu()).sigmoid())  # sigmoid(0) is not 0, and need not be


class Convolutions(nn.Module):
    """conv - batch norm - relu - conv - flatten - linear, on 4 x 4 images."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = (
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.Conv2d(16, 8, 3, padding=1),
        )
        self.last = nn.Linear(8 * 16, 3)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.two(self.norm(self.one(x)).relu()).relu().flatten(1))


class Attention(nn.Module):
    """Four heads of eight channels; ``heads`` is read at run time."""

    def __init__(self, fixed: bool = False) -> None:
        super().__init__()
        self.heads, self.head_dim, self.fixed = 4, 8, fixed
        self.q, self.k, self.v, self.out = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        heads = 4 if self.fixed else self.heads
        q, k, v = (layer(x).unflatten(-1, (heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.out(functional.scaled_dot_product_attention(q, k, v, scale=8**-0.5).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A pre-norm transformer block, width 32, feed-forward 64."""

    def __init__(self, fixed: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.attention, self.up, self.down = Attention(fixed), nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Branches(nn.Module):
    """``cat(a, b) + c``: c's first 24 channels go with a's, its last 16 with b's; ``side`` reads b's as well."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 24), nn.Linear(8, 16), nn.Linear(8, 40)
        self.join, self.side = nn.Linear(40, 4), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        b = self.b(x).relu()
        return self.join((torch.cat([self.a(x).relu(), b], -1) + self.c(x)).relu()) + self.side(b)


class Gated(nn.Module):
    """One layer makes the channels and their gates: channel i goes with gate 24 + i."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 48), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.up(x).chunk(2, -1)
        return self.down(value * functional.silu(gate))


class Separable(nn.Module):
    """conv 1x1 - depthwise - conv 1x1 - transposed - mean - linear."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.depthwise = nn.Conv2d(1, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.two, self.wider, self.last = nn.Conv2d(16, 24, 1), nn.ConvTranspose2d(24, 16, 2, 2), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.depthwise(self.one(x)).relu()).relu()
        return self.last(self.wider(x).relu().mean((2, 3)))


class Softmax(nn.Module):
    """The hidden channels are mixed before the next layer reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).softmax(-1))


class Recurrent(nn.Module):
    """Layers whose size is tied to an LSTM or to nn.MultiheadAttention, and one feed-forward pair."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.enter = nn.Embedding(10, 16), nn.Linear(16, 16)
        self.lstm, self.attention = nn.LSTM(16, 16, batch_first=True), nn.MultiheadAttention(16, 2, batch_first=True)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(self.enter(self.embedding(x)).relu())
        y = y + self.attention(y, y, y, need_weights=False)[0]
        return self.down(self.up(y).relu())


def pair() -> tuple[nn.Module, Group]:
    """Two hidden units with easy numbers: y = 5 (1 x + 2) + 7 (3 x + 0), and a bias."""
    module = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.0], [3.0]]))
        module[0].bias.copy_(torch.tensor([2.0, 0.0]))
        module[1].weight.copy_(torch.tensor([[5.0, 7.0]]))
    edits = Edit(path="0", role="out", index=((0,), (1,))), Edit(path="1", role="in", index=((0,), (1,)))
    module.forward = lambda x: module[1](module[0](x))  # a sequential calls its input "input"
    return module, Group(name="0", kind="channels", units=2, edits=edits)


class Sequence(nn.Module):
    """A bidirectional LSTM of two layers over embeddings; its outputs and last states are read."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 16)
        self.rnn = kind(16, 16, num_layers=2, bidirectional=True, batch_first=True)
        self.up, self.last = nn.Linear(32, 24), nn.Linear(24 + 32, 4)

    def forward(self, x: Tensor) -> Tensor:
        y, state = self.rnn(self.table(x))
        state = state[0] if isinstance(state, tuple) else state
        return self.last(torch.cat([self.up(y).relu().mean(1), state[-2], state[-1]], -1))


class Tower(nn.Module):
    """Embeddings, a position and a start token that are parameters, two blocks, a norm; the head may be the table."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.table, self.position = nn.Embedding(12, 32), nn.Parameter(torch.randn(1, 6, 32))
        self.start = nn.Parameter(torch.randn(1, 1, 32))
        self.scale = nn.Parameter(torch.tensor([1.5]))
        self.blocks, self.norm = nn.ModuleList([Block(), Block()]), nn.LayerNorm(32)
        self.head = nn.Linear(32, 12, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.start.expand(len(x), -1, -1), self.table(x)], 1) + self.position * self.scale
        for block in self.blocks:
            y = block(y)
        return self.head(self.norm(y[:, 0]))
