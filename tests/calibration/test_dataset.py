from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration import CalibrationError, CalibrationSet, open_set, write
from runtimes.spec import Dim, TensorSpec

BATCH = Dim("batch", 1, 1, 4)
IMAGE = TensorSpec(name="image", dtype="float32", shape=(BATCH, 2, 2), modality="image")
TEXT = TensorSpec(name="text", dtype="int64", shape=(BATCH, Dim("length", 2, 4, 6)), modality="text")
SPECS = (IMAGE, TEXT)


def samples(count: int = 10, length: int = 3) -> dict[str, np.ndarray]:
    return {"image": np.arange(count * 4, dtype=np.float32).reshape(count, 2, 2),
            "text": np.arange(count * length).reshape(count, length)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "set", samples(), np.arange(10), shard_size=4)


def test_what_a_set_knows(folder: Path) -> None:
    data = open_set(folder, SPECS)
    assert (data.name, data.path, len(data), data.labels) == ("set", folder, 10, ("target",))
    assert data.modalities == {"image": "image", "text": "text"}
    assert data.shards == tuple(folder / f"000{i}.npz" for i in range(3))
    np.testing.assert_array_equal(data.targets(), np.arange(10))
    assert open_set(str(folder), SPECS, name="mine").name == "mine"


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 10, 99])
def test_batches_cross_shards_in_order(folder: Path, size: int) -> None:
    batches = list(open_set(folder, SPECS).batches(size))
    assert [len(batch["text"]) for batch in batches] == [size] * (10 // size) + [10 % size] * (10 % size > 0)
    for name, whole in samples().items():
        assert all(batch[name].flags.c_contiguous for batch in batches)
        np.testing.assert_array_equal(np.concatenate([batch[name] for batch in batches]), whole)


def test_shapes_never_share_a_batch(tmp_path: Path) -> None:
    chunks = [samples(3, length=2), samples(3, length=5), samples(2, length=5), samples(1, length=2)]
    data = open_set(write(tmp_path / "set", chunks), SPECS)
    assert [batch["text"].shape for batch in data.batches(4)] == [(3, 2), (4, 5), (1, 5), (1, 2)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(2, 4)), min_size=1, max_size=5),
       st.integers(1, 6), st.integers(1, 6))
def test_splitting_makes_no_difference(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[tuple[int, int]], shard_size: int, size: int
) -> None:
    whole = [samples(count, length) for count, length in chunks]
    single = [{name: array[i:i + 1] for name, array in chunk.items()}
              for chunk in whole for i in range(len(chunk["text"]))]
    base = tmp_path_factory.mktemp("sets")
    a = open_set(write(base / "a", whole, shard_size=shard_size), SPECS)
    b = open_set(write(base / "b", single), SPECS)
    assert a.digest == b.digest
    for one, other in zip(a.batches(size), b.batches(size), strict=True):
        np.testing.assert_array_equal(one["text"], other["text"])
        np.testing.assert_array_equal(one["image"], other["image"])


def test_the_digest_is_of_the_data(tmp_path: Path, folder: Path) -> None:
    digest = open_set(folder, SPECS).digest
    shutil.copytree(folder, tmp_path / "other name")
    assert open_set(tmp_path / "other name", SPECS).digest == digest
    np.savez_compressed(tmp_path / "plain.npz", target=np.arange(10), **samples())
    assert open_set(tmp_path / "plain.npz", SPECS).digest == digest
    assert open_set([{**samples(), "target": np.arange(10)}], SPECS).digest == digest
    changed = samples()
    changed["image"][9, 1, 1] += 1
    others = [changed, {name: array[::-1] for name, array in samples().items()}, samples(9), samples()]
    digests = {open_set([other], SPECS).digest for other in others}   # the last one has no labels
    assert len(digests | {digest}) == 5


def test_a_plain_folder_is_taken_in_the_order_of_names(tmp_path: Path) -> None:
    for name, start in (("b", 5), ("a", 0)):
        np.savez(tmp_path / f"{name}.npz", **{key: array[start:start + 5] for key, array in samples().items()})
    data = open_set(tmp_path, SPECS)
    np.testing.assert_array_equal(data.first(10)["text"], samples()["text"])
    assert data.targets() is None


