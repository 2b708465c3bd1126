
import copy
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from compress.report import report
from compress.report.page import facts, precision_class
from compress.report.schema import Record

HOSTILE = '<script>alert("1")</script> & "co"'


class _Page(HTMLParser):
    """Collects tags and text, and checks that elements nest."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.open = "", []  # type: str, list[str]
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data


def _page(record: dict[str, Any], folder: Path) -> str:
    return report(record, folder).html.read_text(encoding="utf-8")


def test_the_page_loads_nothing_and_runs_no_script(example: dict[str, Any], tmp_path: Path) -> None:
    source = _page(example, tmp_path)
    tags = _Page(source).tags
    assert not {tag for tag, _ in tags} & {
        "script",
        "link",
        "iframe",
        "img",
        "object",
        "embed",
        "base",
        "form",
        "image",
        "use",
    }
    assert not [
        name
        for _, attributes in tags
        for name in attributes
        if name in ("src", "srcset", "data") or name.startswith("on")
    ]
    assert all(attributes["href"].startswith("#") for _, attributes in tags if attributes.get("href"))  # type: ignore[union-attr]
    assert not re.search(r"https?:|url\(|@import", source)
    assert "default-src 'none'" in source
    assert len(source) < 200_000


def test_links_point_to_sections_that_exist(example: dict[str, Any], tmp_path: Path) -> None:
    tags = _Page(_page(example, tmp_path)).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["href"] for tag, attributes in tags if tag == "a"} == {f"#{name}" for name in ids}


def test_the_facts_are_on_the_page(example: dict[str, Any], tmp_path: Path) -> None:
    source = _page(example, tmp_path)
    text = re.sub(r"\s+", " ", _Page(source).text)
    for fact in (
        "3.6× faster than the original's fp32 engine",
        "within the budget",
        "at most 1 point",
        "built, not run",
        "build on the device",
        "ONNX Runtime's CPU provider has no half kernels",
        "/fusion/attention/MatMul: MatMul in bf16",
        "45 int8, 8 bf16",
        "61.3 M → 28.2 M",
        "26 of 27",
        "6 epochs, accuracy 94.1 % → 98.1 %",
        "2 min 28 s",
        "pruned shape from scratch",
        "31.2 %",
        "98.83 %",
        "7.9×10⁻⁶",
        "float32[batch=1..64, 1, 8, 8]",
        "compress run recipe.yaml",
        "preset: quick",
        "11.2 MB",
        "Fixture CPU with VNNI",
        "torchao 0.18.0",
        "8.20 GB",
    ):
        assert re.sub(r"\s+", "", fact) in re.sub(r"\s+", "", text), fact
    assert source.count("<svg") == 8  # two trade-offs, and loss and accuracy of three distillations
    for row in example["bench"]["rows"]:
        assert row["digest"] in source


@pytest.mark.parametrize(
    "keep",
    [
        (),
        ("bench",),
        ("stages",),
        ("parity",),
        ("baselines",),
        ("model",),
        ("data",),
        ("recipe",),
        ("machine", "versions"),
        ("verdict",),
        ("bundle",),
    ],
)
def test_a_section_that_was_not_measured_says_so(
    example: dict[str, Any], tmp_path: Path, keep: tuple[str, ...]
) -> None:
    record = {key: example[key] for key in ("format", "version", "name", *keep)}
    text = _Page(_page(record, tmp_path)).text
    for section in ("Engines", "Components", "Stages", "Parity, from torch to each engine", "Baselines", "Reproduce"):
        assert section in text
    assert "Not measured." in text
    if keep == ("bench",):
        assert "3.6× faster" in text
        assert "Fixture CPU" in text  # the machine is the benchmark's


def test_the_authors_strings_are_text(example: dict[str, Any], tmp_path: Path) -> None:
    record = copy.deepcopy(example)
    record["name"] = record["verdict"]["sentence"] = record["command"] = HOSTILE
    record["recipe"][HOSTILE] = HOSTILE
    record["machine"][HOSTILE] = HOSTILE
    record["versions"][HOSTILE] = HOSTILE
    record["model"]["components"][HOSTILE] = {"parameters": 1, "macs": 1, "size_bytes": 1}
    record["model"]["inputs"][0]["name"] = HOSTILE
    record["data"]["train"]["name"] = record["bundle"]["path"] = HOSTILE
    record["baselines"][0].update(name=HOSTILE, note=HOSTILE)
    record["stages"][0]["digest"] = HOSTILE
    record["stages"][0]["summary"]["skipped"][HOSTILE] = HOSTILE
    record["parity"]["steps"][1]["flags"] = [HOSTILE]
    row = record["bench"]["rows"][4]
    row.update(name=HOSTILE, target=HOSTILE, digest=HOSTILE, unexpected=[HOSTILE], precisions={HOSTILE: 3})
    source = _page(record, tmp_path)
    page = _Page(source)
    assert "<script" not in source
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(HOSTILE) > 12


def test_a_failed_engine_a_flag_and_a_broken_budget_are_said(example: dict[str, Any], tmp_path: Path) -> None:
    record = copy.deepcopy(example)
    record["bench"]["rows"][8].update(status="failed", reason="the process ended with signal 11")
    record["parity"]["passed"] = False
    record["parity"]["steps"][7]["flags"] = ["output 'output' against 'onnx int8': cosine 0.41, expected at least 0.99"]
    record["verdict"]["within"] = False
    text = _Page(_page(record, tmp_path)).text
    for fact in ("signal 11", "cosine 0.41", "a step is flagged", "over the budget"):
        assert fact in text
    record["verdict"]["within"] = "undecidable"
    assert "more validation samples would decide" in _Page(_page(record, tmp_path)).text


def test_all_that_a_record_may_hold_is_on_the_page(everything: dict[str, Any], tmp_path: Path) -> None:
    source = _page(everything, tmp_path)
    page = _Page(source)
    text = re.sub(r"\s+", "", page.text)
    for fact in (
        "jetson-orin-nano measured on jetson-orin-nano",
        "device lost: partial jetson-orin-nano: nothing came for 15 s; 2 rounds were timed",
        "INVALID throttled: the thermal limit",
        "INVALID other processes took 21% of the cores' time",
        "UNSTABLE the interval of p50 reaches from -1.9% to +3.4%",
        "no difference seen",
        "emulated, not a measurement",
        "99.95 % of the answers are equal",
        "incomplete",
        "≤ 1.52",
        "n too small",
        "16.9 mJ INA3221 VDD_IN, 14.2 W",
        "not measured",
        "15W",
        "image_encoder 770 µs 52 % int8 560 µs bf16 210 µs",
        "at least 3.1 %",
        "int8 16.5 TMAC/s datasheet",
        "f32 100 GMAC/s busy",
        "an int8 Conv needs a QuantizeLinear right behind it",
        "the backend gives no reason",
        "NVIDIA Jetson Orin Nano (fixture)",
        "tensorrt 10.3.0",
        "shipped int8 (INVALID)",
        "What calibration did not reach dimension 'length' is 4 to 11, declared 1 to 32",
        "sample 17 of 'calibration' reaches 1e+06 in <b>",
        "The 300 of 1,200 samples of calibration that ranges come of; 11 labels, from 9 samples of seven to 81 of yes. "
        "Lengths: 3 to 11, half of them up to 7.",
        "image image 288 299",
        "length 1 to 32, usually 12 4 to 11",
        "image_encoder 18 2 38,400 2 %",
    ):
        assert re.sub(r"\s+", "", fact) in text, fact
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "img"}
    assert not re.search(r"https?:|url\(|@import", source)


def test_a_plots_key_has_the_colours_of_its_points(everything: dict[str, Any], tmp_path: Path) -> None:
    """The board is the fourth target and the third that was measured: its points and its key have one colour."""
    source = _page(everything, tmp_path)
    assert '<li class="s3"><i></i>jetson-orin-nano</li>' in source
    assert re.search(r'class="label s3"[^>]*>shipped int8 \(INVALID\)', source)


def test_strings_of_a_bench_are_text(everything: dict[str, Any], tmp_path: Path) -> None:
    bench = everything["bench"]
    bench["machines"][HOSTILE] = bench["machines"].pop("jetson-orin-nano")
    bench["machines"][HOSTILE][HOSTILE] = HOSTILE
    row = next(row for row in bench["rows"] if row["name"] == "shipped int8, jetson-orin-nano")
    row.update(machine=HOSTILE, reason=HOSTILE, marks=[{"kind": "INVALID", "reason": HOSTILE}])
    row["telemetry"].update(power_mode=HOSTILE, energy_source=HOSTILE)
    row["components"] = {HOSTILE: row["components"]["image_encoder"]}
    row["roofline"]["peaks"]["int8"]["note"] = HOSTILE
    source = _page(everything, tmp_path)
    assert "<script" not in source
    assert _Page(source).text.count(HOSTILE) >= 8


def test_a_metric_that_is_no_share_is_told_in_its_own_unit(example: dict[str, Any], tmp_path: Path) -> None:
    record = copy.deepcopy(example)
    for row in record["bench"]["rows"]:
        if row["accuracy"]:
            row["accuracy"]["metric"] = "mine:score"
    record["bench"]["metric"] = "mine:score"
    record["verdict"] = {"max_drop": 0.01}
    text = _Page(_page(record, tmp_path)).text
    assert "at −0.00278 [" in text
    assert "0.9796" in text


def test_an_error_rate_that_rose_is_told_as_above_zero(example: dict[str, Any], tmp_path: Path) -> None:
    record = copy.deepcopy(example)
    record["bench"]["metric"] = "wer"
    record["verdict"] = {"max_drop": 0.01}
    text = _Page(_page(record, tmp_path)).text
    assert "at +0.3\u00a0points [−0.2, +0.7] of wer" in text
    assert "a rise of at most 1 point" in text
    assert "98.0 %" in text


def test_parity_that_is_not_finite(example: dict[str, Any], tmp_path: Path) -> None:
    broken = example["parity"]["steps"][3]["from_reference"]["output"]
    broken.update(max_abs=None, cosine=None, sqnr_db=None, not_finite=12)
    assert "not finite" in _Page(_page(example, tmp_path)).text


def test_nested_records_become_plain_facts() -> None:
    assert facts(
        {"clocks": {"max_mhz": 3100}, "memory_bytes": 8_200_000_000, "flags": ["a", "b"], "none": None, "turbo": False}
    ) == [("clocks max mhz", "3100"), ("memory", "8.20 GB"), ("flags", "a, b"), ("turbo", "no")]


def test_precisions_have_four_styles() -> None:
    assert [precision_class(p) for p in ("int8", "u8", "bf16", "f16", "f32", "i64")] == [
        "int8",
        "int8",
        "half",
        "half",
        "float",
        "other",
    ]


def test_the_schema_is_the_templates(example: dict[str, Any]) -> None:
    assert {*example, "search"} == set(Record.__struct_fields__)


def test_only_an_engine_that_keeps_the_budget_on_an_undisturbed_machine_is_green(
    example: dict[str, Any], tmp_path: Path
) -> None:
    row = next(row for row in example["bench"]["rows"] if row["name"] == "shipped int8, openvino-cpu")
    for row_of in example["bench"]["rows"]:
        row_of["marks"] = []
    classes = [attributes.get("class") for tag, attributes in _Page(_page(example, tmp_path)).tags if tag == "tr"]
    assert "head sure" in classes
    for row_of in example["bench"]["rows"]:
        row_of["marks"] = [{"kind": "INVALID", "reason": "throttled"}]
    row["size_bytes"] = 2 * next(one["size_bytes"] for one in example["bench"]["rows"] if one["role"] == "original")
    source = _page(example, tmp_path)
    classes = [attributes.get("class") or "" for tag, attributes in _Page(source).tags if tag == "tr"]
    assert [name for name in classes if name.startswith("head")]
    assert not [name for name in classes if "sure" in name]
    assert "2.0× larger" in source
    assert " INVALID" in re.sub(r"<[^>]+>|\s+", " ", source.split('id="credit"')[1].split('id="time"')[0])
