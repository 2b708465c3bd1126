"""The README's tables of benchmarks/results/peers.json."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

TITLES = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}
FLOATS = {"openvino": ("fp32", "bf16"), "onnxruntime": ("fp32",)}
KINDS = {"nncf": "", "nncf-transformer": " (t)"}        # of NNCF's, of which the faster is shown
PEERS = {"ours-accuracy": "ours within 1 %", "nncf": "NNCF", "nncf-accuracy": "NNCF within 1 %",
         "onnxruntime": "ONNX Runtime's", "onnxruntime-plain": "its defaults", "olive": "Olive",
         "modelopt": "ModelOpt"}  # fmt: skip
COSTS = ("nncf", "onnxruntime", "olive", "modelopt")    # those of which it is told what they take
Row = Mapping[str, Any]


def peers_lines(record: Row) -> Iterator[str]:
    """A table of latency and score for each backend, and one of what it takes to get there."""
    for backend, title in TITLES.items():
        columns = [*FLOATS[backend], *PEERS]
        yield f"Results on {title}, with the score where there is one; (t): NNCF's `model_type=TRANSFORMER` was faster;"
        yield "within 1 %: with `--max-drop`, and with NNCF's accuracy control."
        yield ""
        yield from _head(["model", "ours", *FLOATS[backend], *PEERS.values()])
        for name, model in record["models"].items():
            rows = model["results"].get(backend, {})
            if "latency_ms" in rows.get("ours", {}):
                cells = [_against(rows, column) for column in columns]
                yield _line([f"`{name}`", f"{_ms(rows['ours'])}{_score(rows['ours'])}", *cells])
        yield ""
    yield "From the model file to the engine files for OpenVINO: seconds, peak memory, size of the result."
    yield ""
    yield from _head(["model", "samples", "ours", *(PEERS[name] for name in COSTS)])
    for name, model in record["models"].items():
        rows = model["results"].get("openvino", {})
        if "wall_s" in rows.get("ours", {}):
            costs = [_cost(rows, column) for column in ("ours", *COSTS)]
            yield _line([f"`{name}`", str(rows["ours"]["samples"]), *costs])


def ratio(rows: Mapping[str, Row], name: str) -> float:
    """How many times as long as ours: the median over the restarts, each of one run."""
    pairs = zip(rows[name]["latency_ms"], rows["ours"]["latency_ms"], strict=True)
    return float(statistics.median(other[""] / own[""] for other, own in pairs))


def usual_ms(row: Row) -> float:
    return float(statistics.median(restart[""] for restart in row["latency_ms"]))


def faster_nncf(rows: Mapping[str, Row]) -> str:
    timed = [name for name in KINDS if "latency_ms" in rows.get(name, {})]
    return min(timed, key=lambda name: usual_ms(rows[name]), default="nncf")


def _head(names: list[str]) -> list[str]:
    return [_line(names), _line(["---", *["---:"] * (len(names) - 1)])]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _against(rows: Mapping[str, Row], column: str) -> str:
    name = faster_nncf(rows) if column == "nncf" else column
    row = rows.get(name, {})
    if "latency_ms" in row:
        return f"{ratio(rows, name):.2f}×{_score(row)}{KINDS.get(name, '')}"
    return _why_not(row)


def _cost(rows: Mapping[str, Row], column: str) -> str:
    row = rows.get(faster_nncf(rows) if column == "nncf" else column, {})
    if "wall_s" not in row or "failed" in row:
        return _why_not(row)
    size = f", {row['size_bytes'] / 1e6:.3g} MB" if "size_bytes" in row else ""
    return f"{row['wall_s']:.3g} s, {row['peak_bytes'] / 1e9:.2f} GB{size}"


def _why_not(row: Row) -> str:
    return "fails" if "failed" in row else "not opened" if "not_run" in row else "–"


def _ms(row: Row) -> str:
    return f"{usual_ms(row):.3g} ms"


def _score(row: Row) -> str:
    return f", {row['score']['value']:.4g}" if "score" in row else ""
