"""Modules with one thing wrong each, and one with nothing wrong."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own name
from torch import Tensor, nn


class Around(nn.Module):
    """``inner`` inside another module, so that its path has a name."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Healthy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # the line to find
            return x * 2
        return x


class Slices(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        length = int(x.max().item())
        return x[:, :length]


class ThroughNumpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy() * 2)


class Packs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.full((len(x),), 5), batch_first=True)
        return self.lstm(packed)[1][0][0]


class FixesLength(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.position  # six places


class FixesBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(3, 4, 1).sum(2)


class Selects(nn.Module):
    """A boolean mask as an index, inside the model."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x[x[:, 0] > 0].sum(0)


class ReturnsSelected(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.nonzero(x)


class NeedsFive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Ignores(nn.Module):
    """Looks at the picture alone, its word multiplied away."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.heard = nn.Linear(4, 3), nn.Embedding(10, 3)

    def forward(self, picture: Tensor, word: Tensor) -> Tensor:
        return self.seen(picture) + 0.0 * self.heard(word).mean(1)


class Spare(nn.Module):
    """A layer that is called for nothing, one that never is, and one that is used under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.thrown, self.never = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.used.weight

    def forward(self, x: Tensor) -> Tensor:
        self.thrown(x)
        return self.tied(self.used(x))


class DividesByZero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        shifted = x + 2
        return shifted / (x - x) - shifted / (x - x)


class BatchStatistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class Mixes(nn.Module):
    """A reshape in the wrong order: every row holds values of other samples."""

    def forward(self, x: Tensor) -> Tensor:
        return x.t().reshape(x.shape[0], 4)


class Similarity(nn.Module):
    """A dual encoder's: every image against every text of the batch."""

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        return image @ text.t()


class Drops(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=True)


class Unwritable(nn.Module):
    """An operator that ONNX does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


class Determinant(nn.Module):
    """An ONNX operator that ONNX Runtime has and OpenVINO has not."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.det(x.unsqueeze(1) * x.unsqueeze(2))


class Activates(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)


class Large(nn.Module):
    """Beyond 65504 in the middle, small at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x * 1e6) * 1e-6


class Masked(nn.Module):
    """-3.4e38 and -inf where a mask says so, which is no overflow."""

    def forward(self, x: Tensor) -> Tensor:
        scores = x.masked_fill(x < 0, torch.finfo(torch.float32).min)
        return scores.masked_fill(x < -1, -torch.inf).softmax(-1)


class Attends(nn.Module):
    """An embedding, a product of two activations, and a layer that can be int8."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.query = nn.Embedding(10, 8), nn.Linear(8, 8)

    def forward(self, word: Tensor) -> Tensor:
        words = self.words(word)
        return self.query(words) @ words.transpose(1, 2)


def changed(module: Any, **values: Tensor) -> Any:
    """The module with these parameters in place of its own; a dotted name has ``__`` for its dots."""
    with torch.no_grad():
        for name, value in values.items():
            module.get_parameter(name.replace("__", ".")).copy_(value)
    return module
