"""Feeds of many callers run together: one run of the engine for as many as it takes, each caller given its own part."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from runtimes.errors import FeedError, RuntimesError
from runtimes.spec import Dim, TensorSpec, check_feed, largest_batch

if TYPE_CHECKING:
    from runtimes.chain import Chain
    from runtimes.session import Session

Outputs = dict[str, np.ndarray]
Item = tuple[dict[str, np.ndarray], int, "Future[Outputs]"]     # a checked feed, its samples, who waits for it


class Batcher:
    """Puts the feeds that come in within ``max_delay_ms`` of each other together along the batch axis.

    Together they give what they give one by one, up to rounding: a backend may sum a larger batch in another order.
    Feeds whose other dimensions differ (texts of two lengths), or whose inputs without a batch axis do, run apart.
    Where a run of several fails, each of them is run alone, so that an error reaches its caller only.

    A context manager; :meth:`close` runs what is waiting and leaves the session open.
    """

    def __init__(self, session: Session | Chain, *, max_batch: int = 8, max_delay_ms: float = 2.0) -> None:
        """
        Args:
            session: what runs the feeds; others may use it at the same time.
            max_batch: the most samples in a run; the engine's own limit where that is lower.
            max_delay_ms: the longest a feed waits for others.

        Raises:
            RuntimesError: if the engine's batch is fixed, or an output cannot be told apart by sample.
        """
        if max_batch < 1 or max_delay_ms < 0:
            raise RuntimesError(f"max_batch is at least 1 and max_delay_ms 0, got {max_batch} and {max_delay_ms}")
        _check_specs(session.inputs, session.outputs)
        self.max_batch = largest_batch(session.inputs, max_batch)
        self._session = session
        self._delay_s = max_delay_ms / 1e3
        self._waiting: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="runtimes-batcher", daemon=True)
        self._worker.start()

    def run(self, feed: Mapping[str, np.ndarray]) -> Outputs:
        """As ``session.run``, of one sample or a few; waits for its part of a run. Raises as that does."""
        return self.submit(feed).result()

    def submit(self, feed: Mapping[str, np.ndarray]) -> Future[Outputs]:
        """:meth:`run` without waiting. A feed that does not match the inputs is refused here, by FeedError."""
        checked = check_feed(self._session.inputs, feed)
        sizes = {spec.name: checked[spec.name].shape[spec.batch_axis] for spec in self._session.inputs
                 if spec.batch_axis is not None}
        samples = next(iter(sizes.values()))
        if len(set(sizes.values())) != 1 or samples > self.max_batch:
            raise FeedError(f"feed: batches {sizes}: a Batcher takes one size in all inputs, up to {self.max_batch}")
        future: Future[Outputs] = Future()
        with self._lock:
            if self._closed:
                raise RuntimesError("this Batcher is closed: make another")
            self._waiting.put((checked, samples, future))
        return future

    def close(self) -> None:
        """Refuse new feeds and run those that wait; twice is harmless."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._waiting.put(None)
        self._worker.join()

    def __enter__(self) -> Batcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _work(self) -> None:
        left: Item | None = None        # came too late for the last run
        while True:
            first = left or self._waiting.get()
            if first is None:
                return
            items, left, ended = self._gather(first)
            groups: dict[object, list[Item]] = {}
            for item in items:
                if item[2].set_running_or_notify_cancel():
                    groups.setdefault(_kind(self._session.inputs, item[0]), []).append(item)
            for group in groups.values():
                self._run_group(group)
            if ended:
                return

    def _gather(self, first: Item) -> tuple[list[Item], Item | None, bool]:
        """The feeds for one run, one that no longer fits, and whether the last has come."""
        items, samples, until = [first], first[1], time.monotonic() + self._delay_s
        while samples < self.max_batch:
            try:
                item = self._waiting.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if item is None:
                return items, None, True
            if samples + item[1] > self.max_batch:
                return items, item, False
            items.append(item)
            samples += item[1]
        return items, None, False

    def _run_group(self, group: Sequence[Item]) -> None:
        try:
            outputs = self._session.run(self._joined([item[0] for item in group]))
            parts = self._split(outputs, [item[1] for item in group])
        except BaseException as error:      # whatever it is, it is the callers', and this thread lives on
            if len(group) > 1:
                for item in group:
                    self._run_group([item])
                return
            group[0][2].set_exception(error)
            return
        for item, part in zip(group, parts, strict=True):
            item[2].set_result(part)

    def _joined(self, feeds: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        if len(feeds) == 1:
            return feeds[0]
        return {
            spec.name: feeds[0][spec.name] if spec.batch_axis is None
            else np.concatenate([feed[spec.name] for feed in feeds], axis=spec.batch_axis)
            for spec in self._session.inputs
        }

    def _split(self, outputs: Outputs, sizes: Sequence[int]) -> list[Outputs]:
        if len(sizes) == 1:
            return [outputs]
        axes = {spec.name: spec.batch_axis or 0 for spec in self._session.outputs}
        for name, array in outputs.items():
            if array.shape[axes[name]] != sum(sizes):
                raise RuntimesError(f"output {name!r} has shape {array.shape} for {sum(sizes)} samples: run them apart")
        ends = np.cumsum(sizes)
        return [
            {name: array.take(range(end - size, end), axis=axes[name]) for name, array in outputs.items()}
            for size, end in zip(sizes, ends, strict=True)
        ]


def _check_specs(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    batched = [spec for spec in inputs if spec.batch_axis is not None]
    for spec in batched:
        size = spec.shape[spec.batch_axis or 0]
        if not isinstance(size, Dim) or size.max == 1:
            raise RuntimesError(
                f"input {spec.name!r} is {spec.describe()}, its batch is fixed: nothing can be put together, run the "
                "session itself, or export the model with a dynamic batch"
            )
    apart = [spec.name for spec in outputs if spec.batch_axis is None]
    if apart or not batched:
        problem = f"output {apart[0]!r} has" if apart else "the inputs have"
        raise RuntimesError(f"{problem} no batch axis, so callers cannot be told apart: run the session itself")


def _kind(inputs: Sequence[TensorSpec], feed: Mapping[str, np.ndarray]) -> object:
    """What feeds must share to run together: every size but the batch, and inputs without a batch as they are."""
    key: list[object] = []
    for spec in inputs:
        array = feed[spec.name]
        if spec.batch_axis is None:
            key.append((array.shape, array.tobytes()))
        else:
            key.append(array.shape[:spec.batch_axis] + array.shape[spec.batch_axis + 1:])
    return tuple(key)
