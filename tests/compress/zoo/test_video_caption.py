"""The captioner of videos: its data, any number of frames, and the whole chain."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import runtimes
from compress.zoo import video_caption
from compress.zoo.coloured_digits import BEGIN, tokenize
from compress.zoo.digits_questions import DIGITS
from compress.zoo.video import LABELS
from compress.zoo.video_caption import STEPS, VIDEO_CAPTION, VOCABULARY, unseen
from tests.compress.zoo.composed import small, through_every_stage


def test_the_sentences_say_the_digit_and_what_happens():
    assert len(load_digits().target) == 1797
    said = {}
    for name, count in (("train", 2300), ("calibration", 200), ("validation", 547)):
        target = np.concatenate([target for _, target in video_caption.samples()[name]])
        assert target.shape == (count, 2)
        said[name] = target
    for short, long in said["validation"].tolist():
        article, digit, what = short.split(" ", 2)
        assert (article, digit in DIGITS, what in LABELS) == ("a", True, True)
        assert long == f"there is a {digit} that {what}"
        assert len(tokenize(long, STEPS - 1, VOCABULARY)) == STEPS - 1      # its end comes behind
    assert len(np.unique(said["train"][:, 0])) == len(DIGITS) * len(LABELS)


def test_every_part_has_one_number_of_frames_and_all_are_there():
    lengths = [rows["video"].shape[1] for rows, _ in video_caption.samples()["train"]]
    assert sorted(lengths) == list(range(6, 17))


def test_any_number_of_frames_is_seen_and_their_order_counts():
    torch.manual_seed(0)
    network = video_caption.build().eval()
    video = torch.rand(2, 9, 24, 24)
    with torch.no_grad():
        assert network.encode(video)["seen_key"].shape == (2, 2, 4, 9, 16)
        words = torch.full((2, 1), BEGIN)
        forth, back = network(video, words), network(video.flip(1), words)
    assert forth.shape == (2, 1, len(VOCABULARY))
    assert (forth - back).abs().max() > 1e-4
    assert not unseen({"video": video.numpy()})["video"].any()


@pytest.mark.slow
def test_the_whole_chain(tmp_path):
    reference = small(VIDEO_CAPTION, {"train": 12, "calibration": 3, "validation": 4})     # of each number of frames
    record, result = through_every_stage(reference, tmp_path / "video")
    assert list(record.baselines) == ["first frame alone", "video unseen", "majority answer"]
    video = np.random.default_rng(0).integers(0, 256, (20, 24, 24)).astype(np.uint8)
    said = []
    for backend in ("openvino-cpu", "onnxruntime-cpu"):
        with runtimes.load(result.bundle, target=backend, self_test=True) as session:
            said.append(session.ask({"video": video})["caption"])       # longer than any of training
            both = session.ask({"video": [video[:7], video[:7]]})["caption"]
        assert both[0] == both[1]
        assert set(said[-1].split()) <= set(VOCABULARY)
