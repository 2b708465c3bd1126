"""What is timed of a model: python -m benchmarks.pruning.timed CASE BATCH ...

Builds the original's fp32 engine beside the case, and for each size of batch the feeds of its graphs: the first samples
of the validation set that are so many of one length, or the most there are. Prints its score and where the feeds are.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pruning.recovery import score
from compress.zoo.samples import count_of


def main() -> None:
    import compress
    from calibration import open_set
    from compress.steps import graph_feeds

    case: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    folder = Path(case["folder"])
    model = compress.load(case["model"])
    told = score(case, model, folder / "original")
    data = open_set(case["validation"], model.inputs)
    feeds: dict[str, list[dict[str, Any]]] = {}
    for size in map(int, sys.argv[2:]):
        feed = max(data.batches(size), key=count_of)
        timed: list[dict[str, Any]] = []
        for graph, given in graph_feeds(model, feed).items():
            file = folder / f"{graph}-{size}.npz"
            np.savez(file, **given[0])
            timed.append({"graph": graph, "file": str(file), "times": 1})
        feeds[str(count_of(feed))] = timed
    print(json.dumps({"original": told, "feeds": feeds}))


if __name__ == "__main__":
    main()
