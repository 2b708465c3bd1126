from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration import CalibrationError, RawInput
from calibration.columns import choose_columns, file_names, parse_pairs, raw_value
from calibration.rows import Row

IMAGE, SOUND, TEXT = (RawInput(name=f"the {kind}", kind=kind) for kind in ("image", "audio", "text"))
CAR = RawInput(name="car", kind="features", names=("speed", "angle"))


def chosen(inputs: list[RawInput], columns: str, **given: str) -> tuple[dict[str, str | None], str | None]:
    row = Row(where="x.csv, line 2", values=dict.fromkeys(columns.split(), "1"))
    found = choose_columns(inputs, row, {key.replace("_", " "): column for key, column in given.items()})
    return dict(found.inputs), found.target


def value(raw: RawInput, given: Any, **more: Any) -> Any:
    return raw_value(raw, Row(where="", values={"it": given, **more}), "it")


def test_columns_by_their_names() -> None:
    assert chosen([IMAGE, TEXT], "caption file label") == ({"the image": "file", "the text": "caption"}, "label")
    assert chosen([SOUND], "path sentence") == ({"the audio": "path"}, None)
    own = [RawInput(name="question", kind="text"), RawInput(name="passage", kind="text")]
    assert chosen(own, "question passage target") == ({"question": "question", "passage": "passage"}, "target")
    assert chosen([CAR], "angle speed") == ({"car": None}, None)


def test_columns_that_are_given() -> None:
    assert chosen([IMAGE, TEXT], "a b c", the_image="c", the_text="a", target="b") == (
        {"the image": "c", "the text": "a"}, "b")
    assert chosen([TEXT], "text label", target="") == ({"the text": "text"}, None)


def test_a_label_that_is_an_input_is_no_target() -> None:
    label = RawInput(name="label", kind="text")
    assert chosen([label], "label") == ({"label": "label"}, None)
    assert chosen([label], "label target") == ({"label": "label"}, "target")


@pytest.mark.parametrize(("inputs", "columns", "given", "message"), [
    ([TEXT], "file words", {}, r"x\.csv, line 2 has no column for the raw input 'the text' \(text\): there are "
                               r"\['file', 'words'\]; name one, with the text=COLUMN"),
    ([TEXT, RawInput(name="b", kind="text")], "text b", {}, "no column for the raw input 'the text'"),  # which is it?
    ([IMAGE, SOUND], "file image", {"the_image": "file"}, r"no column for the raw input 'the audio'"),
    ([CAR], "speed", {}, r"no column for the raw input 'car' \(features\)"),
    ([TEXT], "text", {"sound": "text"}, r"a column is given for 'sound', but the raw inputs of the model are \['the t"),
    ([TEXT], "text", {"target": "answer"}, r"x\.csv, line 2 has no column 'answer': there are \['text'\]"),
    ([TEXT], "text label target", {}, "has the columns 'label' and 'target': say which holds the labels"),
])
def test_columns_that_are_missing(inputs: list[RawInput], columns: str, given: dict[str, str], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        chosen(inputs, columns, **given)


def test_pairs() -> None:
    assert parse_pairs(["image=a b", "target="]) == {"image": "a b", "target": ""}
    for pairs in (["image"], ["=x"], ["a=b", "a=c"]):
        with pytest.raises(CalibrationError, match=rf"the column '{pairs[-1]}' is not NAME=COLUMN"):
            parse_pairs(pairs)


def test_values_as_the_processing_takes_them(tmp_path: Path) -> None:
    picture = np.zeros((2, 2), np.uint8)
    assert value(TEXT, " a cat ") == " a cat "
    assert value(IMAGE, picture) is picture
    assert value(IMAGE, b"png") == b"png"
    assert value(IMAGE, {"bytes": b"png", "path": "gone.png"}) == b"png"
    (tmp_path / "a b.png").write_bytes(b"png")
    row = Row(where="", values={"it": {"bytes": None, "path": "a b.png"}, "also": "a b.png"}, folder=tmp_path)
    assert raw_value(IMAGE, row, "it") == raw_value(IMAGE, row, "also") == tmp_path / "a b.png"
    columns = choose_columns([IMAGE], row, {IMAGE.name: "it"})
    assert file_names([IMAGE], row, columns) == ["a b.png"]


def test_sounds() -> None:
    for given, more in (({"array": [0.5, 1.0], "sampling_rate": 8000}, {}), ([0.5, 1.0], {"sampling_rate": 8000}),
                        (np.array([0.5, 1.0]), {"sampling_rate": 8000})):
        array, rate = value(SOUND, given, **more)
        np.testing.assert_array_equal(array, [0.5, 1.0])
        assert rate == 8000
    with pytest.raises(CalibrationError, match="has plain numbers as the sound in 'it': their rate in Hz is needed"):
        value(SOUND, [0.5, 1.0])


def test_numbers(tmp_path: Path) -> None:
    tensor = RawInput(name="embedding", kind="tensor")
    np.save(tmp_path / "a.npy", np.arange(3))
    np.testing.assert_array_equal(value(tensor, [1, 2.5]), [1, 2.5])
    row = Row(where="", values={"it": "a.npy"}, folder=tmp_path)
    np.testing.assert_array_equal(raw_value(tensor, row, "it"), [0, 1, 2])
    assert value(tensor, "2.5") == 2.5
    assert raw_value(CAR, Row(where="", values={"speed": "10", "angle": 0.5}), None) == {"speed": 10.0, "angle": 0.5}


@pytest.mark.parametrize(("raw", "given", "message"), [
    (TEXT, "  ", "has an empty text in the column 'it'"), (TEXT, 7, "has a int in the column 'it', expected a text"),
    (TEXT, None, "lacks 'it'"), (IMAGE, "", "names no file in the column 'it'"),
    (IMAGE, "gone.png", r"names the file 'gone\.png', which is not there"),
    (IMAGE, "a\0b", r"names the file 'a\\x00b', which is not there"),
    (IMAGE, b"", "has an empty file in the column 'it'"),
    (IMAGE, {"bytes": None, "path": None}, "names no file in the column 'it'"),
    (SOUND, b"RIFF\x64\x00\x00\x00WAVEfmt ", "has a sound that is cut off: 16 bytes of 108"),
    (CAR, "fast", "has 'fast' in the column 'it', expected a number"), (CAR, "gone.npy", r"names the file 'gone\.npy'"),
])
def test_values_that_cannot_be_used(raw: RawInput, given: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        value(raw, given)


def test_an_array_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"no array")
    with pytest.raises(CalibrationError, match=r"names the file 'a\.npy', which is no array that can be read"):
        raw_value(CAR, Row(where="", values={"it": "a.npy"}, folder=tmp_path), "it")
