"""Raw samples of every kind and form through the processing that a device has, to a data set."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calibration import CalibrationError, ConvertConfig, RawInput, Wanted, convert, open_raw, open_set
from calibration.sources import Samples
from runtimes.hashing import file_digest, json_digest
from runtimes.processing import Processor, parse_processing
from runtimes.spec import Dim, TensorSpec

BATCH = Dim("batch", 1, 1, 64)
LENGTH = Dim("length", 1, 4, 8)
PICTURE = TensorSpec(name="pixels", dtype="float32", shape=(BATCH, 1, 2, 2), modality="image")
WORDS = TensorSpec(name="words", dtype="int64", shape=(BATCH, LENGTH), modality="text")
WAVES = TensorSpec(name="waves", dtype="float32", shape=(BATCH, Dim("samples", 1, 8, 64)), modality="audio")
FREE = TensorSpec(name="free", dtype="float32", shape=(BATCH, 1, Dim("height", 1, 4, 9), Dim("width", 1, 4, 9)))
RECORDS: dict[str, dict[str, Any]] = {
    "pixels": {"kind": "image", "from": "image", "mode": "L",
               "steps": [{"op": "resize", "size": [2, 2], "resample": "box"}]},
    "words": {"kind": "text", "from": "caption", "pad_id": 0,
              "vocabulary": {"words": ["[]", "a", "red", "cat", "dog"]}},
    "waves": {"kind": "audio", "from": "speech", "rate": 8000},
    "free": {"kind": "image", "from": "image", "mode": "L"},
}
KINDS = {"image": "image", "caption": "text", "speech": "audio"}


def wanted(*specs: TensorSpec, labels: tuple[str, ...] | None = None) -> Wanted:
    graph = SimpleNamespace(inputs=specs, outputs=())
    record = {"inputs": {spec.name: RECORDS[spec.name] for spec in specs}, "outputs": {}}
    processor = Processor(SimpleNamespace(
        graphs={"forward": graph}, chain=None, processing=parse_processing(record, "test"), read_file=bytes))
    raw = tuple(RawInput(name=name, kind=KINDS[name]) for name in processor.sources)
    return Wanted(raw=raw, inputs=specs, process=processor.feed, labels=labels, digest="0" * 64)


BOTH = wanted(PICTURE, WORDS, labels=("cat", "dog"))


def png(grey: int, size: tuple[int, int] = (4, 4)) -> bytes:
    stream = io.BytesIO()
    Image.new("L", size, grey).save(stream, "PNG")
    return stream.getvalue()


def wav(values: list[int], rate: int = 8000) -> bytes:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(np.array(values, "<i2").tobytes())
    return stream.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four pictures of the grey levels 0, 10, 20, 30, a cat, a dog, a cat, a dog."""
    folder = tmp_path / "photos"
    folder.mkdir()
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file", "text", "label"])
        for index in range(4):
            (folder / f"{index}.png").write_bytes(png(10 * index))
            table.writerow([f"{index}.png", ("a cat", "a red dog")[index % 2], ("cat", "dog")[index % 2]])
    return folder


def replaced(folder: Path, old: str, new: str) -> Path:
    table = folder / "captions.csv"
    table.write_text(table.read_text().replace(old, new))
    return folder


# --- what is written --------------------------------------------------------------------------------------------------


def test_a_folder_of_pictures_with_captions(photos: Path, tmp_path: Path) -> None:
    made = convert(photos, tmp_path / "set", BOTH)
    assert (made.form, made.samples, made.skipped, made.path) == ("captions", 4, (), tmp_path / "set")
    opened = open_set(tmp_path / "set", BOTH.inputs)
    assert opened.modalities == {"pixels": "image", "words": "text"}
    feeds = list(opened.batches(4))     # the captions have two and three words: no batch mixes them
    np.testing.assert_array_equal([feed["pixels"][0, 0, 0, 0] for feed in feeds], [0, 10, 20, 30])
    assert [feed["words"].tolist() for feed in feeds] == [[[1, 3]], [[1, 2, 4]], [[1, 3]], [[1, 2, 4]]]
    np.testing.assert_array_equal(opened.targets(), np.array([0, 1, 0, 1]))


def test_a_batch_is_padded_as_the_processing_pads(photos: Path, tmp_path: Path) -> None:
    convert(photos, tmp_path / "set", BOTH, ConvertConfig(batch=3))
    first, second = open_set(tmp_path / "set", BOTH.inputs).batches(8), None
    np.testing.assert_array_equal(next(first)["words"], [[1, 3, 0], [1, 2, 4], [1, 3, 0], [1, 2, 4]])
    assert next(first, second) is None