def test_big_endian_arrays_come_out_native(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=samples()["image"].astype(">f4"), text=samples()["text"].astype(">i8"))
    data = open_set(tmp_path, SPECS)
    assert data.first(2)["image"].dtype.isnative
    assert data.digest == open_set([samples()], SPECS).digest


def test_an_iterable_is_read_once_and_streamed() -> None:
    reads = []

    def feeds() -> Iterator[dict[str, np.ndarray]]:
        for index in range(10):
            reads.append(index)
            yield {name: array[index:index + 1] for name, array in samples().items()}

    data = open_set(feeds(), SPECS)
    np.testing.assert_array_equal(data.first(10)["image"], samples()["image"])
    assert reads == list(range(10))
    assert (data.name, len(data)) == ("calibration set", 10)
    spool = data.path
    assert spool.is_dir()
    del data
    gc.collect()
    assert not spool.exists()


def test_a_batch_axis_that_is_not_the_first() -> None:
    frames = TensorSpec(name="frames", dtype="float32", shape=(Dim("time", 1, 3, 5), BATCH, 2))
    frames = TensorSpec(name="frames", dtype="float32", shape=frames.shape, batch_axis=1)
    feeds = np.arange(3 * 6 * 2, dtype=np.float32).reshape(3, 6, 2)
    data = open_set([{"frames": feeds[:, :4]}, {"frames": feeds[:, 4:]}], [frames])
    assert len(data) == 6
    np.testing.assert_array_equal(data.first(6)["frames"], feeds)
    with np.load(data.shards[0]) as shard:
        assert shard["frames"].shape == (6, 3, 2)


def test_first_and_take(folder: Path) -> None:
    data = open_set(folder, SPECS)
    np.testing.assert_array_equal(data.first(3)["text"], samples()["text"][:3])
    taken = data.take(6)
    assert (taken.name, len(taken)) == ("set[:6]", 6)
    np.testing.assert_array_equal(taken.first(99)["text"], samples()["text"][:6])
    np.testing.assert_array_equal(taken.targets(), np.arange(6))
    assert taken.digest == data.take(6).digest != data.digest
    assert data.take(10) is data.take(999) is data


def test_pick(folder: Path) -> None:
    data = open_set(folder, SPECS)
    picked = data.pick([0, 4, 9])
    assert (picked.name, len(picked)) == ("set[3 of 10]", 3)
    np.testing.assert_array_equal(picked.first(99)["text"], samples()["text"][[0, 4, 9]])
    np.testing.assert_array_equal(picked.targets(), [0, 4, 9])
    assert data.pick(range(10)) is data


@pytest.mark.parametrize("places", [[], [3, 1], [1, 1], [-1, 2], [4, 10]])
def test_pick_of_places_that_are_none(folder: Path, places: list[int]) -> None:
    with pytest.raises(CalibrationError, match="asked for from 'set': give different places from 0 to 9, in order"):
        open_set(folder, SPECS).pick(places)


def test_an_input_must_not_be_called_target() -> None:
    spec = TensorSpec(name="target", dtype="float32", shape=(BATCH, 2))
    with pytest.raises(CalibrationError, match="an input is called 'target'"):
        open_set([{"target": np.zeros((3, 2), np.float32)}], [spec])


def savez(**changes: object) -> Callable[[Path], None]:
    arrays = {name: value for name, value in {**samples(), **changes}.items() if value is not None}
    return lambda path: np.savez(path, **arrays)  # type: ignore[arg-type]


def truncated(path: Path) -> None:
    np.savez(path, **samples())
    path.write_bytes(path.read_bytes()[:-200])


def flipped(path: Path) -> None:
    np.savez(path, **samples())
    data = bytearray(path.read_bytes())
    data[300] ^= 255
    path.write_bytes(data)


def single_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


