"""``session.ask`` and ``chain.ask``: raw inputs to an engine and its answers back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtimes
from runtimes.bundle import Bundle, read_bundle
from runtimes.engine import read_engine
from runtimes.errors import FeedError, RuntimesError
from runtimes.processing import Processing, parse_processing
from runtimes.session import Session
from tests.contracts.models import BY_NAME
from tests.runtimes import networks
from tests.runtimes.bundles import write_bundle


def described(bundle: Bundle, inputs: Any, outputs: Any) -> Bundle:
    return dataclasses.replace(bundle, processing=parse_processing({"inputs": inputs, "outputs": outputs}, "test"))


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_session_answers_one_and_a_batch(backend: str, made_bundle: Path) -> None:
    """The matmul gives 5, 7, 9 for 1, 1: c at 1 / (1 + e^-2 + e^-4)."""
    inputs = {"x": {"kind": "features", "from": "pair", "names": ["left", "right"]}}
    bundle = described(read_bundle(made_bundle), inputs, {"y": {"kind": "classes", "labels": ["a", "b", "c"]}})
    with runtimes.load(bundle, backend, threads=1) as session:
        answer = session.ask({"pair": {"left": 1, "right": 1}})
        assert answer == {"y": {"label": "c", "index": 2, "score": pytest.approx(1 / (1 + np.exp(-2) + np.exp(-4)))}}
        both = session.ask({"pair": [(1, 1), (-1, -1)]})["y"]
        assert [entry["label"] for entry in both] == ["c", "a"]
        assert session.processor.sources == ("pair",)
        with pytest.raises(FeedError, match="the raw input lacks 'pair'"):
            session.ask({"x": np.ones(2, np.float32)})
    with pytest.raises(RuntimesError, match="is closed: load the bundle again"):
        session.ask({"pair": (1, 1)})


def test_inputs_without_a_record_are_arrays(made_bundle: Path) -> None:
    with runtimes.load(made_bundle, "onnxruntime", threads=1) as session:
        assert session.ask({"x": np.ones(2)})["y"]["label"] == "c"
        with pytest.raises(FeedError, match="lacks input 'x'"):
            session.ask({})


def test_a_chain_is_asked_by_its_own_names(tmp_path: Path) -> None:
    chain = {"inputs": ["image", "labels"],
             "steps": [{"graph": "image", "inputs": {"pixels": "image"}},
                       {"graph": "text", "inputs": {"tokens": "labels"}}],
             "outputs": {"seen": "image.embedding", "read": "text.rows"}}
    made = write_bundle(tmp_path, {"image": networks.IMAGE, "text": BY_NAME["gather"]}, ["onnxruntime"], chain=chain)
    inputs = {"image": {"kind": "features", "from": "photo", "mean": 1.0}}
    bundle = described(made, inputs, {"seen": {"kind": "values"}})
    tokens = BY_NAME["gather"].feed["tokens"]
    with runtimes.load(bundle, threads=1) as opened:
        answers = opened.ask({"photo": list(networks.PIXELS + 1), "labels": list(tokens)})
    np.testing.assert_allclose(answers["seen"], networks.PIXELS @ networks.TOWER, atol=1e-5)
    one = dataclasses.replace(bundle, processing=parse_processing(
        {"inputs": {"pixels": inputs["image"]}, "outputs": {"embedding": {"kind": "values"}}}, "test"))
    with runtimes.load(one, graph="image", threads=1) as session:
        answer = session.ask({"photo": networks.PIXELS[0] + 1})
    np.testing.assert_allclose(answer["embedding"], (networks.PIXELS @ networks.TOWER)[0], atol=1e-5)


def test_a_session_opened_without_its_bundle(made_bundle: Path) -> None:
    engine = read_engine(made_bundle / "engines/main/onnxruntime-cpu")
    with Session(engine, runtimes.open_engine(engine, threads=1), "onnxruntime-cpu") as session, \
            pytest.raises(RuntimesError, match=r"was not opened by load\(\), which knows the bundle's processing"):
        session.ask({"x": np.ones(2)})


def test_a_record_for_another_model_is_found_at_the_first_question(made_bundle: Path) -> None:
    bundle = described(read_bundle(made_bundle), {"z": {"kind": "tensor", "from": "z"}}, {})
    with runtimes.load(bundle, "onnxruntime", threads=1) as session, \
            pytest.raises(RuntimesError, match=r"processing describes input 'z', but the model's are \['x'\]"):
        session.ask({"z": np.ones(2)})
    assert Processing(inputs={}, outputs={}).files == ()
