"""How the graphs of a bundle chain: the section "chain" of its manifest, parsed strictly.

::

    {"inputs": ["image", "labels"],
     "steps": [{"graph": "image", "inputs": {"pixels": "image"}},
               {"graph": "text", "inputs": {"tokens": "labels"}, "cache": true},
               {"name": "words", "graph": "decoder", "inputs": {"memory": "image.features"}, "loop": {...}}],
     "outputs": {"similar": "text.embedding", "caption": "words.tokens"}}

A step is called as its graph unless it has a name. A source is an input of the chain, or ``step.output``. A step with
a ``loop`` runs its graph once per token and has one output, ``tokens`` (batch, steps)::

    {"token": "ids", "logits": "logits", "state": {"past": {"from": "present", "initial": 0}},
     "start": [1], "stop": [2], "pad": 0, "max_steps": 32, "pick": "argmax"}

``token`` and ``logits`` are the graph's input and output, ``state`` maps each input of the cache to the output it is
taken from and the length it begins with. Without a state the graph is given all tokens so far in each step. Further
keys: ``suppress`` (ids that are never picked), ``suppress_first`` (not by the first step), ``min_steps`` (how many come
before a stop token may) and ``mask`` (an input ``(batch, past + length)`` of ones for the tokens that count, which
grows with them). A step may be given ``token``, the prompt, in place of ``start``, and ``mask``, 0 where it is padded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from runtimes.errors import RuntimesError
from runtimes.loops import Loop, fit, known, once, parse_loop
from runtimes.records import get, string_list, strings, typed
from runtimes.spec import Dim, TensorSpec

if TYPE_CHECKING:
    from runtimes.bundle import GraphEntry

TOKENS = "tokens"           # the output of a step that loops


@dataclass(frozen=True)
class Source:
    """Where an array comes from: output ``name`` of ``step``, or input ``name`` of the chain where that is ``None``."""

    step: str | None
    name: str


@dataclass(frozen=True, kw_only=True)
class Step:
    """One graph run, or one loop of it; ``inputs`` are those that earlier steps or the caller give."""

    name: str
    graph: str
    inputs: Mapping[str, Source]
    cache: bool = False
    loop: Loop | None = None

    @property
    def after(self) -> frozenset[str]:
        """The steps this one waits for."""
        return frozenset(source.step for source in self.inputs.values() if source.step is not None)


@dataclass(frozen=True, kw_only=True)
class Wiring:
    """A chain: ``steps`` in an order in which each comes after what it needs."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    steps: tuple[Step, ...]
    sources: Mapping[str, Source]       # output of the chain -> where it comes from


def parse_chain(record: Mapping[str, Any], graphs: Mapping[str, GraphEntry], where: str) -> Wiring:
    """The chain that ``record`` describes, of these ``graphs``.

    Raises:
        RuntimesError: on an unknown key, step, graph, input or output, one named twice, one not given, arrays that do
            not fit where they go, or steps that wait for each other.
    """
    where = f"{where}: chain"
    known(record, {"inputs", "steps", "outputs"}, where)
    names = string_list(record, "inputs", where)
    steps = [_step(typed(item, dict, f"{where}: an item of 'steps'"), graphs, names, where)
             for item in get(record, "steps", list, where)]
    by_name = {step.name: step for step in steps}
    once([step.name for step in steps], f"{where}: step")
    once(names, f"{where}: input")
    for name in names:
        if name.split(".")[0] in by_name and "." in name:
            raise RuntimesError(f"{where}: input {name!r} reads like an output of a step: rename the step")
    given = {step.name: {spec.name: spec for spec in _results(step, graphs)} for step in steps}
    sources = {name: _source(text, names, f"{where}: output {name!r}")
               for name, text in strings(record, "outputs", where).items()}
    if not sources:
        raise RuntimesError(f"{where} has no outputs: name at least one")
    used: dict[str, TensorSpec] = {}
    for step in steps:
        for spec in _waiting(step, graphs, where):
            place = f"{where}: step {step.name!r}: input {spec.name!r}"
            source = step.inputs[spec.name]
            if source.step is not None:
                fit(spec, _result(given, source, place), place)
                continue
            other = used.setdefault(source.name, replace(spec, name=source.name))
            if (other.dtype, other.shape) != (spec.dtype, spec.shape):
                raise RuntimesError(f"{place} is {spec.describe()}, and {other.name!r} is {other.describe()} elsewhere")
    for name in names:
        if name not in used:
            raise RuntimesError(f"{where}: input {name!r} goes to no step: wire it, or leave it out")
    outputs = tuple(_output(name, source, given, where) for name, source in sources.items())
    return Wiring(inputs=tuple(used[name] for name in names), outputs=outputs, steps=_ordered(by_name, where),
                  sources=sources)