NAN = samples()["image"]
NAN[7, 1, 0] = np.nan
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (savez(text=None), "lacks input 'text'"),
    "unknown": (savez(mask=np.zeros(10)), "unknown input 'mask'"),
    "dtype": (savez(image=samples()["image"].astype(np.float64)), "input 'image' has dtype float64, expected float32"),
    "rank": (savez(image=np.zeros((10, 2), np.float32)), r"input 'image' has shape \(10, 2\)"),
    "fixed size": (savez(image=np.zeros((10, 2, 3), np.float32)), "input 'image' .* expected size 2 on axis 2"),
    "too long": (savez(text=np.zeros((10, 7), np.int64)), r"input 'text' .* length is 7, outside 2\.\.6"),
    "too short": (savez(text=np.zeros((10, 1), np.int64)), r"input 'text' .* length is 1, outside 2\.\.6"),
    "NaN": (savez(image=NAN), r"input 'image' has a value that is not finite \(nan\) at index \(7, 1, 0\)"),
    "infinite": (savez(image=np.full((10, 2, 2), np.inf, np.float32)), "input 'image' has a value that is not finite"),
    "empty": (savez(image=np.zeros((0, 2, 2), np.float32)), "input 'image' holds no samples"),
    "scalar": (savez(image=np.float32(1)), r"input 'image' has shape \(\)"),
    "counts": (savez(text=np.zeros((9, 3), np.int64)), "input 'text' has samples=9, but input 'image' has samples=10"),
    "target count": (savez(target=np.zeros(9)), r"'target' has shape \(9,\), but the inputs hold 10 samples"),
    "target scalar": (savez(target=np.zeros(())), r"'target' has shape \(\)"),
    "target NaN": (savez(target=np.full(10, np.nan)), "'target' has a value that is not finite"),
    "target bytes": (savez(target=np.array([b"yes"] * 10)), "'target' has dtype .S3: .* or texts as an array"),
    "target texts": (savez(target=np.array([[["yes"]]] * 10)), r"'target' holds texts and has shape \(10, 1, 1\)"),
    "target no text": (savez(target=np.array([["a", ""]] * 9 + [["", ""]])), "'target' has no reference for sample 9"),
    "objects": (savez(image=np.array([None] * 10)), "array 'image' holds Python objects, which are never unpickled"),
    "truncated": (truncated, "cannot be read"),
    "flipped": (flipped, "array 'image' cannot be read, it is damaged"),
    "nothing": (lambda path: path.write_bytes(b""), "cannot be read"),
    "text": (lambda path: path.write_text("hello"), "array of numbers|cannot be read|Python objects"),
    "npy": (single_array, "single array without a name"),
    "no arrays": (lambda path: np.savez(path), "lacks input 'image'"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_shard_is_named(tmp_path: Path, case: str) -> None:
    make, what = BAD[case]
    np.savez(tmp_path / "good.npz", **samples())
    make(tmp_path / "mad.npz")
    with pytest.raises(CalibrationError, match=rf"{tmp_path}/mad\.npz.*({what})"):
        open_set(tmp_path, SPECS)


@pytest.mark.parametrize("case", ["missing", "unknown", "dtype", "rank", "too long", "NaN", "counts", "scalar"])
def test_a_bad_feed_is_named(tmp_path: Path, case: str) -> None:
    make, what = BAD[case]
    make(tmp_path / "bad.npz")
    with np.load(tmp_path / "bad.npz") as file:
        feeds = [samples(), dict(file)]
    with pytest.raises(CalibrationError, match=f"mine, feed 1.*({what})"):
        open_set(feeds, SPECS, name="mine")


def test_a_feed_that_is_no_mapping() -> None:
    with pytest.raises(CalibrationError, match="feed 0 is of type str: give mappings"):
        open_set(samples(), SPECS)  # type: ignore[arg-type]


def test_no_feeds() -> None:
    with pytest.raises(CalibrationError, match="no samples"):
        open_set([], SPECS)


def test_damaged_bytes_never_crash(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", **samples())
    good = (tmp_path / "a.npz").read_bytes()
    random = np.random.default_rng(3)
    for _ in range(200):
        data = bytearray(good)
        for position in random.integers(0, len(data), 3):
            data[position] = random.integers(256)
        (tmp_path / "a.npz").write_bytes(data)
        with suppress(CalibrationError):
            open_set(tmp_path, SPECS)


def relabelled(folder: Path, **changes: object) -> None:
    record = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**record, **changes}))


