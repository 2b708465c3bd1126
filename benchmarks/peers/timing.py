"""Latency of several results of one model on one backend, in turning order: ratios hold within one run.

Every result has a process of its own, as in an app, and waits while another is timed. In a turn each graph is run on
the feeds it sees in the model's chain, batch 1, for a while; the first run of a turn is left out, since the caches are
another's then. All processes are started anew for each restart: where memory lies is drawn again.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.peers.engines import Result

ROOT = Path(__file__).resolve().parents[2]
PAUSE_S = 0.03      # behind a turn: a backend's threads wait actively for more work for some time
FEWEST = 3          # runs of a feed in a turn that count


def latencies(
    results: Mapping[str, Result], feeds: Sequence[Mapping[str, Any]], *, threads: int, restarts: int, rounds: int,
    turn_s: float,
) -> dict[str, list[dict[str, float]]]:  # fmt: skip
    """Result -> for each restart graph -> milliseconds, the median of its runs; ``""`` is one pass of all graphs.

    A result that the backend cannot open is left out.

    Args:
        feeds: ``{"graph": its name, "file": an .npz, "times": how often it is run in a pass}`` each.
        turn_s: how long a result is timed in one turn.
    """
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in results}
    for _ in range(restarts):
        with _servers(results, feeds, threads, turn_s) as servers:
            order = list(servers)
            runs: dict[str, list[list[int]]] = {name: [[] for _ in feeds] for name in servers}
            for number in range(rounds + 1):
                for name in order:
                    for kept, times in zip(runs[name], _asked(servers[name]), strict=True):
                        kept.extend(times if number else ())
                    time.sleep(PAUSE_S)
                order = [*order[1:], order[0]]
        for name, of_feeds in runs.items():
            seen[name].append(_pass(feeds, [statistics.median(times) / 1e6 for times in of_feeds]))
    return {name: found for name, found in seen.items() if found}


def _pass(feeds: Sequence[Mapping[str, Any]], medians: Sequence[float]) -> dict[str, float]:
    total = {"": 0.0}
    for feed, ms in zip(feeds, medians, strict=True):
        total[feed["graph"]] = total.get(feed["graph"], 0.0) + feed["times"] * ms
        total[""] += feed["times"] * ms
    return {name: round(ms, 4) for name, ms in total.items()}


@contextmanager
def _servers(
    results: Mapping[str, Result], feeds: Sequence[Mapping[str, Any]], threads: int, turn_s: float
) -> Iterator[dict[str, subprocess.Popen[str]]]:
    servers = {}
    try:
        for name, result in results.items():
            servers[name] = subprocess.Popen([sys.executable, "-m", "benchmarks.peers.timing"], cwd=ROOT, text=True,
                                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
            told = {"result": result.to_json(), "feeds": list(feeds), "threads": threads, "turn_s": turn_s}
            _tell(servers[name], json.dumps(told))
        opened = {name: server for name, server in servers.items() if _line(server)}
        yield opened
    finally:
        for server in servers.values():
            server.communicate()        # ends its input, and so the server


def _asked(server: subprocess.Popen[str]) -> list[list[int]]:
    _tell(server, "")
    times: list[list[int]] = json.loads(_line(server))
    return times


def _tell(server: subprocess.Popen[str], line: str) -> None:
    assert server.stdin is not None
    server.stdin.write(line + "\n")
    server.stdin.flush()


def _line(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    return server.stdout.readline()


def serve() -> None:
    """For each line read one turn: nanoseconds of every run that counts, feed by feed, on a line."""
    import numpy as np

    told = json.loads(sys.stdin.readline())
    result, turn_ns = Result.from_json(told["result"]), told["turn_s"] * 1e9
    runs = {graph: result.open(graph, told["threads"]) for graph in result.files}
    work = []
    for feed in told["feeds"]:
        with np.load(feed["file"]) as arrays:
            work.append((runs[feed["graph"]], {name: np.ascontiguousarray(array) for name, array in arrays.items()}))
    for run, arrays in work:
        run(arrays)                     # compiles the kernels for these shapes
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps([turn(run, arrays, turn_ns / len(work)) for run, arrays in work]), flush=True)


def turn(run: Any, arrays: Mapping[str, Any], lasts_ns: float) -> list[int]:
    run(arrays)
    times: list[int] = []
    until = time.perf_counter_ns() + lasts_ns
    while len(times) < FEWEST or time.perf_counter_ns() < until:
        start = time.perf_counter_ns()
        run(arrays)
        times.append(time.perf_counter_ns() - start)
    return times


if __name__ == "__main__":
    serve()
