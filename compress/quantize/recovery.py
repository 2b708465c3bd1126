"""What can be done for the accuracy of an int8 model without training: the float program's weights, changed.

Channels are scaled before ranges are chosen, and integers and biases after, because they depend on the ranges. The
result is a float program with its ranges, as without: whatever follows is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from compress.quantize import QuantizeConfig

if TYPE_CHECKING:
    from compress.model import Model
    from compress.quantize.samples import Samples


def scale_channels(
    model: Model, sets: Mapping[str, Samples], config: QuantizeConfig
) -> tuple[Model, dict[str, int]]:
    """``model`` with the same function and ranges that suit integers better; and how many layers had channels scaled.

    First between the weights of neighbouring layers, then from activations to the weights that read them.
    """
    from compress.quantize.collect import BATCH
    from compress.quantize.equalize import equalize
    from compress.quantize.feeds import feeds_of
    from compress.quantize.smooth import smooth

    done: dict[str, int] = {}
    if config.equalize:
        model, done["equalized"] = equalize(model)
    if config.smooth:
        given = ((name, feed) for _, _, found in feeds_of(model, sets, BATCH)
                 for name, feeds in found.items() for feed in feeds)  # fmt: skip
        model, done["smoothed"] = smooth(model, given, config.smooth)
    return model, done


def choose_integers(
    model: Model, sets: Mapping[str, Samples], config: QuantizeConfig,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Model, dict[str, int]]:  # fmt: skip
    """A quantized ``model`` with weights on their grids and biases corrected; and how many layers that was done for."""
    from compress.quantize.bias import correct_biases
    from compress.quantize.feeds import kept_feeds
    from compress.quantize.gptq import round_with_gptq
    from compress.quantize.rounding import learn_rounding

    done: dict[str, int] = {}
    if config.rounding == "nearest" and not config.correct_bias:
        return model, done
    feeds = kept_feeds(model, sets)
    if config.rounding == "learned":
        model, done["rounded"] = learn_rounding(model, feeds, progress)
    elif config.rounding == "gptq":
        model, done["rounded"] = round_with_gptq(model, feeds)
    if config.correct_bias:
        model, done["corrected"] = correct_biases(model, feeds)
    return model, done
