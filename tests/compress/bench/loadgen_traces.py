"""Runs MLPerf's LoadGen: python loadgen_traces.py FOLDER RUNS SEED writes FOLDER/traces.jsonl, one run a line.

Each run is of another number of queries, percentile and scenario, with queries of random length. A line holds the
latencies that LoadGen logged, in nanoseconds, and the early-stopping estimates of its summary by percentile, None where
it says that the queries are too few.
"""

from __future__ import annotations

import json
import random
import re
import sys
import time
from pathlib import Path
from typing import Any

import mlperf_loadgen as loadgen

SAMPLES = 8  # of a query of the multi-stream scenario


def main(folder: Path, runs: int, seed: int) -> None:
    rng = random.Random(seed)
    folder.mkdir(parents=True)

    def issue(samples: list[Any]) -> None:
        until = time.perf_counter_ns() + int(rng.paretovariate(2) * 1000)  # a microsecond, with a long tail
        while time.perf_counter_ns() < until:
            pass
        loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(sample.id, 0, 0) for sample in samples])

    def nothing(*_: Any) -> None:
        pass

    server, library = loadgen.ConstructSUT(issue, nothing), loadgen.ConstructQSL(16, 16, nothing, nothing)
    with (folder / "traces.jsonl").open("w") as out:
        for _ in range(runs):
            scenario = rng.choice(["SingleStream", "SingleStream", "MultiStream"])
            percentile = rng.choice([50, 75, 90, 90, 95, 97, 99])
            queries = round(10 ** rng.uniform(1, 2.8 if scenario == "MultiStream" else 3.3))
            logs = loadgen.LogSettings()
            logs.log_output.outdir, logs.log_output.copy_summary_to_stdout = str(folder), False
            logs.enable_trace = True
            loadgen.StartTestWithLogSettings(server, library, settings(scenario, percentile, queries), logs)
            summary = (folder / "mlperf_log_summary.txt").read_text()
            result = {"scenario": scenario, "latencies": latencies(folder), "estimates": estimates(summary, percentile)}
            assert len(result["latencies"]) == queries
            out.write(json.dumps(result) + "\n")
    loadgen.DestroyQSL(library)
    loadgen.DestroySUT(server)


def settings(scenario: str, percentile: int, queries: int) -> Any:
    found = loadgen.TestSettings()
    found.scenario, found.mode = getattr(loadgen.TestScenario, scenario), loadgen.TestMode.PerformanceOnly
    found.min_query_count = found.max_query_count = queries
    found.min_duration_ms = found.max_duration_ms = 0
    found.single_stream_expected_latency_ns = found.multi_stream_expected_latency_ns = 1000
    found.multi_stream_samples_per_query = SAMPLES
    found.single_stream_target_latency_percentile = found.multi_stream_target_latency_percentile = percentile / 100
    return found


def latencies(folder: Path) -> list[int]:
    """Of each query: the time its last sample was done."""
    done: dict[int, int] = {}
    for line in (folder / "mlperf_log_trace.json").read_text().splitlines():
        sample = re.search(r'"query_seq":(\d+),.*"complete_ns":(\d+)', line)
        if sample:
            query, nanoseconds = int(sample[1]), int(sample[2])
            done[query] = max(done.get(query, 0), nanoseconds)
    return list(done.values())


def estimates(summary: str, percentile: int) -> dict[str, int | None]:
    """By percentile; of the single stream, LoadGen gives that of the 99th beside the one it was told."""
    found: dict[str, int | None] = {str(percentile): None}
    if "Not enough queries processed for 99" in summary:
        found["99"] = None
    for percent, nanoseconds in re.findall(r"Early stopping ([\d.]+)th percentile estimate: (\d+)", summary):
        found[f"{float(percent):g}"] = int(nanoseconds)
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
