"""A folder's generation_config.json as the loop of a chain: which tokens, how many, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import compress
from compress.huggingface.folder import Folder
from compress.huggingface.generation import Generation, read_generation


def folder(path: Path, config: dict[str, Any] | None = None, **settings: Any) -> Folder:
    """``settings`` are those of the generation config; without any there is none."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_type": "whisper", **(config or {})}))
    if settings:
        (path / "generation_config.json").write_text(json.dumps(settings))
    return Folder(path=path, model_type="whisper", config={})


IDS = {"decoder_start_token_id": 3, "eos_token_id": 2, "pad_token_id": 1}


def read(path: Path, **settings: Any) -> Generation:
    return read_generation(folder(path, **{**IDS, **settings}), vocabulary=50, positions=100)


def test_what_a_loop_says(tmp_path: Path) -> None:
    found = read(tmp_path, max_length=30, suppress_tokens=[4, 5], begin_suppress_tokens=[2, 6], min_length=4)
    assert found.loop(token="ids", logits="logits", state={"past": "present"}, mask="mask") == {
        "token": "ids", "logits": "logits", "pick": "argmax", "state": {"past": {"from": "present", "initial": 0}},
        "start": [3], "stop": [2], "pad": 1, "max_steps": 29, "suppress": [4, 5], "suppress_first": [2, 6],
        "min_steps": 3, "mask": "mask",
    }
    assert read(tmp_path, max_length=30).loop(token="ids", logits="logits", state={}) == {
        "token": "ids", "logits": "logits", "pick": "argmax", "state": {}, "start": [3], "stop": [2], "pad": 1,
        "max_steps": 29,
    }


@pytest.mark.parametrize(("settings", "expected"), [
    ({}, {"max_steps": 20}),
    ({"max_new_tokens": 7, "max_length": 30}, {"max_steps": 7}),
    ({"max_new_tokens": 7, "min_new_tokens": 9}, {"max_steps": 7, "min_steps": 7}),
    ({"max_length": 400}, {"max_steps": 99}),           # of 100 positions one is the start's
    ({"eos_token_id": [2, 7], "pad_token_id": None}, {"stop": (2, 7), "pad": 2}),
    ({"eos_token_id": None, "pad_token_id": None}, {"stop": (), "pad": 0}),
    ({"decoder_start_token_id": None, "bos_token_id": 9}, {"start": (9,)}),
    ({"max_length": 30, "forced_bos_token_id": 8}, {"start": (3, 8), "max_steps": 28}),
    ({"max_length": 30, "forced_eos_token_id": 2}, {"max_steps": 28}),
    ({"num_beams": 4, "length_penalty": 2.0, "early_stopping": True}, {"max_steps": 20}),
    ({"do_sample": True, "temperature": 0.3, "top_k": 5}, {"max_steps": 20}),
])  # fmt: skip
def test_settings(tmp_path: Path, settings: dict[str, Any], expected: dict[str, Any]) -> None:
    found = read(tmp_path, **settings)
    assert {key: getattr(found, key) for key in expected} == expected


def test_start_tokens_of_a_family(tmp_path: Path) -> None:
    found = read_generation(folder(tmp_path, **IDS, max_length=30), vocabulary=50, positions=100, start=[9, 8, 7])
    assert (found.start, found.max_steps) == ((9, 8, 7), 27)
    given: dict[str, Any] = {"vocabulary": 50, "positions": 100, "start": [9, 8, 7], "beyond_start": True}
    assert read_generation(folder(tmp_path, **IDS, max_length=30), **given).max_steps == 30
    assert read_generation(folder(tmp_path, **IDS, max_length=100), **given).max_steps == 97


def test_a_prompt(tmp_path: Path) -> None:
    """The caller's tokens are no part of what ``max_length`` counts here, since their number varies."""
    given: dict[str, Any] = {"vocabulary": 50, "positions": 100, "prompt": 40}
    assert read_generation(folder(tmp_path, **IDS), **given).start == ()
    assert read_generation(folder(tmp_path, **IDS), **given).max_steps == 20
    assert read_generation(folder(tmp_path, **IDS, max_length=30), **given).max_steps == 30
    assert read_generation(folder(tmp_path, **IDS, max_new_tokens=80), **given).max_steps == 60


def test_old_folders_have_it_in_their_config(tmp_path: Path) -> None:
    old = folder(tmp_path, config={**IDS, "max_length": 12, "suppress_tokens": [5]})
    found = read_generation(old, vocabulary=50, positions=100)
    assert found == Generation(start=(3,), stop=(2,), pad=1, suppress=(5,), max_steps=11)


@pytest.mark.parametrize(("settings", "message"), [
    ({"repetition_penalty": 1.2}, r"generation_config.json sets repetition_penalty to 1.2, which greedy search "),
    ({"no_repeat_ngram_size": 3}, "sets no_repeat_ngram_size to 3"),
    ({"bad_words_ids": [[4]]}, "sets bad_words_ids to"),
    ({"eos_token_id": 50}, "stop has the token 50, but the network scores 50"),
    ({"suppress_tokens": [3, 77]}, "suppress has the token 77"),
    ({"pad_token_id": 60}, "pad_token_id is 60, but the network scores 50"),
    ({"decoder_start_token_id": None}, "has no decoder_start_token_id: set it in generation_config.json"),
    ({"max_length": 1}, "leaves no room for a token: .* used up by the start tokens"),
])  # fmt: skip
def test_what_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(compress.CompressError, match=message):
        read(tmp_path, **settings)


def test_a_damaged_one(tmp_path: Path) -> None:
    it = folder(tmp_path, **IDS)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(compress.CompressError, match=r"generation_config.json cannot be read: "):
        read_generation(it, vocabulary=50, positions=100)


def test_a_prompt_too_long(tmp_path: Path) -> None:
    with pytest.raises(compress.CompressError, match="used up by the longest prompt"):
        read_generation(folder(tmp_path, **IDS), vocabulary=50, positions=100, prompt=100)
