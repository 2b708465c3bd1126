"""The decoder loop of a step, as the section "chain" of a manifest describes it (:mod:`runtimes.wiring`)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from runtimes.engine import choice
from runtimes.errors import RuntimesError
from runtimes.records import get, typed
from runtimes.spec import Dim, TensorSpec

if TYPE_CHECKING:
    from runtimes.bundle import GraphEntry

MOST_STEPS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Loop:
    """``state`` maps an input of the cache to the output it is taken from, ``initial`` to the length it begins with.

    ``start`` is empty where the caller gives the first tokens. ``mask`` is the input that says which tokens count.
    """

    token: str
    logits: str
    state: Mapping[str, str]
    initial: Mapping[str, int]
    start: tuple[int, ...]
    stop: tuple[int, ...]
    pad: int
    max_steps: int
    suppress: tuple[int, ...] = ()
    suppress_first: tuple[int, ...] = ()
    min_steps: int = 0
    mask: str | None = None

    @property
    def optional(self) -> frozenset[str]:
        """Inputs of the graph that a step may be wired to, or not."""
        return frozenset(name for name in (self.token, self.mask) if name is not None)


KEYS = {"token", "logits", "state", "start", "stop", "pad", "max_steps", "pick", "suppress", "suppress_first",
        "min_steps", "mask"}


def parse_loop(record: dict[str, Any], graph: GraphEntry, wired: Collection[str], where: str) -> Loop:
    """The loop that ``record`` describes, of a step that is given the inputs ``wired``."""
    where = f"{where}: loop"
    known(record, KEYS, where)
    choice(record, "pick", Literal["argmax"], where)
    pairs = {key: typed(value, dict, f"{where}: state {key!r}")
             for key, value in get(record, "state", dict, where).items()}
    for key, pair in pairs.items():
        known(pair, {"from", "initial"}, f"{where}: state {key!r}")
    stop = _ids(record, "stop", where)
    loop = Loop(
        token=get(record, "token", str, where), logits=get(record, "logits", str, where),
        state={key: get(pair, "from", str, f"{where}: state {key!r}") for key, pair in pairs.items()},
        initial={key: get(pair, "initial", int, where) if "initial" in pair else 0 for key, pair in pairs.items()},
        start=_ids(record, "start", where), stop=stop, max_steps=get(record, "max_steps", int, where),
        pad=get(record, "pad", int, where) if "pad" in record else (*stop, 0)[0],
        suppress=_ids(record, "suppress", where) if "suppress" in record else (),
        suppress_first=_ids(record, "suppress_first", where) if "suppress_first" in record else (),
        min_steps=get(record, "min_steps", int, where) if "min_steps" in record else 0,
        mask=get(record, "mask", str, where) if "mask" in record else None)
    prompted = loop.token in wired
    if not 1 <= loop.max_steps <= MOST_STEPS or not (loop.start or prompted):
        raise RuntimesError(f"{where}: needs a start token, and max_steps from 1 to {MOST_STEPS}")
    if not 0 <= loop.min_steps <= loop.max_steps:
        raise RuntimesError(f"{where}: min_steps is {loop.min_steps}, expected 0 to max_steps, {loop.max_steps}")
    _check_loop(loop, graph, where)
    if prompted and loop.start:
        raise RuntimesError(f"{where}: {loop.token!r} is wired, the caller gives the first tokens: leave start empty")
    return loop


def _check_loop(loop: Loop, graph: GraphEntry, where: str) -> None:
    inputs, outputs = ({spec.name: spec for spec in specs} for specs in (graph.inputs, graph.outputs))
    own = (loop.token, *loop.state, *(() if loop.mask is None else (loop.mask,)))
    for kind, names, found in (
        ("input", own, inputs), ("output", (loop.logits, *loop.state.values()), outputs)
    ):
        once(names, f"{where}: {kind}")
        for name in names:
            if name not in found:
                raise RuntimesError(f"{where}: the graph has no {kind} {name!r}: it has {list(found)}")
    token, logits = inputs[loop.token], outputs[loop.logits]
    if len(token.shape) != 2 or token.dtype not in ("int64", "int32"):
        raise RuntimesError(f"{where}: token {token.name!r} is {token.describe()}, expected int64[batch, length]")
    if len(logits.shape) not in (2, 3) or not logits.dtype.startswith("float"):
        raise RuntimesError(
            f"{where}: logits {logits.name!r} is {logits.describe()}, expected float32[batch, (length,) tokens]")
    most = logits.shape[-1].max if isinstance(logits.shape[-1], Dim) else logits.shape[-1]
    for number in (*loop.start, *loop.stop, loop.pad, *loop.suppress, *loop.suppress_first):
        if not 0 <= number < most:
            raise RuntimesError(f"{where}: token {number} is outside the {most} that {logits.name!r} tells apart")
    if len({*loop.suppress, *loop.suppress_first}) >= most:
        raise RuntimesError(f"{where}: every token of {logits.name!r} is suppressed: leave one to pick")
    if loop.mask is not None and (len(inputs[loop.mask].shape) != 2 or inputs[loop.mask].dtype != token.dtype):
        raise RuntimesError(
            f"{where}: mask {inputs[loop.mask].describe()} is not {token.dtype}[batch, length], as {token.name!r} is")
    first = len(loop.start) or 1        # of a prompt, whose length is the caller's
    low, high = bounds(token.shape[1])
    fed = (1, first) if loop.state else (first, first + loop.max_steps - 1)
    if min(fed) < low or max(fed) > high:
        raise RuntimesError(
            f"{where}: token {token.name!r} would be {min(fed)} to {max(fed)} long, it takes {low} to {high}")
    for name, present in loop.state.items():
        fit(inputs[name], outputs[present], f"{where}: state {name!r}")
        for size in inputs[name].shape[1:]:
            if isinstance(size, Dim) and not size.min <= loop.initial[name] <= size.max:
                begin = f"{size.name}={loop.initial[name]}"
                raise RuntimesError(f"{where}: state {name!r} begins with {begin}, outside {size.min}..{size.max}")


def bounds(size: int | Dim) -> tuple[int, int]:
    return (size.min, size.max) if isinstance(size, Dim) else (size, size)


def _ids(record: dict[str, Any], key: str, where: str) -> tuple[int, ...]:
    return tuple(typed(item, int, f"{where}: an item of {key!r}") for item in get(record, key, list, where))


def fit(spec: TensorSpec, given: TensorSpec, where: str) -> None:
    sizes = zip(spec.shape, given.shape, strict=False)
    clash = any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in sizes)
    if spec.dtype != given.dtype or len(spec.shape) != len(given.shape) or clash:
        raise RuntimesError(f"{where} is {spec.describe()}, and is given {given.describe()}")


def once(names: Iterable[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise RuntimesError(f"{what} {name!r} is there twice: give each a name of its own")
        seen.add(name)


def known(record: Mapping[str, Any], keys: set[str], where: str) -> None:
    unknown = sorted(record.keys() - keys)
    if unknown:
        raise RuntimesError(f"{where} has the unknown key {unknown[0]!r}: it is one of {sorted(keys)}")
