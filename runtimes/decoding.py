"""The decoder loop of a chain: one run of its graph per token, the key/value cache handed from run to run."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from runtimes.errors import RuntimesError
from runtimes.loops import Loop
from runtimes.session import Session
from runtimes.spec import Dim, TensorSpec
from runtimes.wiring import TOKENS


def decode(session: Session, loop: Loop, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Pick the most likely token, again and again, until every row of the batch has stopped.

    A step hands what the engine returned as its cache back to the engine, as it is: nothing here grows with the number
    of tokens so far. Without a cache the engine gets all tokens so far.

    Args:
        session: the decoder's.
        loop: how it is run.
        given: its inputs that stay the same, and the prompt where there is one; the batch is the prompt's, or that of
            the others, and 1 where they have none.

    Returns:
        ``tokens``, int64 (batch, steps): what was picked after the start tokens, a stop token included; a row that has
        stopped goes on with the pad token.

    Raises:
        FeedError: if ``given`` does not match the graph's inputs.
        RuntimesError: if the cache, the tokens or their mask outgrow the engine, or the engine fails.
    """
    specs = {spec.name: spec for spec in session.inputs}
    given = dict(given)
    dtype = specs[loop.token].dtype
    tokens = given.pop(loop.token, None)
    if tokens is None:
        tokens = np.tile(np.array(loop.start, dtype), (_batch_of(given, specs), 1))
    batch = len(tokens)
    state = {name: _empty(specs[name], batch, loop.initial[name]) for name in loop.state}
    mask = {} if loop.mask is None else {loop.mask: given.pop(loop.mask, np.ones(tokens.shape, dtype))}
    outputs = session.run({**given, **state, **mask, loop.token: tokens})   # looks at every value, once
    stopped, stop = np.zeros(batch, bool), np.array(loop.stop, np.int64)
    picked: list[np.ndarray] = []
    while True:
        best = _pick(outputs[loop.logits], loop, len(picked))
        best[stopped] = loop.pad
        picked.append(best)
        stopped |= (best[:, None] == stop).any(axis=1)
        if stopped.all() or len(picked) == loop.max_steps:
            return {TOKENS: np.stack(picked, axis=1).astype(np.int64)}
        column = best[:, None].astype(dtype)
        tokens = column if loop.state else np.concatenate([tokens, column], axis=1)
        state = {name: outputs[present] for name, present in loop.state.items()}
        mask = {name: np.concatenate([array, np.ones_like(column)], axis=1) for name, array in mask.items()}
        _check_room(specs, {**state, **mask, loop.token: tokens})
        outputs = session.run_checked({**given, **state, **mask, loop.token: tokens})


def _pick(logits: np.ndarray, loop: Loop, step: int) -> np.ndarray:
    """The most likely token of each row, of those that may be picked in ``step``, counted from 0."""
    scores = logits[:, -1] if logits.ndim == 3 else logits
    refused = [*loop.suppress]
    refused += loop.suppress_first if step == 0 else ()
    refused += loop.stop if step < loop.min_steps else ()
    if refused:
        scores = scores.copy()
        scores[:, refused] = -np.inf
    return np.asarray(scores.argmax(axis=-1))


def _batch_of(given: Mapping[str, np.ndarray], specs: Mapping[str, TensorSpec]) -> int:
    return next((given[name].shape[axis] for name in given if (axis := _batch_axis(specs[name])) is not None
                 and given[name].ndim > axis), 1)


def _batch_axis(spec: TensorSpec) -> int | None:
    return spec.batch_axis if spec.batch_axis is not None and isinstance(spec.shape[spec.batch_axis], Dim) else None


def _empty(spec: TensorSpec, batch: int, length: int) -> np.ndarray:
    """Zeros for an input of the cache, ``length`` long where its size is not fixed."""
    sizes = [size if isinstance(size, int) else length for size in spec.shape]
    if (axis := _batch_axis(spec)) is not None:
        sizes[axis] = batch
    return np.zeros(sizes, spec.dtype)


def _check_room(specs: Mapping[str, TensorSpec], state: Mapping[str, np.ndarray]) -> None:
    for name, array in state.items():
        for size, bound in zip(array.shape, specs[name].shape, strict=True):
            if isinstance(bound, Dim) and size > bound.max:
                raise RuntimesError(
                    f"{name!r} has grown to {bound.name}={size}, the engine takes {bound.max}: allow fewer "
                    "steps in the chain, or export the decoder for more"
                )
