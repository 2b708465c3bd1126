"""What an opened session and a chain of them share: runs in flight, submitting, closing, and what a fork does."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from runtimes.errors import RuntimesError

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    from runtimes.bundle import Bundle
    from runtimes.processing import Processor

WORKERS = 4     # threads that :meth:`Opened.submit` runs feeds on; one session rarely gains from more
Self = TypeVar("Self", bound="Opened")


class Opened:
    """Counts its runs, so that :meth:`close` waits for those in flight; refuses to be used after it, or after a fork.

    A subclass says what a run is (``_run``) and what closing gives back (``_release``).
    """

    def __init__(self, what: str, held: object) -> None:
        """``what`` names it in messages; ``held`` is what must never be destroyed in a forked child."""
        self._what = what
        self._held = held
        self.origin: tuple[Bundle, str | None] | None = None     # and the graph, where it is not all of them
        self._pid = os.getpid()
        self._running = 0
        self._closing = False
        self._idle = threading.Condition(threading.Lock())
        self._executor: ThreadPoolExecutor | None = None
        _OPEN.add(self)

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once; threads may call it at the same time, and each gets the outputs of its own feed.

        Args:
            feed: input name -> array, as ``inputs`` describes them.

        Returns:
            Output name -> array; the arrays are the caller's own.

        Raises:
            FeedError: if the feed does not match the inputs; names the first one that does not.
            LimitError: if the feed or the run is beyond the limits it was loaded with.
            RuntimesError: if it is closed, was opened before a fork, or the backend fails.
        """
        self._enter()
        try:
            return self._run(feed)
        finally:
            self._leave()

    def ask(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Answers to raw inputs, as the bundle's processing describes both: a picture and a string in, a label out.

        Args:
            raw: raw input name -> a picture, a string, a sound, numbers; a ``list`` of them is a batch.

        Returns:
            Output name -> its answer, of plain Python values; for a batch a list of answers.

        Raises:
            FeedError: names the raw input that is missing, unknown or cannot be used, and what was expected.
            RuntimesError: if the bundle does not say how to read its outputs, a package that processing needs is not
                installed, or as :meth:`run` does.
        """
        return self.processor.ask(self.run, raw)

    @cached_property
    def processor(self) -> Processor:
        """What :meth:`ask` makes feeds and answers with; its ``feed`` and ``answer`` may be called apart."""
        from runtimes.processing import Processor

        if self.origin is None:
            raise RuntimesError(f"{self._what} was not opened by load(), which knows the bundle's processing")
        return Processor(*self.origin)

    def submit(self, feed: Mapping[str, np.ndarray]) -> Future[dict[str, np.ndarray]]:
        """:meth:`run` on another thread; its errors arrive by the future. Leave the arrays alone until it is done."""
        self._enter()
        try:
            future = self._workers().submit(self._run, feed)
        except BaseException:
            self._leave()
            raise
        future.add_done_callback(lambda _: self._leave())   # when it is cancelled, too
        return future

    async def run_async(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """:meth:`submit` for asyncio: ``await session.run_async(feed)``."""
        import asyncio

        return await asyncio.wrap_future(self.submit(feed))

    def close(self) -> None:
        """Refuse new runs, wait for those in flight and submitted, give back the memory; twice is harmless.

        In a forked child it does nothing but refuse: what was opened is the parent's.
        """
        if os.getpid() != self._pid:
            self._closing = True
            return
        with self._idle:
            if self._closing:
                return
            self._closing = True
            while self._running:
                self._idle.wait()
        if self._executor is not None:
            self._executor.shutdown(wait=False)     # idle by now; this may be a call from one of its threads
        _OPEN.discard(self)
        self._held = None
        self._release()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def _release(self) -> None:
        raise NotImplementedError

    def _enter(self) -> None:
        if os.getpid() != self._pid:    # before the lock: another thread may have held it when the process forked
            raise RuntimesError(
                f"{self._what} was opened in process {self._pid} and this is a fork of it: the backend's threads are "
                "not here; load the bundle after forking, or start processes with multiprocessing's 'spawn'"
            )
        with self._idle:
            if self._closing:
                raise RuntimesError(f"{self._what} is closed: load the bundle again")
            self._running += 1

    def _leave(self) -> None:
        with self._idle:
            self._running -= 1
            if not self._running and self._closing:
                self._idle.notify_all()

    def _workers(self) -> ThreadPoolExecutor:
        from concurrent.futures import ThreadPoolExecutor

        with self._idle:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(self._width(), thread_name_prefix="runtimes")
            return self._executor

    def _width(self) -> int:
        return WORKERS


_OPEN: weakref.WeakSet[Opened] = weakref.WeakSet()


def _abandon() -> None:
    """In a forked child: never destroy what a backend opened, which waits for threads that only the parent has."""
    for opened in list(_OPEN):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(opened._held))


def _register(hook: Callable[[], None]) -> None:
    if hasattr(os, "register_at_fork"):     # not on Windows, where nothing forks
        os.register_at_fork(after_in_child=hook)


_register(_abandon)
