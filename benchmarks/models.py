"""Every reference model through the whole chain, a row each: python benchmarks/models.py [NAME ...]

Trains the model, runs its recipe (prune, distil, quantize, distil, engines for three targets, parity, bench) and writes
the row of benchmarks/results/models.json that the README's table is made of (python benchmarks/readme.py). What is done
is not done again: models and stages are kept in --work. `--prepare` leaves out the bench, for a machine that is busy.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

import compress
from compress.metrics import get_metric
from compress.progress import Progress
from compress.zoo import MODELS, REFERENCES, make

HERE = Path(__file__).resolve().parent
RECORD = HERE / "results/models.json"
# Six restarts are the fewest whose order statistics enclose the median with 95 %.
BENCH = {"restarts": 6, "warmup_s": 0.2, "duration_s": 0.4, "min_runs": 20, "peaks": False}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MODELS)}; all by default")
    parser.add_argument("--work", type=Path, default=Path("build/models"), help="what is made of them is kept here")
    parser.add_argument("--prepare", action="store_true", help="all but the bench, and no record")
    options = parser.parse_args()
    for name in options.names or MODELS:
        row = row_of(name, options.work / name, prepare=options.prepare)
        if row is not None:
            write(name, row)
            print(f"{name}: {json.dumps(row['engines'])}", flush=True)


def row_of(name: str, folder: Path, *, prepare: bool) -> dict[str, Any] | None:
    """Train, compress and bench the model called ``name``; what the table shows of it, or None without a bench."""
    made = make(name, folder)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    stages = [stage for stage in recipe["stages"] if "bench" not in stage]
    recipe["stages"] = stages if prepare else [*stages, {"bench": BENCH}]
    own = folder / "table.yaml"
    own.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    record = compress.run(own, progress=Progress(quiet=False)).record
    if prepare:
        return None
    metric = get_metric(recipe["metric"])
    return {
        "task": task_of(name), "metric": recipe["metric"],
        "is_share": metric.is_share, "lower_is_better": metric.lower_is_better,
        "float32": float32_of(made.to_json()), "baselines": made.to_json().get("baselines", {}),
        "samples": {kind: data["count"] for kind, data in record["data"].items()},
        "components": list(record["model"]["components"]),
        "engines": dict(engines_of(record)), "not_run": dict(not_run(record)),
        "macs_kept": macs_kept(record), "machine": record["machine"], "versions": record["versions"],
    }  # fmt: skip


def task_of(name: str) -> str:
    """The first sentence of the module that the model is in."""
    module = REFERENCES[name].partition(":")[0] if name in REFERENCES else "compress.zoo.digits_questions"
    words = (importlib.import_module(module).__doc__ or "").split("\n")[0]
    return words.partition(": ")[2].rstrip(".") or words.rstrip(".")


def engines_of(record: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Target -> scores of the original in float32 and of what ships, and how much faster that is."""
    rows = [row for row in record["bench"]["rows"] if row["accuracy"] is not None]
    for row in rows:
        if row["role"] != "shipped":
            continue
        original = next(r for r in rows if r["role"] == "original" and r["target"] == row["target"]
                        and r["precision"] == "fp32")  # fmt: skip
        yield row["target"], {
            "precision": row["precision"], "float32": original["accuracy"]["value"], "value": row["accuracy"]["value"],
            "drop": row["accuracy"]["drop"], "n": row["accuracy"]["n"], "speedup": row["speedup"]["vs_original_fp32"],
            "float32_ms": original["latency_ms"]["p50"], "ms": row["latency_ms"]["p50"],
            "float32_bytes": original["size_bytes"], "bytes": row["size_bytes"],
            "precisions": row["precisions"], "marks": row["marks"],
        }  # fmt: skip


def not_run(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Target -> why it has no figures."""
    for row in record["bench"]["rows"]:
        if row["role"] == "shipped" and row["accuracy"] is None:
            yield row["target"], row["reason"] or row["status"]
    built = next(stage["summary"] for stage in record["stages"] if stage["stage"] == "export")
    yield from ((entry["target"], f"not built: {entry['reason']}") for entry in built["not_built"])


def float32_of(made: dict[str, Any]) -> float:
    """The metric of the network in torch, as it was trained."""
    return float(made["value"] if "value" in made else made["accuracy"])


def macs_kept(record: dict[str, Any]) -> float | None:
    pruned = next((stage["summary"] for stage in record["stages"] if stage["stage"] == "prune"), None)
    return None if pruned is None else pruned["macs_after"] / pruned["macs_before"]


def write(name: str, row: dict[str, Any]) -> None:
    """Put the row into the record, in the order of the models."""
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {"rows": {}}
    record["rows"][name] = row
    order = {name: index for index, name in enumerate(MODELS)}
    record["rows"] = dict(sorted(record["rows"].items(), key=lambda item: order.get(item[0], len(order))))
    RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
