from typing import Any

from compress.report.components import Change, component_rows, total
from compress.report.schema import validate


def test_before_and_after_of_each_component_in_the_models_order(example: dict[str, Any]) -> None:
    rows = component_rows(validate(example))
    assert [row.name for row in rows] == ["image_encoder", "text_encoder", "fusion", "head"]
    fusion = rows[2]
    assert fusion.parameters == Change(before=531_000, after=262_000)
    assert fusion.macs == Change(before=9_800_000, after=5_300_000)
    assert fusion.size_bytes == Change(before=4 * 531_000, after=int(262_000 * 1.07))  # the smaller of the two schemes
    assert [operator.precision for operator in fusion.operators["x86-vnni"]].count("int8") == 12
    assert total(rows, "macs") == Change(before=75_037_000, after=35_636_000)


def test_a_prune_alone_tells_both(example: dict[str, Any]) -> None:
    rows = component_rows(validate({**example, "model": None, "stages": example["stages"][:1]}))
    assert rows[0].parameters == Change(before=1_482_000, after=712_000)
    assert rows[0].size_bytes == Change()
    assert total(rows, "size_bytes") == Change()


def test_a_model_alone_has_no_after(example: dict[str, Any]) -> None:
    rows = component_rows(validate({**example, "stages": None}))
    assert rows[0].parameters == Change(before=1_482_000)
    assert total(rows, "parameters") == Change(before=2_452_600)
    assert component_rows(validate({**example, "model": None, "stages": None})) == ()
