import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from compress.distill.kinds import outputs_of, paired, sharpness_of
from compress.metrics import get_metric
from compress.model import Graph
from compress.saving import export_model
from tests.compress import captioner

ENDS = {
    "scores": lambda x: x,
    "log shares": lambda x: x.log_softmax(-1),
    "shares": lambda x: x.softmax(-1),
    "shares of another axis": lambda x: x.view(-1, 2, 2).softmax(1),
    "probabilities": lambda x: x.sigmoid().float(),
    "by its norm": lambda x: x / x.norm(dim=-1, keepdim=True),
    "normalized": lambda x: nn.functional.normalize(x, dim=-1),
    "by the root of its squares": lambda x: x / x.pow(2).sum(-1, keepdim=True).pow(0.5),
    "by another's norm": lambda x: x / (x + 1).norm(dim=-1, keepdim=True),
    "one number": lambda x: x[:, :1],
    "a number": lambda x: x[:, 0],
    "a map": lambda x: nn.functional.conv1d(x[:, None], torch.ones(2, 1, 1)),
    "a picture": lambda x: x.view(-1, 1, 2, 2),
}


def ending(how):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, given):
            return ENDS[how](self.layer(given))

    return export_model(Net(), name="net", example={"given": np.ones((1, 3), np.float32)})


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ("scores", "scores"), ("log shares", "scores"), ("shares", "shares"), ("shares of another axis", "numbers"),
        ("probabilities", "probabilities"), ("by its norm", "embedding"), ("normalized", "embedding"),
        ("by the root of its squares", "embedding"), ("by another's norm", "scores"), ("one number", "numbers"),
        ("a number", "numbers"), ("a map", "numbers"), ("a picture", "numbers"),
    ],
)  # fmt: skip
def test_the_kind_of_an_output_is_how_it_is_made(how, kind):
    (output,) = outputs_of(ending(how))
    assert (output.kind, output.compared) == (kind, kind)


def test_a_metric_of_numbers_says_that_they_are_numbers_unless_they_are_named_classes():
    model = ending("scores")
    mse = get_metric("mse")
    assert outputs_of(model, metric=mse)[0].kind == "numbers"
    assert outputs_of(model, metric=get_metric("accuracy"))[0].kind == "scores"
    named = dataclasses.replace(model, labels={"output": ("a", "b", "c", "d")})
    assert outputs_of(named, metric=mse)[0].kind == "scores"


def test_loss_says_what_all_are_compared_as():
    model = ending("probabilities")
    assert [(o.kind, o.compared) for o in outputs_of(model, "mse")] == [("probabilities", "numbers")]
    assert [(o.kind, o.compared) for o in outputs_of(model, "kl")] == [("probabilities", "scores")]


def test_integers_are_no_outputs_to_learn():
    class Both(nn.Linear):
        def forward(self, input):
            scores = super().forward(input)
            return {"picked": scores.argmax(-1), "scores": scores}

    model = export_model(Both(3, 4), name="both", example={"input": np.ones((1, 3), np.float32)})
    assert [(o.index, o.spec.name, o.kind) for o in outputs_of(model)] == [(1, "scores", "scores")]


def test_what_a_decoder_picks_its_tokens_by_are_scores():
    (output,) = outputs_of(captioner.model())
    assert (output.spec.name, output.kind) == ("caption", "scores")


class Three(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.text, self.sound = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(5, 6)
        self.logit_scale = nn.Parameter(torch.tensor(3.0))

    def see(self, pixels):
        return {"image_embeds": self.image(pixels)}

    def read(self, words):
        return {"text_embeds": nn.functional.normalize(self.text(words), dim=-1), "length": words[:, :1]}

    def hear(self, waves):
        return {"sound_embeds": self.sound(waves)}


def test_towers_of_one_width_are_paired():
    example = {name: np.ones((1, size), np.float32) for name, size in (("pixels", 3), ("words", 2), ("waves", 5))}
    graphs = {"see": Graph("see", ("pixels",)), "read": Graph("read", ("words",)), "hear": Graph("hear", ("waves",))}
    model = export_model(Three(), name="three", example=example, graphs=graphs)
    outputs = outputs_of(model)
    assert {o.spec.name: o.kind for o in outputs} == {
        "image_embeds": "embedding", "text_embeds": "embedding", "length": "numbers", "sound_embeds": "embedding",
    }  # fmt: skip
    assert [(left.spec.name, right.spec.name) for left, right in paired(model, outputs)] == [
        ("image_embeds", "text_embeds")
    ]
    np.testing.assert_allclose(sharpness_of(model), np.exp(3.0))
    sharper = dataclasses.replace(model, weights={"logit_scale": torch.tensor(9.0)})
    assert sharpness_of(sharper) == 100.0
    assert sharpness_of(ending("scores")) == 1 / 0.07
