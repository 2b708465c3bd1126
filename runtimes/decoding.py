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
        given: its inputs that stay the same; the batch is theirs, and 1 where they have none.

    Returns:
        ``tokens``, int64 (batch, steps): what was picked after the start tokens, a stop token included; a row that has
        stopped goes on with the pad token.

    Raises:
        FeedError: if ``given`` does not match the graph's inputs.
        RuntimesError: if the cache outgrows the engine, or the engine fails.
    """
    specs = {spec.name: spec for spec in session.inputs}
    batch = next((given[name].shape[axis] for name in given if (axis := _batch_axis(specs[name])) is not None
                  and given[name].ndim > axis), 1)
    dtype = specs[loop.token].dtype
    tokens = np.tile(np.array(loop.start, dtype), (batch, 1))
    state = {name: _empty(specs[name], batch, loop.initial[name]) for name in loop.state}
    outputs = session.run({**given, **state, loop.token: tokens})   # looks at every value, once
    stopped = np.zeros(batch, bool)
    picked: list[np.ndarray] = []
    while True:
        logits = outputs[loop.logits]
        best = (logits[:, -1] if logits.ndim == 3 else logits).argmax(axis=-1)
        best[stopped] = loop.pad
        picked.append(best)
        stopped |= np.isin(best, loop.stop)
        if stopped.all() or len(picked) == loop.max_steps:
            return {TOKENS: np.stack(picked, axis=1).astype(np.int64)}
        column = best[:, None].astype(dtype)
        if loop.state:
            tokens, state = column, {name: outputs[present] for name, present in loop.state.items()}
            _check_room(specs, state)
        else:
            tokens = np.concatenate([tokens, column], axis=1)
        outputs = session.run_checked({**given, **state, loop.token: tokens})


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
                    f"the cache {name!r} has grown to {bound.name}={size}, the engine takes {bound.max}: allow fewer "
                    "steps in the chain, or export the decoder for more"
                )
