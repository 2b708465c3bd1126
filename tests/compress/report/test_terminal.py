
import io
import re
from typing import Any

from compress.report import show


def _shown(record: dict[str, Any]) -> str:
    file = io.StringIO()
    show(record, file)
    return file.getvalue()


def _first_column(text: str) -> str:
    """What stands left of the first gap of each line, without white space."""
    return "".join("".join(re.split(r"\s{2,}", line)[0].split()) for line in text.splitlines())


def test_piped_it_is_plain_and_eighty_wide_and_nothing_is_cut(example: dict[str, Any]) -> None:
    text = _shown(example)
    lines = text.splitlines()
    end = len(lines) - lines[::-1].index("")
    assert "\x1b" not in text
    assert "…" not in text
    assert max(map(len, lines[:end])) <= 80  # but for the remarks, which are whole lines
    for row in example["bench"]["rows"]:
        assert "".join(row["name"].split()) in _first_column(text)


def test_it_begins_with_the_verdict(example: dict[str, Any]) -> None:
    text = " ".join(_shown(example).split())
    assert text.startswith(
        f"{example['name']} {example['verdict']['sentence']} Budget: a drop of at most 1 point: within the budget."
    )
    assert "pruning 1.9×, bf16 1.5×, int8 1.3×" in text
    assert "2 layers asked in int8 ran in another precision" in text


def test_all_that_a_record_may_hold_is_shown(everything: dict[str, Any]) -> None:
    text = _shown(everything)
    assert max(map(len, text[: text.index("the benchmark is incomplete")].splitlines())) <= 80
    joined = "".join(text.split())
    for fact in (
        "onnxruntime-cpu (partial)",
        "INVALID UNSTABLE",
        "at least 3.1 %",
        "image_encoder 60%",
        "shipped int8, onnxruntime-cpu: partial, interrupted; 6 rounds were timed",
        "shipped int8, onnxruntime-cpu: INVALID, other processes took 21% of the cores' time",
        "shipped int8, jetson-orin-nano: device lost: partial, jetson-orin-nano: nothing came for 15 s",
        "1 layer asked in int8 ran in another precision",
        "an int8 Conv needs a QuantizeLinear right behind it",
        "99.95 % of the answers are equal",
        "48→88",
        "calibration: dimension 'length' is 4 to 11, declared 1 to 32",
        "16.9",
    ):
        assert "".join(fact.split()) in joined + _first_column(text), fact
    assert "original fp32, openvino-cpu: UNSTABLE" not in text
    assert text.count("nothing came for 15 s") == 1


def test_more_than_four_layers_are_counted(example: dict[str, Any]) -> None:
    example["bench"]["rows"][4]["unexpected"] = [f"layer {i}: MatMul in f32 (seen)" for i in range(7)]
    text = _shown(example)
    assert "7 layers asked in int8" in text
    assert "  layer 3: MatMul in f32 (seen)\n  and 3 more\n" in text


def test_markup_in_a_name_is_text(example: dict[str, Any]) -> None:
    example["name"] = "[red]m[/red]"
    example["bench"]["rows"][0]["name"] = "[bold]e"
    text = _shown(example)
    assert "[red]m[/red]" in text
    assert "[bold]e" in text


def test_a_record_with_nothing_measured() -> None:
    assert _shown({"format": "compress.report", "version": 1, "name": "m"}) == "m\n"


def test_a_speed_up_has_its_interval_and_says_what_it_is_worth(example: dict[str, Any]) -> None:
    row = next(row for row in example["bench"]["rows"] if row["name"] == "shipped int8, openvino-cpu")
    row["marks"] = [{"kind": "INVALID", "reason": "throttled"}]
    row["speedup"]["vs_original_fp32"].update(ratio=1.02, interval=[0.97, 1.061], different=False)
    text = _shown(example)
    assert "[0.970, 1.06]" in text
    assert text.count("no difference") == 2                     # in the table of engines, and of what made it faster
    credit = text[text.index("what made it faster"):]
    assert "INVALID" in credit[: credit.index("onnxruntime-cpu")]


def test_strings_of_a_record_steer_no_terminal(example: dict[str, Any]) -> None:
    example["name"] = "\x1b]0;title\x07[red]name"
    example["verdict"]["sentence"] = "fast\x1b[2J"
    for row in example["bench"]["rows"]:
        row["name"] = "\x1b[2J" + row["name"]
    text = _shown(example)
    assert text.startswith("?]0;title?[red]name\nfast?[2J")
    assert "\x1b" not in text
