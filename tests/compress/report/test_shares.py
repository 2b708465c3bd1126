from typing import Any

import pytest

from compress.bench.record import BenchRecord
from compress.report import shares
from compress.report.schema import validate
from tests.compress.report.conftest import component


@pytest.fixture
def bench(everything: dict[str, Any]) -> BenchRecord:
    found = validate(everything).bench
    assert found is not None
    return found


def test_components_as_shares_of_the_slowest_engine_of_the_target(bench: BenchRecord) -> None:
    """The original takes 5,999 µs in all, and its bar is the whole width."""
    original, int8, jetson = shares.engine_times(bench)
    assert (original.row.name, int8.row.name) == ("original fp32, openvino-cpu", "shipped int8, openvino-cpu")
    assert (original.time_us, int8.time_us, jetson.time_us) == (5999.0, 1489.0, None)
    assert [(part.name, part.series) for part in int8.parts] == [
        ("image_encoder", 0), ("fusion", 1), ("text_encoder", 2), ("head", 3), ("shared", 4)]  # fmt: skip
    assert sum(part.width for part in original.parts) == pytest.approx(1.0)
    assert sum(part.width for part in int8.parts) == pytest.approx(1489 / 5999)
    image, fusion = int8.parts[:2]
    assert image.share == pytest.approx(770 / 1489)
    assert (fusion.start, fusion.width) == (pytest.approx(770 / 5999), pytest.approx(470 / 5999))
    assert [(part.width, part.share) for part in jetson.parts] == [(0.0, None)]


def test_many_components_share_the_last_colour(everything: dict[str, Any]) -> None:
    row = everything["bench"]["rows"][0]
    row["components"] = {f"part {i}": component(1, f32=(100.0 - i, 1, 1)) for i in range(8)}
    row["components"]["other"] = component(1, f32=(900.0, 0, 0))
    found = validate(everything).bench
    assert found is not None
    assert list(shares.series_of([found.rows[0]]).items())[-3:] == [("part 6", 5), ("part 7", 5), ("other", 5)]


def test_shares_rates_and_work(bench: BenchRecord) -> None:
    reached = {row.name: found for row, found in shares.with_roofline(bench)}
    assert shares.share(0.1638) == "16 %"
    assert shares.share(1.07, is_least=True) == "at least 110 %"
    assert shares.work(reached["shipped int8, openvino-cpu"].macs) == "109 M int8, 3.20 M bf16"
    assert shares.rates(reached["shipped int8, openvino-cpu"]) == [
        ("int8", "410 GMAC/s", "measured", "product of 1024 x 1024 matrices, which ran in int8"),
        ("bf16", "200 GMAC/s", "measured", "product of 1024 x 1024 matrices, which ran in bf16")]  # fmt: skip
    assert shares.rates(reached["shipped int8, jetson-orin-nano"]) == [
        ("int8", "16.5 TMAC/s", "datasheet", "33 TOPS dense, the row jetson-orin-nano")]  # fmt: skip
    image = next(row for row in bench.rows if row.name == "shipped int8, openvino-cpu").components["image_encoder"]
    assert shares.arithmetic(image) == "18 int8, 4 bf16"
    assert shares.microseconds(image.time_us) == "770 µs"
    assert shares.microseconds(None) == "–"


def test_nothing_known(example: dict[str, Any]) -> None:
    bench = validate(example).bench
    assert (shares.engine_times(bench), shares.with_roofline(bench), shares.engine_times(None)) == ((), [], ())
