"""The dual encoder: its loss by hand, its data, and the whole chain."""

import math

import numpy as np
import pytest
import torch

import runtimes
from calibration import open_set
from compress.metrics import get_metric
from compress.modelfile import read_model
from compress.zoo import dual_encoder
from compress.zoo.coloured_digits import VOCABULARY, every_single, tokenize
from compress.zoo.dual_encoder import DUAL_ENCODER, colours_unseen, contrast, digits_unread
from tests.compress.zoo.composed import small, through_every_stage


def test_the_loss_by_hand():
    """Scores of 0 and ln 3: each row and column is (3/4, 1/4), each finds its own with the chance 3/4."""
    similar = torch.tensor([[math.log(3), 0.0], [0.0, math.log(3)]])
    loss = contrast({"output": similar}, torch.tensor([4, 7]))
    assert loss.item() == pytest.approx(-math.log(3 / 4))


def test_pairs_that_show_the_same_are_right_for_each_other():
    similar = torch.tensor([[math.log(3), 0.0], [0.0, math.log(3)]])
    loss = contrast({"output": similar}, torch.tensor([4, 4]))
    assert loss.item() == pytest.approx(-(math.log(3 / 4) + math.log(1 / 4)) / 2)


def test_embeddings_have_length_one_and_padding_changes_nothing():
    torch.manual_seed(0)
    network = dual_encoder.build().eval()
    ids = torch.tensor([tokenize("a red three"), tokenize("at the top a blue one")])
    with torch.no_grad():
        whole, short = network.encode_text(ids)["text_embeds"], network.encode_text(ids[:1, :3])["text_embeds"]
        seen = network.encode_image(torch.rand(2, 3, 24, 24))["image_embeds"]
        similar = network(torch.zeros(2, 3, 24, 24), ids)
    torch.testing.assert_close(whole[:1], short)
    for embeds in (whole, seen):
        torch.testing.assert_close(embeds.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(similar[0], similar[1])      # of two equal pictures
    assert similar.abs().max() <= 1 / dual_encoder.TEMPERATURE + 1e-4


def test_the_targets_are_what_is_shown_and_the_digit():
    splits = dual_encoder.samples()
    ((rows, shown),), ((prompts, digits),) = splits["validation"], splits["zero-shot"]
    scenes = every_single()
    for index in (0, 123, 449):
        assert shown[index] == index
        assert rows["text"][index].tolist() in [tokenize(sentence) for sentence in scenes[index].sentences]
        assert prompts["text"][index].tolist() in [tokenize(sentence) for sentence in scenes[index].sentences]
        assert VOCABULARY[-10:][digits[index]] == scenes[index].items[0][1]
    assert np.bincount(digits).tolist() == [45] * 10
    assert splits["train"][0][1].tolist() == list(range(450)) * 10


def test_what_the_baselines_do_not_see():
    rows = {"image": np.zeros((1, 3, 1, 2), np.float32), "text": np.array([tokenize("a red three at the top")])}
    rows["image"][0, :, 0, 1] = 0.9, 0.3, 0.0
    np.testing.assert_allclose(colours_unseen(rows)["image"][0, :, 0], [[0, 0.4]] * 3, rtol=1e-6)
    assert digits_unread(rows)["text"].tolist() == [tokenize("a red zero at the top")]


@pytest.mark.slow
def test_the_whole_chain(tmp_path):
    reference = small(DUAL_ENCODER, {"train": 256, "calibration": 48, "validation": 64, "zero-shot": 64})
    record, result = through_every_stage(reference, tmp_path / "dual")
    assert list(record.baselines) == ["colours unseen", "digits unread"]
    assert set(record.scores) == {"text-recall@1", "recall@5", "zero-shot-accuracy"}
    data = open_set(tmp_path / "dual/validation", read_model(tmp_path / "dual/model.pt").inputs)
    feed, target, metric = data.first(64), data.targets()[:64], get_metric("recall@1")
    rows = {row["digest"]: row for row in result.record["bench"]["rows"] if row["role"] == "shipped"}
    for backend in ("openvino-cpu", "onnxruntime-cpu"):
        with runtimes.load(result.bundle, target=backend, self_test=True) as session:
            outputs = session.run(feed)
            similar = np.array(session.processor.answer(outputs)["similarity"])
            reported = rows[session.digest]["accuracy"]["value"]
        np.testing.assert_allclose(similar, outputs["image_embeds"] @ outputs["text_embeds"].T, atol=1e-5)
        assert metric.per_sample(outputs, target).mean() == pytest.approx(reported)