def test_the_record_says_what_it_was_made_of(photos: Path, tmp_path: Path) -> None:
    made = convert(photos, tmp_path / "set", BOTH, ConvertConfig(batch=2, column=("caption=text",)))
    names = ["captions.csv", "0.png", "1.png", "2.png", "3.png"]
    digest = json_digest([[name, file_digest(photos / name)] for name in names])
    assert made.to_json() == {"form": "captions", "samples": 4, "source": digest, "skipped": []}
    assert json.loads((tmp_path / "set/dataset.json").read_text())["source"] == {
        "form": "captions", "sha256": digest, "processing_sha256": "0" * 64, "samples": None, "batch": 2,
        "column": ["caption=text"], "skip_bad": False, "skipped": 0}
    replaced(photos, "cat", "dog")
    assert Samples(photos).digest() != digest


def test_two_conversions_are_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        convert(photos, tmp_path / name, BOTH)
    one, two = ({path.name: file_digest(path) for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two


def test_sounds_and_another_rate(tmp_path: Path) -> None:
    both = wanted(WAVES, WORDS)
    folder = tmp_path / "speech"
    folder.mkdir()
    rising = [0, 8192, 16384, 24576]
    (folder / "1.wav").write_bytes(wav(rising))
    (folder / "2.wav").write_bytes(wav(rising * 4, rate=32000))
    for index in (1, 2):
        (folder / f"{index}.txt").write_text("a dog")
    feeds = list(open_raw(folder, both).batches(1))
    np.testing.assert_array_equal(feeds[0]["waves"], [[0, 0.25, 0.5, 0.75]])
    assert [feed["waves"].shape for feed in feeds] == [(1, 4), (1, 4)]      # resampled to the model's 8 kHz
    assert [feed["words"].tolist() for feed in feeds] == [[[1, 4]], [[1, 4]]]


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def as_shards(folder: Path) -> Path:
    for index, text in enumerate(("a cat", "a red dog")):
        tar(folder / f"{index:06d}.tar", {f"{index}.png": png(10 * index), f"{index}.txt": text.encode(),
                                          f"{index}.cls": str(index).encode()})
    return folder


def as_npz(folder: Path) -> Path:
    pictures = np.stack([np.full((4, 4), grey, np.uint8) for grey in (0, 10)])
    np.savez(folder / "a.npz", image=pictures, caption=["a cat", "a red dog"], label=[0, 1])
    return folder


def as_parquet(folder: Path) -> Path:
    pa: Any = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table({
        "image": [{"bytes": png(0), "path": "0.png"}, {"bytes": png(10), "path": None}],
        "caption": ["a cat", "a red dog"], "label": ["cat", "dog"]}), folder / "a.parquet")
    return folder


def as_iterable(folder: Path) -> Iterator[dict[str, Any]]:
    yield {"image": Image.new("L", (4, 4), 0), "caption": "a cat", "target": 0}
    yield {"image": png(10), "caption": "a red dog", "target": "dog"}


@pytest.mark.parametrize("form", [as_shards, as_npz, as_parquet, as_iterable])
def test_every_form_gives_the_same_set(form: Callable[[Path], Any], photos: Path, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    made = convert(form(tmp_path / "source"), tmp_path / "set", BOTH)
    assert made.form == form.__name__.removeprefix("as_").replace("shards", "webdataset")
    assert bool(made.source) == (form is not as_iterable)
    assert open_set(tmp_path / "set", BOTH.inputs).digest == open_raw(photos, BOTH).take(2).digest


def test_an_axis_that_is_not_the_first_is_the_batch(tmp_path: Path) -> None:
    inputs = (TensorSpec(name="x", dtype="float32", shape=(3, BATCH), batch_axis=1),)
    raw = (RawInput(name="x", kind="tensor"),)
    last = Wanted(raw=raw, inputs=inputs, process=lambda raw: {"x": np.stack(raw["x"], 1).astype(np.float32)})
    samples = [{"x": [1, 2, 3]}, {"x": [4, 5, 6]}]
    np.testing.assert_array_equal(open_raw(samples, last).first(2)["x"], [[1, 4], [2, 5], [3, 6]])
    convert(samples, tmp_path / "set", last)
    np.testing.assert_array_equal(open_set(tmp_path / "set", inputs).first(2)["x"], [[1, 4], [2, 5], [3, 6]])


def test_a_smaller_set(photos: Path, tmp_path: Path) -> None:
    opened = open_raw(photos, BOTH, ConvertConfig(samples=2))
    np.testing.assert_array_equal(np.concatenate([feed["pixels"][:, 0, 0, 0] for feed in opened.batches(1)]), [10, 20])
    np.testing.assert_array_equal(opened.targets(), np.array([1, 0]))
    assert len(open_raw(as_iterable(tmp_path), BOTH, ConvertConfig(samples=1))) == 1
    assert len(open_raw(photos, BOTH, ConvertConfig(samples=9))) == 4


# --- bad input --------------------------------------------------------------------------------------------------------


def damage(folder: Path, what: str) -> Path:
    """One thing wrong with the second picture, in line 3."""
    if what == "cut":
        (folder / "1.png").write_bytes(png(10, (64, 64))[:-30])
    elif what == "no picture":
        (folder / "1.png").write_bytes(b"GIF89a")
    elif what == "gone":
        (folder / "1.png").unlink()
    else:
        old, new = what.split(" -> ")
        replaced(folder, old, new)
    return folder


@pytest.mark.parametrize(("what", "message"), [
    ("cut", r"captions\.csv, line 3 \(1\.png\): raw input 'image' is no JPEG or PNG that can be read"),
    ("no picture", r"captions\.csv, line 3 \(1\.png\): raw input 'image' is no JPEG or PNG that can be read"),
    ("gone", r"captions\.csv, line 3 \(1\.png\): names the file '1\.png', which is not there"),
    ("1.png,a red dog -> 1.png,", r"captions\.csv, line 3 \(1\.png\): has an empty text in the column 'text'"),
    ("1.png,a red dog -> 1.png,a blue dog", r"captions\.csv, line 3 \(1\.png\): raw input 'caption' 'a blue dog' has "
                                            "the word 'blue', which is not in the model's vocabulary"),
    ("1.png,a red dog -> 1.png," + "a " * 9, r"line 3 \(1\.png\): raw input 'caption' .* has 9 tokens, more than 8"),
    ("1.png,a red dog,dog -> 1.png,a red dog,2", r"line 3 \(1\.png\): has the label '2', which is out of range: the "
                                                 "model has 2 classes, 0 to 1"),
    ("1.png,a red dog,dog -> 0.png,a cat,cat", r"captions\.csv, line 3: is the same as line 2"),
    ("1.png,a red dog -> 1.png,a red, dog", r"captions\.csv, line 3: has 4 cells, expected 3"),
])
@pytest.mark.parametrize("batch", [1, 4])
def test_a_bad_sample_is_named_or_left_out(photos: Path, tmp_path: Path, what: str, message: str, batch: int) -> None:
    damage(photos, what)
    with pytest.raises(CalibrationError, match=message + r".* \(skip_bad, or --skip-bad, leaves such samples out\)$"):
        convert(photos, tmp_path / "set", BOTH, ConvertConfig(batch=batch))
    assert not (tmp_path / "set").exists()
    made = convert(photos, tmp_path / "set", BOTH, ConvertConfig(batch=batch, skip_bad=True))
    (line,) = made.skipped
    assert made.samples == 3
    assert "line 3" in line
    opened = open_set(tmp_path / "set", BOTH.inputs)
    np.testing.assert_array_equal([feed["pixels"][0, 0, 0, 0] for feed in opened.batches(1)], [0, 20, 30])
    np.testing.assert_array_equal(opened.targets(), np.array([0, 0, 1]))
    assert json.loads((tmp_path / "set/dataset.json").read_text())["source"]["skipped"] == 1


def test_bad_samples_are_not_chosen(photos: Path) -> None:
    damage(photos, "1.png,a red dog -> 1.png,a red, dog")
    chosen = open_raw(photos, BOTH, ConvertConfig(samples=2, skip_bad=True))
    np.testing.assert_array_equal(chosen.targets(), np.array([0, 1]))
    with pytest.raises(CalibrationError, match="line 3: has 4 cells"):      # even if it would not have been
        open_raw(photos, BOTH, ConvertConfig(samples=2))


@pytest.mark.parametrize(("data", "message"), [
    (wav([1, 2, 3, 4])[:-2], r"a \(a\.wav\): has a sound that is cut off: 50 bytes of 52"),
    (b"RIFF" + b"\0" * 60, r"a \(a\.wav\): raw input 'speech' is no"),
    (wav([]), r"a \(a\.wav\): raw input 'speech' is .* of shape \(0, 1\)"),
    (wav([1, 2], rate=400_000), r"a \(a\.wav\): raw input 'speech' has the rate 400000, expected a whole number of Hz"),
    (wav([1] * 65), r"a \(a\.wav\): what the processing makes of it: input 'waves'.* 65"),
], ids=["cut", "damaged", "empty", "rate", "long"])
def test_bad_sounds(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.wav").write_bytes(data)
    with pytest.raises(CalibrationError, match=message):
        open_raw(tmp_path, wanted(WAVES))


def test_a_cut_shard(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    tar(path, {f"{i}.{kind}": data for i in range(3) for kind, data in (("png", png(0)), ("txt", b"a cat"))})
    path.write_bytes(path.read_bytes()[:2 * 2048 + 512])      # the third sample's picture is not there
    source = wanted(PICTURE, WORDS)
    with pytest.raises(CalibrationError, match=r"0\.tar: is cut off or damaged \(unexpected end of data\)"):
        convert(path, tmp_path / "set", source)
    made = convert(path, tmp_path / "set", source, ConvertConfig(skip_bad=True))
    assert (made.samples, len(made.skipped)) == (1, 1)


def test_mixed_sizes(tmp_path: Path) -> None:
    samples = [{"image": png(0, (4, 4))}, {"image": png(0, (5, 4))}]
    free = wanted(FREE)
    assert [feed["free"].shape for feed in open_raw(samples, free).batches(8)] == [(1, 1, 4, 4), (1, 1, 4, 5)]
    with pytest.raises(CalibrationError, match=r"sample 1 to sample 2 cannot be processed together \(raw input "
                                               r"'image': samples of one batch have the shapes .*: process one at a"):
        open_raw(samples, free, ConvertConfig(batch=2))
    with pytest.raises(CalibrationError, match=r"sample 1: what the processing makes of it: input 'free'.* 10"):
        open_raw([{"image": png(0, (10, 4))}], free)


def test_a_missing_column_is_never_left_out(photos: Path, tmp_path: Path) -> None:
    replaced(photos, "file,text", "file,words")
    with pytest.raises(CalibrationError, match=r"captions\.csv, line 2 has no column for the raw input 'caption' "
                                               r"\(text\): there are \['file', 'words', 'label'\]; name one, with"):
        convert(photos, tmp_path / "set", BOTH, ConvertConfig(skip_bad=True))
    assert convert(photos, tmp_path / "set", BOTH, ConvertConfig(column=("caption=words",))).samples == 4


def test_labels_of_two_kinds() -> None:
    samples = [{"caption": "a cat", "label": 1}, {"caption": "a cat", "label": 0.5}]
    with pytest.raises(CalibrationError, match=r"sample 2: has the label 0\.5 \(float64\[\]\), but those before it are "
                                               r"int64\[\]: write all of them alike, such as 1\.0 for 1"):
        open_raw(samples, wanted(WORDS))


def test_labels_that_are_texts(tmp_path: Path) -> None:
    """References in lists of different lengths, processed two together; or one text a sample."""
    raw = (RawInput(name="x", kind="tensor"),)
    spec = TensorSpec(name="x", dtype="float32", shape=(Dim("batch", 1, 1, 8), 2))
    given = Wanted(raw=raw, inputs=(spec,), texts=True,
                   process=lambda raw: {"x": np.stack(raw["x"]).astype(np.float32)})
    rows = [{"x": np.ones(2), "label": label} for label in (["a dog", "one dog"], ["a cat"], ["birds", "a", "b"])]
    written = open_set(convert(rows, tmp_path / "set", given, ConvertConfig(batch=2)).path, (spec,))
    assert written.targets().tolist() == [["a dog", "one dog", ""], ["a cat", "", ""], ["birds", "a", "b"]]
    plain = convert([{"x": np.ones(2), "label": label} for label in ("on", "off")], tmp_path / "set", given)
    assert open_set(plain.path, (spec,)).targets().tolist() == ["on", "off"]
    with pytest.raises(CalibrationError, match=r"sample 2: has the label 'off' .* but those before it are .*\[1\]"):
        convert([{"x": np.ones(2), "label": label} for label in (["on"], "off")], tmp_path / "set", given)


def test_nothing_is_left() -> None:
    with pytest.raises(CalibrationError, match="the iterable gives no sample: it is empty"):
        open_raw([], BOTH)
    config = ConvertConfig(skip_bad=True)
    with pytest.raises(CalibrationError, match="gives no sample: all 1 were left out, the first because sample 1: "):
        open_raw([{"caption": ""}], wanted(WORDS), config)


def test_an_iterable_of_something_else() -> None:
    with pytest.raises(CalibrationError, match="sample 1: is of type str: give mappings"):
        open_raw(["a cat"], wanted(WORDS))      # type: ignore[list-item]


@pytest.mark.parametrize(("settings", "message"), [
    ({"samples": 0}, "samples is 0: keep at least 1"), ({"batch": 0}, "batch is 0: process at least 1"),
    ({"column": ("image",)}, "the column 'image' is not NAME=COLUMN"),
])
def test_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        ConvertConfig(**settings)
