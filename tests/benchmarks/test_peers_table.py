"""The tables of the peers: ratios within a run, the faster of NNCF's two, and what did not come off."""

from __future__ import annotations

from benchmarks.peers.table import faster_nncf, peers_lines, ratio

ROWS = {
    "ours": {"latency_ms": [{"": 2.0}, {"": 4.0}, {"": 2.0}], "wall_s": 12.0, "peak_bytes": 5e8, "size_bytes": 1.5e6,
             "samples": 300, "score": {"value": 0.975}},
    "fp32": {"latency_ms": [{"": 6.0}, {"": 8.0}, {"": 6.0}]},
    "nncf": {"latency_ms": [{"": 5.0}, {"": 5.0}, {"": 5.0}], "wall_s": 30.0, "peak_bytes": 1e9},
    "nncf-transformer": {"latency_ms": [{"": 3.0}, {"": 3.0}, {"": 3.0}], "wall_s": 33.0, "peak_bytes": 2e9,
                         "size_bytes": 2e6, "score": {"value": 0.9}},
    "ours-accuracy": {"latency_ms": [{"": 5.0}, {"": 5.0}, {"": 5.0}]},
    "olive": {"failed": "TypeError: no"},
    "modelopt": {"not_run": "openvino cannot open it", "wall_s": 9.0, "peak_bytes": 1e9},
}  # fmt: skip


def test_ratio_is_the_median_over_the_restarts_of_one_run() -> None:
    """5 / 2, 5 / 4, 5 / 2."""
    assert ratio(ROWS, "nncf") == 2.5
    assert faster_nncf(ROWS) == "nncf-transformer"
    assert faster_nncf({"ours": {}}) == "nncf"


def test_lines() -> None:
    lines = list(peers_lines({"models": {"net": {"results": {"openvino": ROWS}}, "other": {"results": {}}}}))
    assert "| `net` | 2 ms, 0.975 | 3.00× | – | 2.50× | 1.50×, 0.9 (t) | – | – | – | fails | not opened |" in lines
    assert "| `net` | 300 | 12 s, 0.50 GB, 1.5 MB | 33 s, 2.00 GB, 2 MB | – | fails | 9 s, 1.00 GB |" in lines
    assert not any("other" in line for line in lines)
