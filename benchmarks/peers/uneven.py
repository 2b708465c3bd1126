"""The dual encoder as long training leaves a MobileNet: channels of one layer that differ by orders of magnitude.

There the integers of a whole weight leave nothing of the small channels, which the network needs as much as the large
ones: Krishnamoorthi 2018, arXiv:1806.08342, section 3.1.3; Nagel et al. 2019, arXiv:1906.04721, figure 2. A minute of
training does not get there. So each channel is divided by a number and what reads it multiplied, which is the same
function, as Nagel et al. note (section 4.1), up to where ReLU6 begins to clip; and the training goes on from there.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from compress.zoo import Progress
from compress.zoo.dual_encoder import DUAL_ENCODER, DualEncoder, train
from compress.zoo.fitting import FitConfig
from compress.zoo.samples import Parts

ORDERS = 2.0        # decimal orders between the least and the largest factor
AFTER = 3           # epochs that follow, at a tenth of the rate


def train_uneven(network: nn.Module, parts: Parts, config: FitConfig, progress: Progress | None = None) -> int:
    """Train ``network`` in place, make it uneven, train on; the number of steps."""
    assert isinstance(network, DualEncoder)
    steps = train(network, parts, config, progress)
    make_uneven(network, torch.Generator().manual_seed(config.seed))
    return steps + train(network, parts, dataclasses.replace(config, epochs=AFTER, rate=config.rate / 10), progress)


def make_uneven(network: DualEncoder, random: torch.Generator) -> None:
    """Divide what each batch norm of the image tower gives by 1 to 100, and multiply the weights that read it."""
    tower = network.image_encoder
    layers = [layer for layer in tower.modules() if isinstance(layer, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    with torch.no_grad():
        for norm, reader in zip(layers[1::2], layers[2::2], strict=True):
            assert isinstance(norm, nn.BatchNorm2d)
            factor = 10 ** (ORDERS * torch.rand(norm.num_features, generator=random))
            norm.weight /= factor
            norm.bias /= factor
            reader.weight *= _for_inputs(reader, factor)


def _for_inputs(reader: nn.Module, factor: Tensor) -> Tensor:
    """``factor`` ``(channels,)`` in the shape of the weight that reads these channels."""
    if isinstance(reader, nn.Linear):
        return factor.repeat_interleave(reader.in_features // len(factor))
    assert isinstance(reader, nn.Conv2d)
    return factor[:, None, None, None] if reader.groups > 1 else factor[None, :, None, None]


assert DUAL_ENCODER.composed is not None
UNEVEN = dataclasses.replace(
    DUAL_ENCODER, name="dual-encoder-uneven",
    composed=dataclasses.replace(DUAL_ENCODER.composed, train=train_uneven),
)  # fmt: skip
