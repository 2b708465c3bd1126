"""Where engines are measured: this machine, or a device that a link reaches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from compress.bench.agent import Agent, physical_cores, run_here
from compress.errors import CompressError
from runtimes.engine import Engine

HERE = "local"  # this machine's name in a record


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Runs jobs of :mod:`runtimes.measure`.

    Args:
        name: its key in the record.
        agent: runs one job.
        threads: CPU threads where the config gives none: its physical cores.
        build: makes a runnable engine of one that is built on the device, ``build(engine, folder)``; None where there
            is nothing to build with.
        emulated: its numerics are the device's, its timings mean nothing.
        lost: the error that says no further job can run there.
    """

    name: str
    agent: Agent
    threads: int
    build: Callable[[Engine, Path], Engine] | None = None
    emulated: bool = False
    lost: type[CompressError] | tuple[()] = ()


def this_machine(agent: Agent = run_here) -> Machine:
    return Machine(name=HERE, agent=agent, threads=physical_cores())
