"""Videos show what their label says."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from compress.zoo.video import LABELS, SIZE, VIDEO, filmed, first_frame_alone, samples


def _seen(video: np.ndarray) -> np.ndarray:
    """Of the first and the last frames: ink, middle (down, across), spread in pixels: ``(2, 4)``."""
    found = []
    for frame in (video[0], video[-1]):
        ink = np.where(frame > 0.2, frame, 0)
        down, across = np.mgrid[:SIZE, :SIZE]
        total = max(ink.sum(), 1e-6)
        y, x = (ink * down).sum() / total, (ink * across).sum() / total
        found.append([ink.sum(), y, x, np.sqrt((ink * ((down - y) ** 2 + (across - x) ** 2)).sum() / total)])
    return np.array(found)


@pytest.mark.parametrize(
    ("label", "index", "sign"),
    [("moves left", 2, -1), ("moves right", 2, 1), ("moves up", 1, -1), ("moves down", 1, 1), ("grows", 3, 1),
     ("shrinks", 3, -1), ("appears", 0, 1), ("fades", 0, -1)],
)  # fmt: skip
def test_what_happens_is_what_the_label_says(label, index, sign):
    rng = np.random.default_rng(0)
    digit = load_digits().images[0].astype(np.float32) / 16
    for _ in range(5):
        first, last = _seen(filmed(digit, label, 9, rng))
        change = (last - first) / [10, 1, 1, 1]
        assert sign * change[index] > 1
        if index < 3 and label not in ("appears", "fades"):
            assert abs(change[3 - index]) < 1.5      # not along the other axis


def test_it_turns_as_the_label_says():
    bar = np.zeros((8, 8), np.float32)
    bar[:4, 3:5] = 1                        # from the middle up
    for label, sign in (("turns left", -1), ("turns right", 1)):
        first, last = _seen(filmed(bar, label, 9, np.random.default_rng(0)))
        assert sign * (last - first)[2] > 1     # its upper end goes to that side


def test_videos_are_of_several_lengths_and_every_label():
    parts = samples()["train"]
    assert {rows["video"].shape[1] for rows, _ in parts} == set(range(6, 17))
    assert set(np.concatenate([target for _, target in parts])) == set(range(len(LABELS)))
    assert all((rows["frames"] == 1).all() and rows["frames"].shape == rows["video"].shape[:2] for rows, _ in parts)


def test_the_first_frame_alone():
    rows = {"video": np.arange(6.0).reshape(1, 3, 2, 1), "frames": np.ones((1, 3))}
    assert first_frame_alone(rows)["video"].tolist() == [[[[0], [1]]] * 3]
    assert list(VIDEO.baselines(samples()["calibration"])) == ["first frame alone"]     # there is no other modality