def independent(graphs: Mapping[str, GraphEntry], where: str) -> Wiring:
    """The chain of graphs that need nothing of each other: each a step, their outputs joined.

    An input that several have under one name is given once. An output that several have is called ``graph.output``.

    Raises:
        RuntimesError: if an input of one is an output of another, or two inputs of one name differ.
    """
    made = [spec.name for entry in graphs.values() for spec in entry.outputs]
    for graph, entry in graphs.items():
        for spec in entry.inputs:
            if spec.name in made:
                raise RuntimesError(
                    f"{where}: input {spec.name!r} of graph {graph!r} is an output of a graph: write the bundle with a "
                    "chain that says how they are wired"
                )
    inputs = dict.fromkeys(spec.name for entry in graphs.values() for spec in entry.inputs)
    steps = [{"name": f"step{index}", "graph": graph, "inputs": {spec.name: spec.name for spec in entry.inputs}}
             for index, (graph, entry) in enumerate(graphs.items())]
    outputs = {
        spec.name if made.count(spec.name) == 1 else f"{graph}.{spec.name}": f"step{index}.{spec.name}"
        for index, (graph, entry) in enumerate(graphs.items()) for spec in entry.outputs
    }
    return parse_chain({"inputs": list(inputs), "steps": steps, "outputs": outputs}, graphs, where)


def _step(record: dict[str, Any], graphs: Mapping[str, GraphEntry], names: tuple[str, ...], where: str) -> Step:
    graph = get(record, "graph", str, f"{where}: a step")
    name = get(record, "name", str, where) if "name" in record else graph
    where = f"{where}: step {name!r}"
    known(record, {"name", "graph", "inputs", "cache", "loop"}, where)
    if graph not in graphs:
        raise RuntimesError(f"{where}: there is no graph {graph!r}: the bundle has {list(graphs)}")
    if "." in name:
        raise RuntimesError(f"{where}: the name of a step has no dot: give it a name without")
    wired = {key: _source(text, names, f"{where}: input {key!r}")
             for key, text in strings(record, "inputs", where).items()}
    loop = parse_loop(get(record, "loop", dict, where), graphs[graph], wired, where) if "loop" in record else None
    step = Step(name=name, graph=graph, inputs=wired, loop=loop,
                cache=get(record, "cache", bool, where) if "cache" in record else False)
    _waiting(step, graphs, where)
    return step


def _source(text: str, names: tuple[str, ...], where: str) -> Source:
    if text in names:
        return Source(None, text)
    step, dot, output = text.partition(".")
    if not dot:
        raise RuntimesError(f"{where} is taken from {text!r}, which is no step.output and none of {list(names)}")
    return Source(step, output)


def _waiting(step: Step, graphs: Mapping[str, GraphEntry], where: str) -> list[TensorSpec]:
    """The inputs of its graph that a step is to be given, all of them wired, and those that it may be and is."""
    optional = frozenset() if step.loop is None else step.loop.optional - step.inputs.keys()
    own = optional if step.loop is None else optional | step.loop.state.keys()
    waiting = [spec for spec in graphs[step.graph].inputs if spec.name not in own]
    wrong = sorted(step.inputs.keys() ^ {spec.name for spec in waiting})
    if wrong:
        problem = "is not an input of its graph that is to be given" if wrong[0] in step.inputs else "is given nothing"
        raise RuntimesError(f"{where}: {wrong[0]!r} {problem}: wire {[spec.name for spec in waiting]}")
    return waiting


def _results(step: Step, graphs: Mapping[str, GraphEntry]) -> Iterable[TensorSpec]:
    if step.loop is None:
        return graphs[step.graph].outputs
    token = next(spec for spec in graphs[step.graph].inputs if spec.name == step.loop.token)
    steps = Dim("steps", 1, step.loop.max_steps, step.loop.max_steps)
    return (TensorSpec(name=TOKENS, dtype="int64", shape=(token.shape[0], steps), modality="text"),)


def _result(given: Mapping[str, Mapping[str, TensorSpec]], source: Source, where: str) -> TensorSpec:
    outputs = given.get(str(source.step))
    if outputs is None:
        raise RuntimesError(f"{where}: there is no step {source.step!r}: the chain has {list(given)}")
    if source.name not in outputs:
        raise RuntimesError(f"{where}: step {source.step!r} has no output {source.name!r}: it has {list(outputs)}")
    return outputs[source.name]


def _output(name: str, source: Source, given: Mapping[str, Mapping[str, TensorSpec]], where: str) -> TensorSpec:
    where = f"{where}: output {name!r}"
    if source.step is None:
        raise RuntimesError(f"{where} is an input of the chain: take it from a step")
    return replace(_result(given, source, where), name=name)


def _ordered(steps: Mapping[str, Step], where: str) -> tuple[Step, ...]:
    ordered: dict[str, Step] = {}
    while len(ordered) < len(steps):
        ready = [step for name, step in steps.items() if name not in ordered and step.after <= ordered.keys()]
        if not ready:
            waiting = [name for name in steps if name not in ordered]
            raise RuntimesError(f"{where}: the steps {waiting} wait for each other: a chain has no cycle")
        ordered.update({step.name: step for step in ready})
    return tuple(ordered.values())
