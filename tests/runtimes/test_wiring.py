from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtimes.bundle import Golden, GraphEntry
from runtimes.errors import RuntimesError
from runtimes.wiring import Source, parse_chain
from tests.contracts.models import BY_NAME, Case
from tests.runtimes import networks
from tests.runtimes.test_bundle import places
from tests.runtimes.test_chain import LOOP, TOWERS, writing


def entry(case: Case) -> GraphEntry:
    return GraphEntry(inputs=case.inputs, outputs=case.outputs, engines={},
                      golden=Golden(feed="", expected="", tolerance={}))


GRAPHS = {"image": entry(networks.IMAGE), "text": entry(BY_NAME["gather"]), "encoder": entry(networks.ENCODER),
          "decoder": entry(networks.CACHED)}
WRITING = writing(LOOP)


def test_steps_come_after_what_they_need() -> None:
    wiring = parse_chain(WRITING, GRAPHS, "here")
    assert [step.name for step in wiring.steps] == ["encoder", "words"]
    words = wiring.steps[1]
    assert words.after == {"encoder"}
    assert words.inputs == {"memory": Source("encoder", "memory")}
    assert words.loop is not None
    assert (words.loop.state, words.loop.initial) == ({"past": "present"}, {"past": 0})
    assert wiring.sources == {"caption": Source("words", "tokens")}
    assert [spec.describe() for spec in wiring.inputs] == ["float32[batch=1..4, 4]"]


def test_the_pad_token_is_the_stop_token_where_none_is_given() -> None:
    loop = {key: value for key, value in LOOP.items() if key != "pad"}
    step = parse_chain(writing(loop), GRAPHS, "here").steps[1]
    assert step.loop is not None
    assert step.loop.pad == networks.END


