"""Write the figures of the README and of docs/ from the committed records: python benchmarks/readme.py [REPORT.json]

With a report.json of `make demo`, that becomes the committed record first. `--check` only says whether the pages are
what the records give, and exits with 1 if not.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.peers.table import peers_lines
from benchmarks.pruning.table import clip_line, pruning_lines
from compress.report import read_record, show

HERE = Path(__file__).resolve().parent
RESULTS, README = HERE / "results", HERE.parent / "README.md"
PAGES = (README, HERE.parent / "docs/pruning.md")
RECORD = RESULTS / "demo.json"
BACKENDS = {"openvino-cpu": "OpenVINO", "onnxruntime-cpu": "ONNX Runtime"}


def demo_block() -> str:
    """The demo's real output, as the terminal shows it, with what it was measured on."""
    record = read_record(RECORD)
    text = io.StringIO()
    show(record, text)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    return f"On {_where(record['machine'])}:\n\n```\n" + "\n".join(lines).strip() + "\n```\n"


def models_block() -> str:
    """Two tables: the reference models, and the architectures that are read from a Hugging Face folder."""
    models, folders = (_read(RESULTS / f"{name}.json") for name in ("models", "huggingface"))
    lines = [
        "Trained here. The metric is that of the original in float32 and of the int8 engine that ships, on samples not",
        "seen in training, with the change and its 95 % interval; speed-ups are against the original's fp32 engine.",
        "The smallest answer within 0.01 to 0.2 ms, which are mostly what it costs to call an operator at all.",
        "",
        _head(["model", "task", "metric", "float32", *(f"int8, {name} | speed-up" for name in BACKENDS.values())]),
        "| --- | --- | --- | ---: |" + " ---: | ---: |" * len(BACKENDS),
    ]
    for name, row in models["rows"].items():
        metric = row["metric"].rpartition(":")[2].replace("_", " ")
        cells = [f"`{name}`", row["task"], metric, _score(row, row["float32"])]
        for target in BACKENDS:
            cells += _engine(row, target)
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        f"On {_where(models['rows']['dense']['machine'])}.",
        "Each is also built for RTX, and not run (no such GPU here); the precision of every layer was read back from",
        "both engines.",
        "",
        "Read from a Hugging Face folder: networks of these architectures with random weights, so there is no score.",
        "Equal to transformers means: tokens of the fp32 engines identical to its greedy search, other outputs within",
        "1e-4, on both backends, in the tests; times are of the whole chain, int8 against fp32.",
        "",
        _head(["architecture", "graphs", "equal to transformers",
               *(f"int8 against fp32, {name}" for name in BACKENDS.values())]),
        "| --- | --- | --- |" + " ---: |" * len(BACKENDS),
    ]
    for name, row in folders["rows"].items():
        speed = [f"{row['engines'][target]['speedup']:.2f}×" for target in BACKENDS]
        lines.append(f"| {name} | {', '.join(row['graphs'])} | {row['equal']} | " + " | ".join(speed) + " |")
    return "\n".join(lines) + "\n"


def peers_block() -> str:
    """Latency, score and cost of int8 from this project and from others."""
    record = _read(RESULTS / "peers.json")
    told = f"On {_where(record['machine'])}, batch 1: milliseconds of ours, and how many times as long the others take."
    return "\n".join([told, "", *peers_lines(record)]) + "\n"


def pruning_block() -> str:
    """Scores and speed of pruned networks beside those of other ways to them, and what pruning a CLIP takes."""
    record, clip = _read(RESULTS / "pruning.json"), _read(RESULTS / "pruning_clip.json")
    return "\n".join([f"On {_where(record['machine'])}.", "", *pruning_lines(record), "", clip_line(clip)]) + "\n"


def _head(names: list[str]) -> str:
    return "| " + " | ".join(names) + " |"


def _engine(row: dict[str, Any], target: str) -> list[str]:
    """Two cells: the score of what ships with its change, and how much faster it is."""
    engine = row["engines"].get(target)
    if engine is None:
        return [row["not_run"].get(target, "not built"), "–"]
    drop, speed = engine["drop"], engine["speedup"]
    sign = 0.01 if row["lower_is_better"] else -0.01        # of points
    ends = sorted(sign * end for end in drop["interval"])
    change = f"{_change(row, sign * drop['points'])} [{_change(row, ends[0])}, {_change(row, ends[1])}]"
    low, high = speed["interval"]
    return [f"{_score(row, engine['value'])} ({change})", f"{speed['ratio']:.1f}× [{low:.1f}, {high:.1f}]"]


def _score(row: dict[str, Any], value: float) -> str:
    return f"{value:.1%}".replace("%", " %") if row["is_share"] else f"{value:.3g}"


def _change(row: dict[str, Any], value: float) -> str:
    said = f"{100 * value:+.1f}" if row["is_share"] else f"{value:+.2g}"
    return said[1:] if float(said) == 0 else said.replace("-", "−")


def _where(machine: dict[str, Any]) -> str:
    cpu = f"{machine['cores_usable']} cores of a {machine['cpu']} ({', '.join(machine['flags'])})"
    return f"{cpu}, in a shared virtual machine"


def _read(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


BLOCKS = {"demo": demo_block, "models": models_block, "peers": peers_block, "pruning": pruning_block}


def written(page: str) -> str:
    """The page with its figures anew."""
    for name, block in BLOCKS.items():
        if f"<!-- {name} -->" in page:
            before, rest = page.split(f"<!-- {name} -->\n")
            page = f"{before}<!-- {name} -->\n{block()}<!-- /{name} -->{rest.partition(f'<!-- /{name} -->')[2]}"
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", nargs="?", type=Path, help="a report.json to commit")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.report is not None:
        text = json.dumps(read_record(options.report), indent=1, ensure_ascii=False)
        RECORD.write_text(text + "\n", encoding="utf-8")
    for page in PAGES:
        held = page.read_text(encoding="utf-8")
        made = written(held)
        if options.check and made != held:
            sys.exit(f"{page.name} is not what benchmarks/results gives: run python benchmarks/readme.py")
        page.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
