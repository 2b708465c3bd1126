"""One choice for each part of a model, so that the whole is as fast as can be within a budget of cost."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from compress.errors import CompressError


def choose(
    times: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], budget: float,
    limits: Sequence[tuple[Sequence[int], int]] = (),
) -> tuple[int, ...] | None:
    """The choice of each part with the least sum of times whose costs add up to at most ``budget``; None if none does.

    The multiple-choice knapsack problem, solved as a whole by SciPy's mixed-integer programming (HiGHS).

    Args:
        times: of each part, the time of each of its choices; below 0 where a choice saves time.
        costs: the same for what they cost, none below 0; infinite where a choice is not to be had.
        budget: infinite where cost does not matter.
        limits: of these parts at most so many take another choice than their first.

    Raises:
        CompressError: if the solver gives up, which it does not do for want of a solution.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_matrix

    owner = np.repeat(np.arange(len(times)), [len(part) for part in times])
    time = np.array([value for part in times for value in part], dtype=np.float64)
    cost = np.array([value for part in costs for value in part], dtype=np.float64)
    allowed = np.isfinite(cost)
    one_each = csr_matrix((np.ones(len(owner)), (owner, np.arange(len(owner)))))
    constraints = [LinearConstraint(one_each, 1, 1)]
    scale = cost[allowed].max(initial=0.0) or 1.0      # the solver's tolerances are absolute, a cost may be 1e-9
    if np.isfinite(budget):
        constraints.append(LinearConstraint(np.where(allowed, cost, 0.0)[None] / scale, -np.inf, budget / scale))
    first = np.concatenate([[0], np.cumsum([len(part) for part in times])])[:-1]
    for parts, most in limits:       # as many as the parts, less those that take their first
        row = csr_matrix((np.ones(len(parts)), ([0] * len(parts), first[list(parts)])), shape=(1, len(owner)))
        constraints.append(LinearConstraint(row, len(parts) - most, np.inf))
    with _mute():
        found = milp(
            time / (np.abs(time).max(initial=0.0) or 1.0), integrality=np.ones(len(owner)),
            bounds=Bounds(0, allowed.astype(float)), constraints=constraints, options={"mip_rel_gap": 0.0},
        )  # fmt: skip
    if found.status == 2:       # infeasible
        return None
    if found.x is None:
        raise CompressError(f"no choice of precisions was found: {found.message}")
    taken = found.x > 0.5
    return tuple(int(np.flatnonzero(taken[owner == part])[0]) for part in range(len(times)))


@contextlib.contextmanager
def _mute() -> Iterator[None]:
    """Without standard output: HiGHS prints a line of its own at some problems, which a command's JSON cannot bear."""
    sys.stdout.flush()
    held, libc = os.dup(1), ctypes.CDLL(None)
    try:
        with open(os.devnull, "wb") as nothing:
            libc.fflush(None)
            os.dup2(nothing.fileno(), 1)
        yield
    finally:
        libc.fflush(None)       # what it prints waits in C's own buffer
        os.dup2(held, 1)
        os.close(held)
