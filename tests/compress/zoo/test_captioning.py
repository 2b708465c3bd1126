"""The captioner: teacher forcing by hand, the cache, its data, and the whole chain."""

import numpy as np
import pytest
import torch

import runtimes
from calibration import open_set
from compress.modelfile import read_model
from compress.zoo import captioning
from compress.zoo.captioning import CAPTIONING, STEPS, constant, next_word, train, unseen
from compress.zoo.coloured_digits import BEGIN, END, VOCABULARY, tokenize
from compress.zoo.fitting import FitConfig
from tests.compress.zoo.composed import small, through_every_stage


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return captioning.build().eval()


def test_the_loss_is_of_the_words_and_not_of_the_padding():
    """Even scores of 29 words cost ln 29 a word; a padded place costs nothing whatever its scores are."""
    scores = torch.zeros(1, 3, len(VOCABULARY))
    scores[0, 2, 5] = 1000.0
    assert next_word({"output": scores}, torch.tensor([[7, END, 0]])).item() == pytest.approx(np.log(len(VOCABULARY)))


def test_a_network_is_taught_each_word_after_the_right_ones(monkeypatch):
    taught = []
    monkeypatch.setattr(captioning, "fit", lambda network, parts, *rest: taught.extend(parts))
    target = np.array([["a red one left of a blue two", "a blue two right of a red one"]] * 2)
    train(None, [({"image": np.zeros((2, 3, 24, 24), np.float32)}, target)], FitConfig())
    ((rows, said),) = taught
    for number in range(2):         # the first picture with its first sentence, the second with its second
        words = tokenize(target[0, number])
        assert said[number].tolist() == [*words, END]
        assert rows["words"][number].tolist() == [BEGIN, *words]
    short = captioning._taught({}, np.array([["a red one at the top", "at the top a red one"]]), VOCABULARY, STEPS)
    words = tokenize("a red one at the top", 6)
    assert short[1].tolist() == [[*words, END, 0, 0]]
    assert short[0]["words"].tolist() == [[BEGIN, *words, 0, 0]]


def test_a_word_at_a_time_scores_as_the_whole_sentence(network):
    image, words = torch.rand(2, 3, 24, 24), torch.tensor([[BEGIN, 3, 14, 19], [BEGIN, 4, 5, 6]])
    with torch.no_grad():
        whole = network(image, words)
        seen = network.encode(image)
        past = {name: torch.zeros(2, 2, 4, 0, 16) for name in ("past_key", "past_value")}
        for place in range(4):
            told = network.decode(words[:, place : place + 1], **seen, **past)
            torch.testing.assert_close(told["logits"][:, 0], whole[:, place], rtol=1e-4, atol=1e-5)
            past = {"past_key": told["key"], "past_value": told["value"]}


def test_what_a_word_is_followed_by_depends_on_the_picture_and_on_nothing_behind_it(network):
    words = torch.tensor([[BEGIN, 3, 14, 19]])
    with torch.no_grad():
        one, other = network(torch.zeros(1, 3, 24, 24), words), network(torch.ones(1, 3, 24, 24), words)
        changed = network(torch.zeros(1, 3, 24, 24), torch.tensor([[BEGIN, 3, 20, 21]]))
    torch.testing.assert_close(one[:, :2], changed[:, :2])
    assert (one - other).abs().max() > 1e-3


def test_the_pictures_have_two_sentences_and_no_scene_of_two_is_in_two_splits():
    splits = captioning.samples()
    said = {}
    for name, (one, two) in captioning.SPLIT.items():
        ((rows, target),) = splits[name]
        assert rows["image"].shape == (one + two, 3, 24, 24)
        assert target.shape == (one + two, 2)
        said[name] = set(target[one:].ravel())
        assert len(said[name]) == 2 * two
        assert max(len(sentence.split()) for sentence in target.ravel()) == STEPS - 1
    assert len(set.union(*said.values())) == sum(map(len, said.values()))


def test_the_baselines_see_nothing_and_say_the_same():
    assert not unseen({"image": np.ones((2, 3, 24, 24), np.float32)})["image"].any()
    target = np.array([["a red one at the top", "at the top a red one"]] * 2 + [["at the top a red one", "a red one"]])
    assert constant(target, 2)["caption"].tolist() == [tokenize("at the top a red one", STEPS)] * 2


@pytest.mark.slow
def test_the_whole_chain(tmp_path):
    reference = small(CAPTIONING, {"train": 512, "calibration": 48, "validation": 64})
    record, result = through_every_stage(reference, tmp_path / "captioning")
    assert list(record.baselines) == ["picture unseen", "majority answer"]
    assert set(record.scores) == {"cider", "exact-match"}
    data = open_set(tmp_path / "captioning/validation", read_model(tmp_path / "captioning/model.pt").inputs)
    picture = (data.first(1)["image"][0].transpose(1, 2, 0) * 255).round().astype(np.uint8)
    for backend in ("openvino-cpu", "onnxruntime-cpu"):
        with runtimes.load(result.bundle, target=backend, self_test=True) as session:
            tokens = session.run(session.processor.feed({"image": picture}))["caption"][0].tolist()
            words = tokens[: tokens.index(END)] if END in tokens else tokens
            answer = session.ask({"image": picture})
        assert answer == {"caption": " ".join(VOCABULARY[word] for word in words)}
        assert 1 <= len(tokens) <= STEPS