def test_a_changed_shard_of_a_recorded_set(folder: Path) -> None:
    np.savez(folder / "0001.npz", target=np.arange(4), **samples(4))
    with pytest.raises(CalibrationError, match=r"0001\.npz is damaged or was changed: its SHA-256"):
        open_set(folder, SPECS)


def test_a_shard_that_is_gone(folder: Path) -> None:
    (folder / "0001.npz").unlink()
    with pytest.raises(CalibrationError, match=r"0001\.npz is listed in .*dataset\.json, but there is no such file"):
        open_set(folder, SPECS)


def test_a_shard_that_is_not_listed(folder: Path) -> None:
    np.savez(folder / "extra.npz", **samples())
    with pytest.raises(CalibrationError, match=r"extra\.npz is not listed"):
        open_set(folder, SPECS)


def test_a_shard_outside_the_folder(tmp_path: Path, folder: Path) -> None:
    np.savez(tmp_path / "outside.npz", **samples())
    relabelled(folder, shards=[{"file": "../outside.npz", "count": 10, "sha256": "0"}])
    with pytest.raises(CalibrationError, match=r"outside\.npz is listed"):
        open_set(folder, SPECS)


def test_a_wrong_count(folder: Path) -> None:
    shards = json.loads((folder / "dataset.json").read_text())["shards"]
    relabelled(folder, shards=[{**shards[0], "count": 3}, *shards[1:]])
    with pytest.raises(CalibrationError, match=r"0000\.npz: input 'image' holds 4 samples, but .* says 3"):
        open_set(folder, SPECS)


@pytest.mark.parametrize(("change", "what"), [
    ({"version": 2}, "version 2, expected 'compress.dataset' version 1"), ({"format": "x"}, "format 'x'"),
    ({"shards": []}, "lists no shards"), ({"shards": 3}, "is damaged"), ({"shards": [{}]}, "is damaged"),
])
def test_a_damaged_record(folder: Path, change: dict[str, object], what: str) -> None:
    relabelled(folder, **change)
    with pytest.raises(CalibrationError, match=what):
        open_set(folder, SPECS)


def test_a_record_that_is_no_json(folder: Path) -> None:
    (folder / "dataset.json").write_text('{"format": ')
    with pytest.raises(CalibrationError, match=r"dataset\.json is damaged"):
        open_set(folder, SPECS)


def test_labels_in_some_shards_only(tmp_path: Path) -> None:
    savez()(tmp_path / "a.npz")
    savez(target=np.arange(10))(tmp_path / "b.npz")
    with pytest.raises(CalibrationError, match=r"b\.npz has 'target', unlike .*a\.npz"):
        open_set(tmp_path, SPECS)


def test_labels_of_two_types(tmp_path: Path) -> None:
    savez(target=np.arange(10))(tmp_path / "a.npz")
    savez(target=np.zeros(10))(tmp_path / "b.npz")
    with pytest.raises(CalibrationError, match=r"b\.npz: 'target' has dtype float64, but int64"):
        open_set(tmp_path, SPECS)


def test_labels_of_two_shapes(tmp_path: Path) -> None:
    savez(target=np.zeros((10, 2)))(tmp_path / "a.npz")
    savez(target=np.zeros((10, 3)))(tmp_path / "b.npz")
    with pytest.raises(CalibrationError, match=r"b\.npz: 'target' has another shape"):
        open_set(tmp_path, SPECS).targets()


@pytest.mark.parametrize(("name", "what"), [
    ("none", "none does not exist"), ("empty", "empty is empty"), ("a.txt", r"a\.txt is no calibration set")])
