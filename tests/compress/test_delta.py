"""Making deltas: which tensors are found, and that old weights make new ones small."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.delta import make_delta
from compress.tensors import tensors_of
from runtimes.arrays import write_arrays
from runtimes.bundle import Bundle, EngineEntry, Golden, GraphEntry, read_bundle, write_manifest
from runtimes.delta import BLOCK, apply_delta, read_header
from runtimes.engine import write_engine
from runtimes.errors import RuntimesError
from runtimes.hashing import tree_digest
from tests.runtimes.conftest import made_bundle, next_bundle  # noqa: F401


def bundle_of(root: Path, files: dict[str, bytes], target: str = "t") -> Bundle:
    """A bundle of one engine with these files, which nothing opens."""
    folder = root / f"engines/main/{target}"
    folder.mkdir(parents=True)
    (root / "golden").mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    engine = write_engine(
        folder, backend="openvino", device="CPU", precision="int8", entry=next(iter(files)), inputs=(), outputs=(),
        options={}, source="", built_with={}, state="runnable")
    for name in ("feed", "expected"):
        write_arrays(root / f"golden/{name}.npz", {})
    entry = EngineEntry(
        path=f"engines/main/{target}", backend="openvino", precision="int8", digest=engine.digest, state="runnable")
    golden = Golden(feed="golden/feed.npz", expected="golden/expected.npz", tolerance={})
    return write_manifest(root, name="b", accuracy={},
                          graphs={"main": GraphEntry(inputs=(), outputs=(), engines={target: entry}, golden=golden)})


def ir(*layers: tuple[str, str, int, int]) -> bytes:
    """The constants of an OpenVINO IR: name, shape, offset and size."""
    items = "".join(
        f'<layer id="{i}" name="{name}" type="Const"><data element_type="i8" shape="{shape}" offset="{at}" '
        f'size="{size}"/></layer>' for i, (name, shape, at, size) in enumerate(layers))
    return f'<?xml version="1.0"?><net><layers><layer name="x" type="Parameter"/>{items}</layers></net>'.encode()


def onnx_of(**weights: np.ndarray) -> bytes:
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    node = helper.make_node("Identity", ["x"], ["y"])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    data: bytes = helper.make_model(helper.make_graph([node], "g", [info], [out], tensors)).SerializeToString()
    return data


def round_trip(old: Bundle, new: Bundle, tmp_path: Path) -> dict[str, int]:
    """Payload bytes of each file, once the result was found to be the new bundle."""
    made = make_delta(old.path, new.path, tmp_path / "u.delta")
    apply_delta(old.path, tmp_path / "u.delta", tmp_path / "made")
    assert tree_digest(tmp_path / "made") == tree_digest(new.path)
    return {path.rsplit("/", 1)[-1]: size for path, size in made.files.items()}


def weights(seed: int, size: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-127, 128, size, np.int8)


def test_tensors_of_an_openvino_ir(tmp_path: Path) -> None:
    xml = ir(("a", "16", 0, 16), ("b", "4, 8", 16, 32), ("twice", "16", 48, 16), ("twice", "16", 64, 16),
             ("small", "8", 80, 8), ("outside", "32", 80, 32))  # fmt: skip
    read = bundle_of(tmp_path / "b", {"model.xml": xml, "model.bin": bytes(100)})
    found = tensors_of(read, "engines/main/t/model.bin")
    assert {name: (place.at, place.size, place.kind) for name, place in found.items()} == {
        "a": (0, 16, ("i8", "16")), "b": (16, 32, ("i8", "4, 8"))}  # fmt: skip
    broken = bundle_of(tmp_path / "c", {"model.xml": b"<net><layers>", "model.bin": bytes(100)})
    assert tensors_of(broken, "engines/main/t/model.bin") == {}
    assert tensors_of(broken, "engines/main/t/model.xml") == {}


def test_tensors_of_an_onnx_file(tmp_path: Path) -> None:
    held = {"a": weights(0, 40), "b": np.arange(24, dtype=np.float32).reshape(4, 6), "tiny": weights(1, 2)}
    data = onnx_of(**held)
    read = bundle_of(tmp_path / "b", {"model.onnx": data})
    found = tensors_of(read, "engines/main/t/model.onnx")
    assert found.keys() == {"a", "b"}
    for name, place in found.items():
        assert data[place.at : place.at + place.size] == held[name].tobytes()
    assert found["a"].kind != found["b"].kind
    model = onnx.load_from_string(data)
    assert found["b"].kind == (bytes([model.graph.initializer[1].data_type]).hex(), "0406")
    for number, damaged in enumerate((data[:-30], b"\xff" * 30, b"\x3a\xff\xff\xff\xff\x0f", b"")):
        other = bundle_of(tmp_path / str(number), {"model.onnx": damaged})
        assert tensors_of(other, "engines/main/t/model.onnx").keys() <= {"a", "b"}


@pytest.mark.parametrize("form", ["openvino", "onnx"])
def test_a_step_on_every_weight_is_a_fraction_of_the_file(form: str, tmp_path: Path) -> None:
    """Each of 60,000 random weights moves by -1, 0 or 1: log2(3) = 1.58 bits each, and the file has 8."""
    size = 60_000
    old, step = weights(0, size), np.random.default_rng(1).integers(-1, 2, size).astype(np.int8)
    new = old + step
    moved = weights(2, 1000)        # the new file has another tensor in front, so that every offset differs

    def files(tensor: np.ndarray, first: np.ndarray) -> dict[str, bytes]:
        if form == "onnx":
            return {"model.onnx": onnx_of(first=first, w=tensor)}
        xml = ir(("first", str(first.size), 0, first.size), ("w", str(size), first.size, size))
        return {"model.xml": xml, "model.bin": first.tobytes() + tensor.tobytes()}

    before, after = bundle_of(tmp_path / "a", files(old, moved[:500])), bundle_of(tmp_path / "b", files(new, moved))
    stored = round_trip(before, after, tmp_path)["model.onnx" if form == "onnx" else "model.bin"]
    assert size * 1.58 / 8 <= stored <= 0.28 * size
    with (tmp_path / "u.delta").open("rb") as file:
        patches = {patch.path: patch for patch in read_header(file, tmp_path / "u.delta").files}
    patch = patches["engines/main/t/model." + ("onnx" if form == "onnx" else "bin")]
    (span,) = patch.spans
    assert span[2] == size
    assert span[0] - span[1] >= 500


def test_what_is_new_is_stored_whole(tmp_path: Path) -> None:
    """New random weights share nothing with the old ones: subtracting would cost, and so would a prefix."""
    xml = ir(("w", "5000", 0, 5000))
    before = bundle_of(tmp_path / "a", {"model.xml": xml, "model.bin": weights(0, 5000).tobytes()})
    after = bundle_of(tmp_path / "b", {"model.xml": xml, "model.bin": weights(1, 5000).tobytes()})
    assert 5000 * 0.98 < round_trip(before, after, tmp_path)["model.bin"] < 5050
    with (tmp_path / "u.delta").open("rb") as file:
        patches = {patch.path: patch for patch in read_header(file, tmp_path / "u.delta").files}
    assert patches["engines/main/t/model.bin"].spans == ()
    assert patches["engines/main/t/model.xml"].blocks is None       # unchanged


def test_a_file_that_only_moved_is_a_copy(tmp_path: Path) -> None:
    files = {"model.xml": ir(), "model.bin": weights(0, 5000).tobytes()}
    stored = round_trip(bundle_of(tmp_path / "a", files), bundle_of(tmp_path / "b", files, target="u"), tmp_path)
    assert {name for name, size in stored.items() if size} == {"manifest.json"}


def test_files_of_no_known_format_and_of_several_blocks(tmp_path: Path) -> None:
    """Two blocks and a bit, a kilobyte inserted at the start: found again through the prefix."""
    data = np.random.default_rng(0).integers(0, 256, 2 * BLOCK + 12345, np.uint8).tobytes()
    before = bundle_of(tmp_path / "a", {"plan": data, "empty": b""})
    after = bundle_of(tmp_path / "b", {"plan": bytes(1000) + data, "empty": b"", "more": data[:100_000]})
    stored = round_trip(before, after, tmp_path)
    assert stored["plan"] < 20_000
    assert stored["more"] > 99_000      # it has no old file of its name
    with (tmp_path / "u.delta").open("rb") as file:
        patches = {patch.path: patch for patch in read_header(file, tmp_path / "u.delta").files}
    assert len(patches["engines/main/t/plan"].blocks or ()) == 3


def test_the_same_bundles_give_the_same_delta(made_bundle: Path, next_bundle: Path, tmp_path: Path) -> None:  # noqa: F811
    first = make_delta(made_bundle, next_bundle, tmp_path / "a.delta")
    make_delta(made_bundle, next_bundle, tmp_path / "b.delta")
    data = (tmp_path / "a.delta").read_bytes()
    assert data == (tmp_path / "b.delta").read_bytes()
    assert data[-32:] == hashlib.sha256(data[:-32]).digest()
    assert first.size_bytes == len(data)
    assert first.bundle_bytes == sum(path.stat().st_size for path in next_bundle.rglob("*") if path.is_file())
    assert (first.old, first.new) == (read_bundle(made_bundle).digest, read_bundle(next_bundle).digest)


def test_a_damaged_bundle(made_bundle: Path, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(RuntimesError, match="is not a bundle"):
        make_delta(made_bundle, tmp_path, tmp_path / "u.delta")
    assert not (tmp_path / "u.delta").exists()
