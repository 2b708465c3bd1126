"""Texts of outputs as the processing of a model reads them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from compress.errors import CompressError
from compress.metrics import get_metric, statistics_of
from runtimes.processing.record import parse_processing
from runtimes.spec import Dim, TensorSpec

BATCH, FRAMES = Dim("batch", 1, 2, 8), Dim("frames", 1, 4, 9)
WORDS = {"words": ["-", "on", "off", "<end>"]}
CTC = {"kind": "text", "scores": True, "vocabulary": WORDS, "collapse": True, "blank": 0}
IDS = {"kind": "text", "scores": False, "vocabulary": WORDS, "stop": 3}
ACTION = {"kind": "classes", "labels": ["a", "b"]}


def described(**outputs: Any) -> Any:
    specs = (TensorSpec(name="frames", dtype="float32", shape=(BATCH, FRAMES, 4)),
             TensorSpec(name="tokens", dtype="int64", shape=(BATCH, FRAMES)),
             TensorSpec(name="action", dtype="float32", shape=(BATCH, 2)))
    section = parse_processing({"inputs": {}, "outputs": outputs}, "model.json")
    return SimpleNamespace(graphs={"main": SimpleNamespace(inputs=(), outputs=specs)}, chain=None, processing=section,
                           read_file=lambda name: b"")


def frames(*ids: int) -> np.ndarray:
    return np.eye(4, dtype=np.float32)[list(ids)]


def test_frames_become_words_and_their_errors() -> None:
    """Frames: on on - off; and - - on, on. An action beside them, of which one is NaN, is not read."""
    metric = get_metric("wer", described(frames=CTC, action=ACTION))
    parts = [(1, {"frames": frames(1, 1, 0, 2)[None], "action": np.full((1, 2), np.nan, np.float32)}),
             (1, {"frames": frames(0, 1, 1)[None], "action": np.zeros((1, 2), np.float32)})]
    found = statistics_of(metric, parts, np.array(["on off", "off on"]))
    np.testing.assert_array_equal(found, [[0, 2], [1, 2]])


def test_tokens_of_a_decoder_end_with_their_stop() -> None:
    metric = get_metric("exact-match", described(tokens=IDS))
    found = statistics_of(metric, [(2, {"tokens": np.array([[1, 2, 3, 0], [2, 3, 3, 3]])})],
                          np.array([["on", "on off"], ["on", ""]]))
    np.testing.assert_array_equal(found, [1, 0])


def test_which_of_several_texts() -> None:
    both = described(tokens=IDS, frames=CTC)
    metric = get_metric("wer/tokens", both)
    assert statistics_of(metric, [(1, {"tokens": np.array([[1]])})], np.array(["on"])).tolist() == [[0, 1]]
    with pytest.raises(CompressError, match=r"outputs \['frames', 'tokens'\] are texts: say which .* METRIC/OUTPUT"):
        get_metric("wer", both)
    with pytest.raises(CompressError, match=r"output 'action' has no text: the processing reads texts of \['frames', "):
        get_metric("wer/action", both)


def test_a_model_without_a_text_is_refused_and_one_that_needs_none_is_not() -> None:
    with pytest.raises(CompressError, match=r"metric 'bleu' compares texts, and the model's processing makes none"):
        get_metric("bleu", described(action=ACTION))
    assert get_metric("accuracy", described(action=ACTION)).texts is None


def test_outputs_that_cannot_be_read() -> None:
    metric = get_metric("wer", described(frames=CTC))
    with pytest.raises(CompressError, match="samples 0 to 0: output 'frames' has a value that is not finite"):
        statistics_of(metric, [(1, {"frames": np.full((1, 2, 4), np.nan, np.float32)})], np.array(["on"]))


def test_processing_that_does_not_fit() -> None:
    wrong = described(tokens=IDS)
    wrong.graphs["main"].outputs = wrong.graphs["main"].outputs[2:]
    with pytest.raises(CompressError, match=r"processing does not fit the model: .*'tokens'"):
        get_metric("wer", wrong)
