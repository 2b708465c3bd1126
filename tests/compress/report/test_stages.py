
from typing import Any

import numpy as np

from compress.report.schema import Stage, validate
from compress.report.stages import result, stage_rows


def test_each_stage_says_what_came_out(example: dict[str, Any]) -> None:
    rows = {row.label: row.result for row in stage_rows(validate(example).stages or ())}
    assert rows["prune"] == "75.0 M → 35.6 M MACs (−53 %), 1 part left as it was"
    assert rows["distill"] == "6 epochs, accuracy 94.1 % → 98.1 %"
    assert rows["quantize for x86-vnni"] == "52 operators in int8, 2 in float; percentile ranges of 300 samples"
    assert rows["export"] == "11 engines built, 1 not built"
    assert rows["parity"] == ""


def test_an_unknown_stage_tells_its_plain_values() -> None:
    assert result(Stage(stage="mine", summary={"kept": 3, "list": [1], "by": "norm"})) == "kept 3, by norm"


def test_every_graph_has_an_engine() -> None:
    graphs = {graph: {"precision": precision, "digest": "0"} for graph, precision in
              (("encoder", "int8"), ("decoder", "fp32"))}  # fmt: skip
    built = [{"target": "rpi5", "precision": "int8", "graphs": graphs}, {"target": "rtx", "precision": "fp32"}]
    assert result(Stage(stage="export", summary={"built": built})) == "3 engines built"


def test_the_bars_follow_one_another_and_fill_the_line(example: dict[str, Any]) -> None:
    rows = stage_rows(validate(example).stages or ())
    starts, widths = [row.start for row in rows], [row.width for row in rows]
    np.testing.assert_allclose(starts[1:], np.cumsum(widths)[:-1])
    np.testing.assert_allclose(sum(widths), 1.0)
    assert stage_rows([Stage(stage="mine")])[0].width == 0.0
