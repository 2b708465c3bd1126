"""The decoder loop alone, against a network of which each step can be worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtimes.decoding import decode
from runtimes.errors import RuntimesError
from runtimes.loops import Loop, parse_loop
from runtimes.spec import Dim, TensorSpec
from runtimes.wiring import parse_chain

BATCH, LENGTH, PAST, TOTAL = Dim("batch", 1, 2, 4), Dim("length", 1, 2, 8), Dim("past", 0, 4, 9), Dim("total", 1, 4, 10)
INPUTS = (
    TensorSpec(name="ids", dtype="int64", shape=(BATCH, LENGTH), modality="text"),
    TensorSpec(name="mask", dtype="int64", shape=(BATCH, TOTAL), modality="text"),
    TensorSpec(name="past", dtype="float32", shape=(BATCH, PAST), modality="embedding"),
)
OUTPUTS = (
    TensorSpec(name="logits", dtype="float32", shape=(BATCH, 6), modality="embedding"),
    TensorSpec(name="present", dtype="float32", shape=(BATCH, Dim("present", 1, 4, 10)), modality="embedding"),
)
GRAPH: Any = SimpleNamespace(inputs=INPUTS, outputs=OUTPUTS)
RECORD = {"token": "ids", "logits": "logits", "state": {"past": {"from": "present"}}, "start": [1], "stop": [5],
          "pad": 0, "max_steps": 4, "pick": "argmax", "mask": "mask"}  # fmt: skip


class Counting:
    """Every token's score is how near it is to one more than the sum of the tokens that count, modulo 6."""

    def __init__(self) -> None:
        self.inputs = INPUTS
        self.fed: list[Mapping[str, np.ndarray]] = []

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.fed.append(feed)
        present = np.concatenate([feed["past"], feed["ids"].astype(np.float32)], axis=1)
        wanted = ((present * feed["mask"]).sum(axis=1) + 1) % 6
        return {"logits": -np.abs(np.arange(6.0, dtype=np.float32) - wanted[:, None]), "present": present}

    run_checked = run


def loop(**changes: Any) -> Loop:
    record = {**RECORD, **changes}
    return parse_loop(record, GRAPH, ("ids",) if record["start"] == [] else (), "here")


def told(given: Mapping[str, Any], **changes: Any) -> list[list[int]]:
    session: Any = Counting()
    rows: list[list[int]] = decode(session, loop(**changes), given)["tokens"].tolist()
    return rows


def test_it_counts() -> None:
    assert told({}) == [[2, 4, 2, 4]]       # 1+1, 1+2+1, 1+2+4+1-6, ..


def test_suppressed_tokens_give_way_to_the_next_likely() -> None:
    assert told({}, suppress=[2, 3]) == [[1, 4, 1, 1]]          # 2 -> 1; 1+1+1=3 -> of 2, 3, 4 the nearest left, 4


def test_the_first_step_alone_suppresses_more() -> None:
    assert told({}, suppress_first=[2]) == [[1, 3, 0, 0]]       # as near as 3, and before it; then 1+1+1, and 1+1+3+1


def test_a_stop_token_waits_for_its_step() -> None:
    assert told({}, start=[4]) == [[5]]
    assert told({}, start=[4], min_steps=1) == [[4, 3, 0, 0]]       # 5 is refused, 4 the nearest; 4+4+1, 4+4+3+1, ..
    with pytest.raises(RuntimesError, match="loop: min_steps is 5, expected 0 to max_steps, 4"):
        loop(min_steps=5)


def test_a_prompt_is_fed_first_and_its_mask_grows() -> None:
    prompt = {"ids": np.array([[9, 1], [1, 1]]), "mask": np.array([[0, 1], [1, 1]])}
    session: Any = Counting()
    rows = decode(session, loop(start=[], max_steps=3), prompt)["tokens"].tolist()
    assert rows == [[2, 4, 2], [3, 0, 0]]       # what is padded, 9, does not count
    assert [feed["mask"].tolist()[0] for feed in session.fed] == [[0, 1], [0, 1, 1], [0, 1, 1, 1]]
    assert [feed["ids"].shape for feed in session.fed] == [(2, 2), (2, 1), (2, 1)]
    assert told({"ids": np.array([[1, 1]])}, start=[], max_steps=1) == [[3]]     # without a mask all count


def test_a_mask_that_outgrows_the_engine() -> None:
    with pytest.raises(RuntimesError, match="'past' has grown to past=10, the engine takes 9"):
        told({}, stop=[], max_steps=12)
    record = {**RECORD, "stop": [], "max_steps": 12}
    roomy: Any = SimpleNamespace(
        inputs=(*INPUTS[:2], replace(INPUTS[2], shape=(BATCH, Dim("past", 0, 4, 20)))), outputs=OUTPUTS)
    session: Any = Counting()
    session.inputs = roomy.inputs
    with pytest.raises(RuntimesError, match="'mask' has grown to total=11, the engine takes 10"):
        decode(session, parse_loop(record, roomy, (), "here"), {})


@pytest.mark.parametrize(("changes", "message"), [
    ({"suppress": [6]}, "token 6 is outside the 6 that 'logits' tells apart"),
    ({"suppress_first": ["a"]}, "an item of 'suppress_first' must be"),
    ({"suppress": [0, 1, 2], "suppress_first": [3, 4, 5]}, "every token of 'logits' is suppressed"),
    ({"mask": "masks"}, "the graph has no input 'masks'"),
    ({"mask": "past"}, "input 'past' is there twice"),
    ({"mask": "past", "state": {}}, r"mask float32\[.*\] is not int64\[batch, length\], as 'ids' is"),
    ({"start": [], "min_steps": -1}, "min_steps is -1"),
])
def test_bad_keys(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimesError, match=message):
        loop(**changes)


def test_a_prompt_or_a_start_is_wired_and_not_both() -> None:
    chain = {"inputs": ["ids", "mask"], "steps": [{"graph": "words", "inputs": {"ids": "ids", "mask": "mask"},
             "loop": {**RECORD, "start": []}}], "outputs": {"said": "words.tokens"}}  # fmt: skip
    wiring = parse_chain(chain, {"words": GRAPH}, "here")
    assert [spec.name for spec in wiring.inputs] == ["ids", "mask"]
    assert wiring.outputs[0].describe() == "int64[batch=1..4, steps=1..4]"
    chain["steps"][0]["loop"]["start"] = [1]        # type: ignore[index]
    with pytest.raises(RuntimesError, match="'ids' is wired, the caller gives the first tokens: leave start empty"):
        parse_chain(chain, {"words": GRAPH}, "here")
    chain["steps"][0] = {"graph": "words", "inputs": {}, "loop": {**RECORD, "start": []}}       # type: ignore[index]
    with pytest.raises(RuntimesError, match="needs a start token"):
        parse_chain({**chain, "inputs": []}, {"words": GRAPH}, "here")
