"""Measuring jobs on the tiny matmul, and devices with short waits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from compress.device import Device
from compress.device.bootstrap import ONE_LINE
from compress.device.link import Link
from runtimes.arrays import write_arrays
from runtimes.engineset import EngineSet
from tests.contracts.engines import make_engine
from tests.contracts.models import BY_NAME
from tests.runtimes import networks
from tests.runtimes.test_chain import LOOP, writing

QUICK = {"beat_s": 0.2, "silence_s": 2.0, "lost_s": 3.0}


def make_job(folder: Path, *, duration_s: float = 0.02) -> dict[str, Any]:
    """An engine, a feed and two shards in ``folder``, and a job that times it and runs the shards through it."""
    folder.mkdir(parents=True, exist_ok=True)
    engine = folder / "engine"
    make_engine(BY_NAME["matmul"], "onnxruntime", engine)
    x = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)
    write_arrays(folder / "feed.npz", {"x": x[:2]})
    for number, part in enumerate((x[:5], x[5:])):
        (folder / str(number)).mkdir()
        write_arrays(folder / str(number) / "0000.npz", {"x": part})
    return {
        "engines": {"main": str(engine)}, "chain": None, "threads": 1,
        "latency": {"feed": str(folder / "feed.npz"), "warmup_s": 0.01, "duration_s": duration_s, "min_runs": 5},
        "outputs": {"shards": [str(folder / "0/0000.npz"), str(folder / "1/0000.npz")], "inputs": ["x"], "batch": 3,
                    "into": str(folder / "outputs.npz")},
        "layers": False,
    }


def make_chain_job(folder: Path) -> dict[str, Any]:
    """The engines of a tiny captioner, two feeds and a job that times it and runs three samples through it."""
    folder.mkdir(parents=True, exist_ok=True)
    cases = {"encoder": networks.ENCODER, "decoder": networks.CACHED}
    engines = {graph: make_engine(case, "onnxruntime", folder / graph) for graph, case in cases.items()}
    write_arrays(folder / "feed.npz", {"x": networks.X[:1]})
    write_arrays(folder / "shard.npz", {"x": networks.X})
    return {
        **EngineSet(engines=engines, chain=writing(LOOP)).job(), "threads": 1, "layers": False,
        "latency": {"feed": str(folder / "feed.npz"), "warmup_s": 0.0, "duration_s": 0.0, "min_runs": 5},
        "outputs": {"shards": [str(folder / "shard.npz")], "inputs": ["x"], "batch": 1,
                    "into": str(folder / "outputs.npz")},
    }


def local_command(cache: Path) -> list[str]:
    """A device that is a process of this machine with a cache of its own; no ssh between."""
    return ["env", f"COMPRESS_CACHE={cache}", "OMP_NUM_THREADS=1", sys.executable, "-c", ONE_LINE, "compress"]


def quick(
    command: list[str], name: str = "board", explain: Callable[[str], str | None] = lambda stderr: None
) -> Device:
    """A device at the end of ``command`` that is given up after seconds."""
    return Device(Link(command, name, explain=explain, **QUICK), name)