def steps(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    """Change the first step of the towers."""
    return lambda record: record["steps"][0].update(changes)


@pytest.mark.parametrize(("change", "message"), [
    (lambda r: r.update(code=1), r"here: chain has the unknown key 'code'"),
    (lambda r: r.pop("steps"), "chain lacks 'steps'"),
    (lambda r: r.update(outputs={}), "chain has no outputs"),
    (lambda r: r.update(steps=[]), "input 'image' goes to no step"),
    (lambda r: r["inputs"].append("image"), "chain: input 'image' is there twice"),
    (lambda r: r["inputs"].append("spare"), "input 'spare' goes to no step: wire it, or leave it out"),
    (lambda r: r["inputs"].append("image.more"), r"input 'image\.more' reads like an output of a step"),
    (lambda r: r["steps"].append(r["steps"][0]), "chain: step 'image' is there twice"),
    (steps(graph="sound"), "step 'sound': there is no graph 'sound': the bundle has"),
    (steps(name="a.b"), r"step 'a\.b': the name of a step has no dot"),
    (steps(speed=1), "step 'image' has the unknown key 'speed'"),
    (steps(cache="yes"), "'cache' must be true or false, got 'yes'"),
    (steps(inputs={}), "step 'image': 'pixels' is given nothing"),
    (steps(inputs={"pixels": "image", "mask": "image"}), "'mask' is not an input of its graph that is to be given"),
    (steps(inputs={"pixels": "imag"}), r"input 'pixels' is taken from 'imag', which is no step.output and none of"),
    (steps(inputs={"pixels": "sound.embedding"}), "input 'pixels': there is no step 'sound': the chain has"),
    (steps(inputs={"pixels": "words.nothing"}), r"step 'words' has no output 'nothing': it has \['rows'\]"),
    (steps(inputs={"pixels": "words.rows"}), r"'pixels' is float32\[batch=1\.\.4, 3\], and is given float32\[.*3, 2\]"),
    (steps(inputs={"pixels": "labels"}), "input 'tokens' is int64.*, and 'labels' is float32.* elsewhere"),
    (lambda r: r["outputs"].update(seen="image"), "output 'seen' is an input of the chain: take it from a step"),
    (lambda r: r["outputs"].update(seen="image.rows"), "output 'seen': step 'image' has no output 'rows'"),
    (lambda r: r["outputs"].update(seen=3), r"'outputs'\['seen'\] must be a string"),
])
def test_bad_towers(change: Callable[[dict[str, Any]], Any], message: str) -> None:
    record = copy.deepcopy(TOWERS)
    change(record)
    with pytest.raises(RuntimesError, match=message):
        parse_chain(record, GRAPHS, "here")


@pytest.mark.parametrize(("changes", "message"), [
    ({"pick": "sample"}, "loop: 'pick' is 'sample', expected one of"),
    ({"beams": 4}, "loop has the unknown key 'beams'"),
    ({"max_steps": 0}, "needs a start token, and max_steps from 1 to 1048576"),
    ({"start": []}, "needs a start token"),
    ({"start": [True]}, "an item of 'start' must be an integer"),
    ({"start": [12]}, "token 12 is outside the 12 that 'logits' tells apart"),
    ({"stop": [-1]}, "token -1 is outside"),
    ({"start": [1] * 65}, "token 'ids' would be 1 to 65 long, it takes 1 to 64"),
    ({"token": "words"}, r"the graph has no input 'words': it has \['ids', 'memory', 'past'\]"),
    ({"token": "memory"}, r"token 'memory' is float32\[.*, expected int64\[batch, length\]"),
    ({"logits": "present"}, "output 'present' is there twice"),
    ({"logits": "odds"}, r"the graph has no output 'odds'"),
    ({"state": {"past": "present"}}, "state 'past' must be an object"),
    ({"state": {"past": {"from": "present", "length": 0}}}, "state 'past' has the unknown key 'length'"),
    ({"state": {"past": {"from": "logits"}}}, "output 'logits' is there twice"),
    ({"state": {"ids": {"from": "present"}}}, "input 'ids' is there twice"),
    ({"state": {"memory": {"from": "present"}}}, r"state 'memory' is float32\[batch=1\.\.4, 8\], and is given float32"),
    ({"state": {"past": {"from": "present", "initial": 65}}}, r"state 'past' begins with past=65, outside 0\.\.64"),
    ({"state": {}}, "step 'words': 'past' is given nothing"),
])
def test_bad_loops(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimesError, match=message):
        parse_chain(writing({**LOOP, **changes}), GRAPHS, "here")


def test_without_a_cache_the_token_input_must_take_them_all() -> None:
    graphs = {**GRAPHS, "decoder": entry(networks.UNCACHED)}
    parse_chain(writing({**LOOP, "state": {}, "max_steps": 64}), graphs, "here")
    with pytest.raises(RuntimesError, match="token 'ids' would be 1 to 65 long, it takes 1 to 64"):
        parse_chain(writing({**LOOP, "state": {}, "max_steps": 65}), graphs, "here")


def test_logits_that_are_no_logits() -> None:
    whole = replace(networks.CACHED.outputs[0], dtype="int64")
    graphs = {**GRAPHS, "decoder": replace(GRAPHS["decoder"], outputs=(whole, networks.CACHED.outputs[1]))}
    with pytest.raises(RuntimesError, match=r"logits 'logits' is int64\[.*, expected float32"):
        parse_chain(WRITING, graphs, "here")


def test_a_cycle() -> None:
    record = {
        "inputs": ["x"],
        "steps": [{"graph": "encoder", "inputs": {"x": "x"}},
                  {"name": "a", "graph": "wide", "inputs": {"memory": "b.logits"}},
                  {"name": "b", "graph": "wide", "inputs": {"memory": "a.logits"}}],
        "outputs": {"y": "a.logits"},
    }
    wide = GraphEntry(inputs=networks.CACHED.outputs[:1], outputs=networks.CACHED.outputs[:1], engines={},
                      golden=GRAPHS["text"].golden)
    for step in record["steps"][1:]:  # type: ignore[index]
        step["inputs"] = {"logits": step["inputs"]["memory"]}
    with pytest.raises(RuntimesError, match=r"the steps \['a', 'b'\] wait for each other: a chain has no cycle"):
        parse_chain(record, {**GRAPHS, "wide": wide}, "here")


def test_a_step_that_waits_for_itself() -> None:
    record = copy.deepcopy(TOWERS)
    wide = GraphEntry(inputs=networks.CACHED.outputs[:1], outputs=networks.CACHED.outputs[:1], engines={},
                      golden=GRAPHS["text"].golden)
    record["steps"].append({"name": "c", "graph": "wide", "inputs": {"logits": "c.logits"}})
    with pytest.raises(RuntimesError, match=r"the steps \['c'\] wait for each other"):
        parse_chain(record, {**GRAPHS, "wide": wide}, "here")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=6)
    | st.sampled_from(["image", "encoder.memory", "words.tokens", "past", 10**400, -1]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2), max_leaves=4)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), value=json_values, remove=st.booleans(), which=st.sampled_from([TOWERS, WRITING]))
def test_a_mutated_chain_raises_nothing_but_runtimes_errors(
    data: st.DataObject, value: Any, remove: bool, which: dict[str, Any]
) -> None:
    record = copy.deepcopy(which)
    *path, last = data.draw(st.sampled_from(places(record)))
    parent: Any = record
    for key in path:
        parent = parent[key]
    if remove:
        del parent[last]
    else:
        parent[last] = value
    try:
        wiring = parse_chain(record, GRAPHS, "here")
    except RuntimesError as error:
        assert "here" in str(error)  # noqa: PT017
    else:
        done: set[str] = set()
        for step in wiring.steps:
            assert step.after <= done
            done.add(step.name)
        assert {source.step for source in wiring.sources.values()} <= done