def test_no_set_there(tmp_path: Path, name: str, what: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").touch()
    with pytest.raises(CalibrationError, match=what):
        open_set(tmp_path / name, SPECS)


def test_inputs_that_cannot_be_stacked(folder: Path) -> None:
    fixed = TensorSpec(name="prompt", dtype="float32", shape=(3,), batch_axis=None)
    with pytest.raises(CalibrationError, match="'prompt' has no batch axis"):
        open_set(folder, [IMAGE, fixed])
    with pytest.raises(CalibrationError, match="has no inputs"):
        open_set(folder, [])


@pytest.mark.parametrize("use", [lambda data: data.batches(0), lambda data: data.first(-1), lambda data: data.take(0)])
def test_sizes_are_positive(folder: Path, use: Callable[[CalibrationSet], object]) -> None:
    with pytest.raises(CalibrationError, match="'set': give at least 1"):
        use(open_set(folder, SPECS))


def test_a_set_changed_while_in_use(folder: Path) -> None:
    data = open_set(folder, SPECS)
    np.savez(folder / "0001.npz", target=np.arange(4), **samples(4))
    with pytest.raises(CalibrationError, match=r"0001\.npz was changed while calibration set 'set' was in use"):
        list(data.batches(4))
    (folder / "0000.npz").unlink()
    with pytest.raises(CalibrationError, match=r"0000\.npz is gone"):
        data.targets()


def test_no_room_to_spool(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CalibrationError, match=r"cannot spool the samples to .*No space left"):
        open_set([samples()], SPECS)


def test_a_dimension_of_the_model_called_samples() -> None:
    wave = TensorSpec(name="wave", dtype="float32", shape=(BATCH, Dim("samples", 1, 8, 64)), modality="audio")
    assert open_set([{"wave": np.zeros((2, 8), np.float32)}], [wave]).first(2)["wave"].shape == (2, 8)
    with pytest.raises(CalibrationError, match=r"input 'wave'.*65"):
        open_set([{"wave": np.zeros((2, 65), np.float32)}], [wave])


def test_labels_that_are_texts(tmp_path: Path) -> None:
    """Whatever the width of a shard's strings and how many references the longest sample has."""
    savez(target=np.array(["a red bird"] * 10))(tmp_path / "a.npz")
    savez(target=np.array(["ψ"] * 9 + [""]))(tmp_path / "b.npz")
    data = open_set(tmp_path, SPECS)
    assert data.targets().tolist() == ["a red bird"] * 10 + ["ψ"] * 9 + [""]
    assert data.take(10).targets().tolist() == ["a red bird"] * 10
    (tmp_path / "b.npz").unlink()
    assert data.digest != open_set(tmp_path, SPECS).digest
    savez(target=np.array([["a"] * 3] * 10))(tmp_path / "a.npz")
    savez(target=np.array([["b", ""]] * 10))(tmp_path / "b.npz")
    assert open_set(tmp_path, SPECS).targets().tolist() == [["a"] * 3] * 10 + [["b", "", ""]] * 10


def test_the_digest_of_texts_does_not_know_where_one_shard_ends(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    both = {name: np.concatenate([array, array]) for name, array in samples().items()}
    np.savez(whole / "a.npz", target=np.array(["left"] * 10 + ["lefts"] * 10), **both)
    savez(target=np.array(["left"] * 10))(parts / "a.npz")
    savez(target=np.array(["lefts"] * 10))(parts / "b.npz")
    assert open_set(whole, SPECS).digest == open_set(parts, SPECS).digest
    np.savez(whole / "a.npz", target=np.array(["left"] * 11 + ["efts"] * 9), **both)
    assert open_set(whole, SPECS).digest != open_set(parts, SPECS).digest


def test_labels_of_several_tasks(tmp_path: Path) -> None:
    savez(**{"target.action": np.arange(10), "target.said": np.array(["up"] * 10)})(tmp_path / "a.npz")
    data = open_set(tmp_path, SPECS)
    assert data.labels == ("target.action", "target.said")
    assert data.targets() is None
    np.testing.assert_array_equal(data.targets("action"), np.arange(10))
    assert data.take(3).targets("said").tolist() == ["up"] * 3
    savez(target=np.arange(10))(tmp_path / "a.npz")
    np.testing.assert_array_equal(open_set(tmp_path, SPECS).targets("action"), np.arange(10))
    savez(**{"target.action": np.arange(10)})(tmp_path / "b.npz")
    with pytest.raises(CalibrationError, match=r"b\.npz lacks 'target', unlike|b\.npz has 'target.action', unlike"):
        open_set(tmp_path, SPECS)
