"""The teacher's answers to a batch: remembered from one pass over the train set, in memory or on disk, or computed."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from compress.distill.batches import Batch, Batches, Group
from compress.distill.bound import Bound
from compress.distill.precision import computing
from compress.store import atomic_write
from runtimes.hashing import file_digest

CACHE_BYTES = 1 << 30
"""Most memory that remembered answers may take; beyond it they go to disk, or the teacher runs at every step."""

DISK_SHARE = 0.5
"""Most of the free space that they may take."""

OPERATIONS_PER_BYTE = 100.0
"""A teacher that computes less for each byte of its answers is faster than a disk of 200 MB/s, at 20 GFLOP/s."""

Place = tuple[int, int]


class Teacher:
    """Answers batches with the teacher's outputs and features; a context manager, behind which what it kept is gone.

    The pass that remembers goes through the set in order, not in the order of the steps, so that a run continued from a
    checkpoint sees the very same answers.

    Attributes:
        remembers: ``memory``, ``disk``, or ``nothing``: then it runs at every step.
    """

    def __init__(
        self, bound: Bound, batches: Batches, *, epochs: int, precision: str = "fp32", folder: Path | None = None,
        key: str = "", progress: Callable[[str], None] = lambda text: None,
    ) -> None:  # fmt: skip
        """
        Args:
            folder: where answers on disk stay for the next run of the same ``key``; by default they go with this one.
        """
        self._bound, self._batches, self._precision = bound, batches, precision
        self._progress = progress
        self._kept: dict[Place, list[Tensor]] = {}
        self._held = contextlib.ExitStack()
        self.remembers = self._where(folder) if epochs > 1 else "nothing"
        if self.remembers == "memory":
            self._fill(lambda place, index, like, shape: torch.empty(shape, dtype=like.dtype))
        elif self.remembers == "disk":
            self._on_disk(folder, key)

    def __enter__(self) -> Teacher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kept.clear()
        self._held.close()

    def __call__(self, batch: Batch) -> Sequence[Tensor]:
        if self.remembers != "nothing":
            kept = zip(self._kept[batch.place], self._bound.batch_axes, strict=True)
            return [value.index_select(axis or 0, batch.rows).to(self._bound.device) for value, axis in kept]
        return self._run(batch.feed)

    def _where(self, folder: Path | None) -> str:
        if None in self._bound.batch_axes:
            return "nothing"
        first = next(self._batches.windows())
        samples = sum(len(group.positions) for window in self._batches.windows() for group in window)
        needed = samples * max(self._bytes(group) for group in first)
        if needed <= CACHE_BYTES:
            return "memory"
        room = shutil.disk_usage(_existing(Path(tempfile.gettempdir()) if folder is None else folder)).free
        worth = all(self._operations(group) >= OPERATIONS_PER_BYTE * self._bytes(group) for group in first)
        return "disk" if worth and needed <= DISK_SHARE * room else "nothing"

    def _bytes(self, group: Group) -> int:
        return sum(value.nbytes for value in self._run(self._batches.rows(group, torch.arange(1))))

    def _operations(self, group: Group) -> int:
        with FlopCounterMode(display=False) as counter:
            self._run(self._batches.rows(group, torch.arange(1)))
        return int(counter.get_total_flops())

    def _on_disk(self, folder: Path | None, key: str) -> None:
        if folder is None:
            folder = Path(self._held.enter_context(tempfile.TemporaryDirectory(prefix="compress-answers-")))
        into = folder / "answers"
        into.mkdir(parents=True, exist_ok=True)
        record = into / "answers.json"
        done = record.is_file() and record.read_bytes() == _recorded(into, key)

        def mapped(place: Place, index: int, like: Tensor, shape: Sequence[int]) -> Tensor:
            name = str(into / f"{place[0]}-{place[1]}-{index}.bin")
            flat = torch.from_file(name, shared=True, size=math.prod(shape), dtype=like.dtype)
            return flat.view(*shape)

        if not done:
            record.unlink(missing_ok=True)
            for stale in into.glob("*.bin"):
                stale.unlink()
        self._fill(mapped, again=not done)
        if not done:
            atomic_write(record, _recorded(into, key))

    def _fill(self, make: Callable[[Place, int, Tensor, Sequence[int]], Tensor], *, again: bool = True) -> None:
        """Keep the answers to all samples in tensors that ``make`` makes; where not ``again`` they are in there."""
        done, total = 0, len(self._batches.data)
        axes = [axis or 0 for axis in self._bound.batch_axes]
        for place, group in self._groups():
            count = len(group.positions)
            for rows in torch.split(torch.arange(count), self._batches.size):
                answers = self._run(self._batches.rows(group, rows))
                if place not in self._kept:
                    self._kept[place] = [
                        make(place, index, value, (*value.shape[:axis], count, *value.shape[axis + 1 :]))
                        for index, (value, axis) in enumerate(zip(answers, axes, strict=True))
                    ]
                if not again:
                    break
                for whole, value, axis in zip(self._kept[place], answers, axes, strict=True):
                    whole.narrow(axis, int(rows[0]), len(rows)).copy_(value)
                done += len(rows)
                self._progress(f"teacher's answers, {done} of {total} samples")

    def _groups(self) -> Iterator[tuple[Place, Group]]:
        for index, window in enumerate(self._batches.windows()):
            for number, group in enumerate(window):
                yield (index, number), group

    def _run(self, feed: Mapping[str, Tensor]) -> Sequence[Tensor]:
        device = self._bound.device
        with torch.no_grad(), computing(self._precision, device):
            values = self._bound({name: value.to(device) for name, value in feed.items()})
        return [value.float() if value.dtype == torch.bfloat16 else value for value in values]


def _existing(folder: Path) -> Path:
    """``folder``, or the nearest above it that is there: its disk is the one that is written to."""
    return next(place for place in (folder, *folder.absolute().parents) if place.is_dir())


def _recorded(into: Path, key: str) -> bytes:
    """What is kept beside the answers in ``into``: whose they are, and their digests, since a file may be lost."""
    files = {path.name: file_digest(path) for path in sorted(into.glob("*.bin"))}
    return json.dumps({"key": key, "files": files}, sort_keys=True).encode()
