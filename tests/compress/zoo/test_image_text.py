"""The late-fusion classifier: its texts mean what their answers say, frozen towers stay."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from calibration import open_set
from compress.errors import CompressError
from compress.prune import PruneConfig, prune
from compress.saving import save
from compress.zoo.fitting import FitConfig, fit
from compress.zoo.image_text import DIGITS, IMAGE_TEXT, LABELS, VOCABULARY, build, samples
from compress.zoo.tasks import loss_of

NUMBERS = dict(zip(DIGITS, range(10), strict=True))


def _expected(words: list[str], digit: int) -> int:
    """The answer, from the words that tell the phrases apart."""
    number = next(NUMBERS[word] for word in words if word in NUMBERS)
    if {"plus", "add"} & set(words) or words[1] == "more":
        return digit + number
    if {"difference", "far"} & set(words):
        return abs(digit - number)
    return max(digit, number) if {"larger", "more"} & set(words) else min(digit, number)


def test_every_answer_is_what_the_text_asks_of_the_digit():
    shown = {(image / 16).astype(np.float32).tobytes(): int(digit)
             for image, digit in zip(load_digits().images, load_digits().target, strict=True)}  # fmt: skip
    seen = set()
    for rows, target in samples()["validation"]:
        for image, text, answer in zip(rows["image"], rows["text"], target, strict=True):
            words = [VOCABULARY[index] for index in text]
            assert answer == _expected(words, shown[image.tobytes()]), words
            seen.add(len(words))
    assert seen == {3, 4, 5, 6, 7, 8}
    assert LABELS[12] == "twelve"


@pytest.mark.parametrize("frozen", [("image",), ("image", "text"), ()])
def test_a_frozen_tower_stays_as_it_is(frozen):
    torch.manual_seed(0)
    network = build(freeze=frozen)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fit(network, samples()["calibration"], lambda *given: loss_of(*given, tasks=IMAGE_TEXT.tasks), FitConfig(epochs=1))
    moved = {name.partition("_encoder")[0].partition(".")[0] for name, value in network.state_dict().items()
             if not torch.equal(value, before[name])}  # fmt: skip
    assert moved == {"image", "text", "head"} - set(frozen)


def test_another_tower_is_refused():
    with pytest.raises(CompressError, match="freeze names 'audio': expected some of image, text"):
        build(freeze=("audio",))


def test_a_network_with_a_frozen_tower_is_pruned_as_any_other(tmp_path):
    torch.manual_seed(0)
    frozen = build(freeze=("image",))
    ((rows, _), *_) = samples()["calibration"]
    model = save(
        frozen, tmp_path / "model.pt", example={name: array[:2] for name, array in rows.items()},
        inputs=IMAGE_TEXT.inputs, factory=IMAGE_TEXT.factory, factory_kwargs={"freeze": ["image"]},
    )  # fmt: skip
    result = prune(model, open_set([rows], model.inputs), PruneConfig(macs=0.8, samples=16))
    assert result.macs_after <= 0.8 * result.macs_before
    smaller = {component.name: component.params_after < component.params_before for component in result.components}
    assert smaller == {"image_encoder": True, "text_encoder": True, "head": True}
