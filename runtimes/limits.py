"""What a session may use of the machine: memory, threads, time, and the size of a feed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtimes.errors import LimitError, RuntimesError
from runtimes.spec import TensorSpec

STATM = Path("/proc/self/statm")


@dataclass(frozen=True, kw_only=True)
class ResourceLimits:
    """Limits of one session (of each graph's, in a chain); ``None`` is no limit.

    Memory: an engine whose files are larger is refused before it is opened, and one that made this process grow by
    more, opening and warm-up included, is closed again. What a run allocates later is not watched: bound it with
    ``max_batch`` and ``max_feed_bytes``, or with a cgroup. Time: a run that is not done raises LimitError, and the
    session stays usable. ONNX Runtime stops it after the layer it is in; OpenVINO cannot stop one safely: the caller is
    let go on time and the run goes on to its end, which later runs and closing wait for.
    """

    max_memory_bytes: int | None = None
    max_threads: int | None = None          # also the number used, where load() is given none
    timeout_s: float | None = None          # of one run
    max_batch: int | None = None
    max_feed_bytes: int | None = None       # all inputs of a feed together

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and not value > 0:
                raise RuntimesError(f"ResourceLimits: {field.name} must be above 0, got {value!r}: None is no limit")

    def threads(self, asked: int | None) -> int | None:
        """The number of threads to open an engine with."""
        if asked is None or self.max_threads is None:
            return self.max_threads if asked is None else asked
        if asked > self.max_threads:
            raise LimitError(f"threads is {asked}, and max_threads allows {self.max_threads}: ask for fewer")
        return asked

    def check_size(self, engine_bytes: int, where: str) -> None:
        if self.max_memory_bytes is not None and engine_bytes > self.max_memory_bytes:
            raise LimitError(
                f"{where}: its files are {engine_bytes} bytes, more than max_memory_bytes = {self.max_memory_bytes}: "
                "take a smaller engine, or allow more"
            )

    def check_growth(self, before: int | None, where: str) -> None:
        """``before`` is :meth:`resident` from before the engine was opened."""
        if before is None or self.max_memory_bytes is None:
            return
        grown = resident_bytes() - before
        if grown > self.max_memory_bytes:
            raise LimitError(
                f"{where}: opening it took {grown} bytes of memory, more than max_memory_bytes = "
                f"{self.max_memory_bytes}: it was closed; take a smaller engine, or allow more"
            )

    def resident(self) -> int | None:
        """The memory this process holds now, where a limit asks for it."""
        return None if self.max_memory_bytes is None else resident_bytes()

    @property
    def bounds_feeds(self) -> bool:
        return self.max_batch is not None or self.max_feed_bytes is not None

    def check_feed(self, specs: Iterable[TensorSpec], arrays: Mapping[str, np.ndarray]) -> None:
        """Refuse ``arrays``, one for each of ``specs``, that are larger than allowed."""
        if self.max_batch is not None:
            for spec in specs:
                size = 1 if spec.batch_axis is None else arrays[spec.name].shape[spec.batch_axis]
                if size > self.max_batch:
                    raise LimitError(
                        f"input {spec.name!r} has a batch of {size}, and max_batch allows {self.max_batch}: split it"
                    )
        if self.max_feed_bytes is not None:
            sizes = {name: array.nbytes for name, array in arrays.items()}
            if sum(sizes.values()) > self.max_feed_bytes:
                largest = max(sizes, key=lambda name: sizes[name])
                raise LimitError(
                    f"the feed is {sum(sizes.values())} bytes (input {largest!r} alone {sizes[largest]}), and "
                    f"max_feed_bytes allows {self.max_feed_bytes}: split it"
                )


def resident_bytes() -> int:
    """The memory this process holds now (VmRSS)."""
    try:
        pages = int(STATM.read_bytes().split()[1])
    except OSError as error:
        raise RuntimesError(
            f"max_memory_bytes needs /proc to read this process's memory ({error.strerror}): leave it out here"
        ) from error
    return pages * os.sysconf("SC_PAGE_SIZE")
