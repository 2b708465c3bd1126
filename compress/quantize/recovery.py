"""What can be done for the accuracy of an int8 model without training: the float program's weights, changed.

Channels are scaled before ranges are chosen, and integers and biases after, because they depend on the ranges. The
result is a float program with its ranges, as without: whatever follows is the same.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from compress.quantize import QuantizeConfig

if TYPE_CHECKING:
    from compress.model import Model
    from compress.quantize.samples import Samples
    from runtimes.spec import Feed

SEEN = 64               # samples that channels' sizes are taken from, to equalise them
AT_ONCE = 4             # samples in a batch: the largest activations of pictures then stay in the processor's cache


def scale_channels(
    model: Model, sets: Mapping[str, Samples], config: QuantizeConfig
) -> tuple[Model, dict[str, int]]:
    """``model`` with the same function and ranges that suit integers better; and how many layers had channels scaled.

    First those of layers behind which nothing but ReLU lies, then those of norms.
    """
    from compress.quantize.equalize import equalize
    from compress.quantize.smooth import smooth

    done: dict[str, int] = {}
    if config.equalize:
        model, layers = equalize(model, given(model, sets, SEEN))
        done |= {"equalized": layers} if layers else {}
    if config.smooth:
        every = max(len(samples) for samples in sets.values())
        model, done["smoothed"] = smooth(model, given(model, sets, every), config.smooth)
    return model, done


def given(model: Model, sets: Mapping[str, Samples], most: int) -> Iterator[tuple[str, Feed]]:
    """Graph and what it is run on, of ``most`` samples from all over each set."""
    from compress.quantize.feeds import feeds_of

    some = {name: dataclasses.replace(own, used=own.used.pick(range(0, len(own), math.ceil(len(own) / most))))
            for name, own in sets.items()}  # fmt: skip
    for _, _, found in feeds_of(model, some, AT_ONCE):
        for name, feeds in found.items():
            for feed in feeds:
                yield name, feed


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
