"""What each way to recover int8 accuracy gives, alone and together, on trained models: JSON, a row per model and way.

    python benchmarks/recovery.py FOLDER... [--way WAY]... [--samples N] [--scheme S] [--into FILE]
    python benchmarks/recovery.py --table > the table in docs/quantization.md

FOLDERs are those that ``compress demo FOLDER --model NAME`` writes. Values are those of the fake-quantized torch
program, which is the int8 program to the bit: the recipe's metric on the first N samples of ``validation/``, and the
signal to quantization noise of each output against float on the first 256, in decibels. Every way but the first
equalises channels, as is the default. ``seconds`` are what the way adds to quantization. Ways of a folder that were
measured before are replaced in FILE, others stay.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import calibration  # noqa: E402
import compress  # noqa: E402
from compress import QuantizeConfig  # noqa: E402
from compress.distill.bound import bind  # noqa: E402
from compress.evaluate import evaluate  # noqa: E402
from compress.metrics import get_metric  # noqa: E402
from compress.model import Model  # noqa: E402
from compress.program import chain_of, model_runner  # noqa: E402
from compress.quantize import quantize  # noqa: E402
from runtimes.spec import Feed  # noqa: E402

Run = Callable[[Feed], dict[str, np.ndarray]]
WAYS: dict[str, dict[str, Any]] = {
    "none": {"equalize": False}, "default": {}, "smooth 0.5": {"smooth": 0.5}, "bias": {"correct_bias": True},
    "gptq": {"rounding": "gptq"}, "learned": {"rounding": "learned"},
    "gptq, bias": {"rounding": "gptq", "correct_bias": True},
    "smooth, gptq, bias": {"smooth": 0.5, "rounding": "gptq", "correct_bias": True},
    "all": {"smooth": 0.5, "rounding": "learned", "correct_bias": True},
}  # fmt: skip
SHOWN = 256     # samples that the noise is measured on


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--table", action="store_true", help="print the rows that there are as Markdown")
    parser.add_argument("--way", action="append", choices=list(WAYS), help="may be given several times; default: all")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--scheme", default="x86-vnni")
    parser.add_argument("--into", type=Path, default=ROOT / "benchmarks" / "results" / "recovery.json")
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(options.into.read_text())["rows"]))
        return 0
    for folder in options.folders:
        for row in measure(folder, options.way or list(WAYS), options.samples, options.scheme):
            print(json.dumps(row), file=sys.stderr)
            keep(options.into, row)
    return 0


def measure(folder: Path, ways: list[str], samples: int, scheme: str) -> Any:
    """A row for float and one for each way, as they are done."""
    model = compress.load(folder / "model.pt")
    metric = get_metric(yaml.safe_load((folder / "recipe.yaml").read_text())["metric"])
    data, validation = (calibration.open_set(folder / name, model.inputs) for name in ("calibration", "validation"))
    validation = validation.take(samples)
    feeds = list(validation.take(SHOWN).batches(32))
    plain = model_runner(model)
    wanted = [plain(feed) for feed in feeds]
    name = {"model": model.name, "scheme": scheme, "samples": len(validation)}
    yield {**name, "way": "float", "metric": metric.name, "value": evaluate(plain, validation, metric).value}
    quantize(model, data, scheme=scheme)        # what is imported and compiled once is not a way's
    least = None
    for way in ways:
        started = time.monotonic()
        result = quantize(model, data, scheme=scheme, config=dataclasses.replace(QuantizeConfig(), **WAYS[way]))
        seconds = time.monotonic() - started
        least = seconds if way == "none" else least
        run = runner(result.model)
        yield {
            **name, "way": way, "metric": metric.name, "value": evaluate(run, validation, metric).value,
            "sqnr_db": noise(wanted, [run(feed) for feed in feeds]), "layers": dict(result.recovery),
            "seconds": round(seconds - (least or 0.0), 1), "threads": torch.get_num_threads(),
        }  # fmt: skip


def runner(model: Model) -> Run:
    """The fake-quantized program of ``model``, or its chain."""
    runs = bind(model).runs()
    if model.chain is None and len(runs) == 1:
        return next(iter(runs.values()))
    run: Run = chain_of(model, runs).run
    return run


def noise(wanted: list[dict[str, np.ndarray]], found: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Decibels of each output that is of real numbers."""
    levels = {}
    for name, value in wanted[0].items():
        if value.dtype.kind == "f":
            pairs = [(one[name].astype(np.float64), other[name]) for one, other in zip(wanted, found, strict=True)]
            signal, error = sum((a**2).sum() for a, _ in pairs), sum(((b - a) ** 2).sum() for a, b in pairs)
            levels[name] = round(float(10 * np.log10(signal / error)), 2)
    return levels


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each model and scheme, a column for each way: its value, and the level of its noisiest output."""
    ways = ["float", *WAYS]
    lines = ["| model | " + " | ".join(ways) + " |", "| --- |" + " ---: |" * len(ways)]
    for key in dict.fromkeys((row["model"], row["scheme"]) for row in rows):
        found = {row["way"]: row for row in rows if (row["model"], row["scheme"]) == key}
        cells = [_cell(found[way]) if way in found else "" for way in ways]
        name = key[0] if key[1] == "x86-vnni" else f"{key[0]}, {key[1]}"
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: dict[str, Any]) -> str:
    levels = row.get("sqnr_db", {}).values()
    return f"{100 * row['value']:.1f} %" + (f", {min(levels):.1f} dB" if levels else "")


def keep(file: Path, row: dict[str, Any]) -> None:
    """Put ``row`` into ``file``, in place of one of the same model, scheme and way."""
    record = json.loads(file.read_text()) if file.exists() else {"rows": []}
    key = ("model", "scheme", "way")
    order = ["float", *WAYS]
    rows = [old for old in record["rows"] if any(old[part] != row[part] for part in key)] + [row]
    rows.sort(key=lambda r: (r["model"], r["scheme"], order.index(r["way"])))
    versions = {package: version(package) for package in ("torch", "torchao")}
    text = json.dumps({"versions": versions, "cores": os.cpu_count(), "rows": rows}, indent=1)
    file.write_text(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
