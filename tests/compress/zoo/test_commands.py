"""Spoken commands: the data are what they say, the network hears and decides; the whole chain, with real speech."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from small_recipe import BENCH

import compress
import runtimes
from calibration import open_set
from compress.errors import CompressError
from compress.evaluate import evaluate
from compress.metrics import get_metric
from compress.modelfile import read_model
from compress.zoo.commands import (
    ACTIONS,
    COMMANDS,
    DEVICES,
    NAMES,
    PHRASES,
    STATE,
    VOICES,
    WORDS,
    action_of,
    build,
    commands,
    state_of,
)
from compress.zoo.reference import make_reference
from compress.zoo.samples import count_of, targets_of
from compress.zoo.speech import find_speaker, spoken
from tests.compress.zoo import tones

FEW = {"train": 60, "calibration": 12, "validation": 24}


@pytest.mark.parametrize(("wanted", "device", "on", "action"), [
    ("on", "lamp", [], "lamp on"), ("on", "lamp", ["lamp"], "nothing"), ("off", "fan", ["lamp"], "nothing"),
    ("off", "fan", ["fan"], "fan off"), ("toggle", "radio", ["radio", "fan"], "radio off"),
    ("toggle", "radio", ["fan"], "radio on"),
])  # fmt: skip
def test_actions_by_hand(wanted: str, device: str, on: list[str], action: str) -> None:
    assert action_of(wanted, device, on) == action


def test_words_and_states() -> None:
    assert len(WORDS) == 14
    assert WORDS[0] == ""
    said = {word for phrase in PHRASES for name in NAMES for word in phrase.format(d=name).split()}
    assert said == set(WORDS[1:])
    assert state_of("fan", ["lamp", "radio"]) == "last fan on lamp radio"
    assert state_of("fan", []) == "last fan on nothing"
    assert set(STATE[1:]) == {"last", "on", "nothing", *DEVICES}
    assert not set(VOICES["train"]) & set(VOICES["validation"])


def test_every_sample_is_what_it_says() -> None:
    """The action follows from the words and the state; features are of whole ticks; the same on every call."""
    splits, again = commands(FEW, tones.say), commands(FEW, tones.say)
    assert {name: count_of(targets_of(parts)) for name, parts in splits.items()} == {
        "train": 180, "calibration": 12, "validation": 48}  # fmt: skip
    meaning = {phrase.format(d=name): (wanted, name) for phrase, wanted in PHRASES.items() for name in NAMES}
    for (rows, target), (same, _) in zip(splits["train"], again["train"], strict=True):
        np.testing.assert_array_equal(rows["audio"], same["audio"])
        assert rows["audio"].shape[1] == 32
        assert rows["audio"].shape[2] in {1600 * ticks // 128 for ticks in range(2, 16)}
        for state, action, text in zip(rows["state"], target["action"], target["transcript"], strict=True):
            words = [STATE[index] for index in state]
            wanted, name = meaning[str(text)]
            device = words[1] if name == "it" else name.removeprefix("the ")
            assert ACTIONS[action] == action_of(wanted, device, words[3:])


def test_the_network_hears_any_length() -> None:
    network = build(channels=8, width=4, hidden=8).eval()
    with torch.no_grad():
        for frames in (37, 100):
            found = network(torch.randn(2, 32, frames), torch.tensor([[1, 4, 2, 3, 0], [1, 5, 2, 4, 6]]))
            assert found["action"].shape == (2, len(ACTIONS))
            assert found["transcript"].shape == (2, (frames + 1) // 2, len(WORDS))


def test_padding_of_the_state_changes_nothing() -> None:
    network = build(channels=8, width=4, hidden=8).eval()
    audio, state = torch.randn(1, 32, 50), torch.tensor([[1, 4, 2, 3]])
    with torch.no_grad():
        found, padded = (network(audio, words)["action"] for words in (state, torch.nn.functional.pad(state, (0, 3))))
    torch.testing.assert_close(found, padded)


@pytest.mark.slow
def test_the_whole_chain(tmp_path: Path) -> None:
    """Of real speech where it can be had: prune, distil, quantize, export, bench, bundle; then the bundle is asked."""
    try:
        find_speaker()
        say = spoken
    except CompressError:
        say = tones.say
    splits = commands({"train": 200, "calibration": 20, "validation": 40}, say)
    small = dataclasses.replace(COMMANDS, samples=lambda: splits, kwargs={"channels": 32},
                                fit=dataclasses.replace(COMMANDS.fit, epochs=8, rate=4e-3))  # fmt: skip
    folder = tmp_path / "commands"
    record = make_reference(small, folder)
    assert list(record.baselines) == ["audio alone", "state alone", "majority answer"]
    assert record.scores["wer/transcript"] < 0.9        # one that hears nothing has 1
    assert record.value == record.scores["accuracy/action"]

    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["target"] = ["openvino-cpu", "onnxruntime-cpu"]
    for stage in recipe["stages"]:
        stage.update({"prune": {"macs": 0.8, "round_to": 8}} if "prune" in stage else {})
        stage.update({"distill": {"epochs": 2}} if "distill" in stage else {})
        stage.update({"bench": BENCH} if "bench" in stage else {})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    result = compress.run(folder / "recipe.yaml")
    assert result.bundle is not None
    rows = result.record["bench"]["rows"]
    assert {(row["accuracy"]["metric"], row["accuracy"]["share"]) for row in rows if row["accuracy"]} == {
        ("accuracy/action", True)}  # fmt: skip

    model, bundle = read_model(folder / "model.pt"), runtimes.read_bundle(result.bundle)
    data = open_set(folder / "validation", model.inputs)
    heard = get_metric("wer/transcript", bundle)
    for backend in ("openvino-cpu", "onnxruntime-cpu"):
        with runtimes.load(result.bundle, target=backend, self_test=True) as session:
            assert evaluate(session.run, data, heard).value < 1.0
            answer = session.ask({"audio": np.zeros(8000, np.float32), "state": "last fan on lamp"})
    assert answer["action"]["label"] in ACTIONS
    assert set(answer["transcript"].split()) <= set(WORDS)
