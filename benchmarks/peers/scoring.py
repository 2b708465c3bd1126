"""The model's own metric on the whole validation set, through the files that are timed: JSON on standard output.

    python -m benchmarks.peers.scoring JOB

``results`` of the job maps a name to a result; each becomes the metric's value, or what the backend says of a file that
it refuses. A model's chain is run on the engines of its graphs.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from benchmarks.peers.engines import Result, whole
from benchmarks.peers.job import read_job


def main() -> None:
    import compress
    from calibration import open_set
    from compress.described import described
    from compress.evaluate import evaluate
    from compress.metrics import get_metric

    job = read_job()
    model = compress.load(job["model"])
    data = open_set(job["validation"], model.inputs)
    metric = get_metric(job["metric"], described(model))
    scores: dict[str, dict[str, Any]] = {}
    for name, made in job["results"].items():
        result = Result.from_json(made)
        try:
            run = whole(model, {graph: result.open(graph, job["threads"]) for graph in result.files})
            scores[name] = {"score": evaluate(run, data, metric).to_json()}
        except Exception as error:      # a peer's file that a backend cannot read: the backends have their own kinds
            scores[name] = {"not_run": said(error)}
        print(name, json.dumps(scores[name]), file=sys.stderr, flush=True)
    print(json.dumps(scores))


def said(error: Exception) -> str:
    """The line of a backend's error that tells most: the last one with words that is no place in its sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {(lines or [''])[-1][:200]}"


if __name__ == "__main__":
    main()
