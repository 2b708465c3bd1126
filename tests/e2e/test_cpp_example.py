"""The C++ example: built with the vendors' libraries, it answers as Python does, and refuses what Python refuses."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import calibration
import compress
import runtimes
from compress.device.debian import host_architecture, locked, unpack
from compress.export.rtx_libraries import cache_folder
from compress.signing import new_key, sign
from compress.targets import get_target
from runtimes.arrays import read_arrays, write_arrays

SOURCE = Path(compress.__file__).parents[1] / "examples" / "cpp"
TARGETS = ("openvino-cpu", "onnxruntime-cpu")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The app, built as docs/cpp.md says: headers from Debian, libraries from the wheels that Python uses."""
    for program in ("cmake", "c++", "apt-get"):
        if shutil.which(program) is None:
            pytest.skip(f"building the example takes {program}")
    import onnxruntime
    import openvino

    base = tmp_path_factory.getbasetemp()
    build = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cpp-example"    # one for all workers
    build.mkdir(exist_ok=True)
    with locked(build / "lock"):
        if not (build / "device_app").exists():
            _build(build, Path(openvino.__file__).parent, Path(onnxruntime.__file__).parent)
    return build / "device_app"


def _build(build: Path, openvino: Path, onnxruntime: Path) -> None:
    architecture = host_architecture()
    system, headers = cache_folder() / "cpp-example" / "system", cache_folder() / "cpp-example" / "onnxruntime"
    unpack(["libssl-dev", "libssl3", "nlohmann-json3-dev"], system, architecture=architecture)
    unpack(["libonnxruntime-dev"], headers, architecture=architecture, suite="trixie")
    (library,) = (onnxruntime / "capi").glob("libonnxruntime.so.*")
    (build / "libonnxruntime.so.1").unlink(missing_ok=True)
    (build / "libonnxruntime.so.1").symlink_to(library)
    (include,) = (path.parents[1] for path in (system / "usr/include").glob("*/openssl/configuration.h"))
    settings = {
        "OpenVINO_DIR": openvino / "cmake",
        "ONNXRUNTIME_INCLUDE_DIR": headers / "usr/include/onnxruntime",
        "ONNXRUNTIME_LIBRARY": build / "libonnxruntime.so.1",
        "CMAKE_PREFIX_PATH": system / "usr",
        "CMAKE_CXX_FLAGS": f"-Werror -isystem {include}",
    }
    _call(["cmake", "-S", SOURCE, "-B", build, *(f"-D{name}={value}" for name, value in settings.items())])
    _call(["cmake", "--build", build])


def _call(command: list[Any]) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.fixture(scope="session")
def bundle(small_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an int8 engine for each of the two backends."""
    model = compress.load(small_files / "model.pt")
    data = calibration.open_set(small_files / "calibration", model.inputs)
    folder = tmp_path_factory.mktemp("bundle")
    engines = {}
    for name in TARGETS:
        target = get_target(name)
        quantized = compress.quantize(model, data, scheme=target.scheme).model
        engines[name] = compress.export(quantized, target, folder / name)
    golden = {key: array[:4] for key, array in read_arrays(small_files / "validation" / "0000.npz").items()
              if key != "target"}  # fmt: skip
    compress.bundle(model, engines, golden, folder / "bundle")
    return folder / "bundle"


@pytest.fixture(scope="session")
def feed(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other samples than the golden ones: 5 of them, so that the batch is another too."""
    rng = np.random.default_rng(3)
    path = tmp_path_factory.mktemp("feed") / "feed.npz"
    np.savez(path, picture=rng.normal(size=(5, 6)).astype(np.float32), word=rng.integers(0, 10, (5, 3)))
    return path


def _run(app: Path, *words: Path | str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(app), *map(str, words)], capture_output=True, text=True, timeout=60, check=False)


def _outputs(printed: str) -> dict[str, np.ndarray]:
    lines = printed.splitlines()
    outputs = {}
    for head, values in zip(lines[::2], lines[1::2], strict=True):
        name, dtype, *shape = head.split()
        outputs[name] = np.array(values.split(), dtype=dtype).reshape([int(size) for size in shape])
    return outputs


@pytest.mark.parametrize("target", TARGETS)
def test_the_outputs_are_those_of_python(app: Path, bundle: Path, feed: Path, target: str) -> None:
    """Same library, same bytes, same options and threads: equal to the last bit."""
    done = _run(app, bundle, target, feed, "--threads", "1")
    assert (done.returncode, done.stderr) == (0, "")
    with runtimes.load(bundle, target=target, threads=1) as session:
        expected = session.run(read_arrays(feed))
    outputs = _outputs(done.stdout)
    assert outputs.keys() == expected.keys() == {"output"}
    assert outputs["output"].dtype == expected["output"].dtype == np.float32
    np.testing.assert_array_equal(outputs["output"], expected["output"])


@pytest.mark.parametrize("target", TARGETS)
def test_self_test(app: Path, bundle: Path, target: str) -> None:
    done = _run(app, bundle, target)
    assert done.returncode == 0
    assert f"tiny on {target}: self-test passed" in done.stderr
    with runtimes.load(bundle, target=target) as session:
        expected = session.run(runtimes.read_bundle(bundle).read_arrays("golden/forward/feed.npz"))
    np.testing.assert_allclose(_outputs(done.stdout)["output"], expected["output"], rtol=1e-6)


def _change(bundle: Path, name: str, edit: Callable[[Path], None]) -> None:
    """Edit a file of the bundle and write its new SHA-256 into the manifest, as whoever made the bundle could."""
    edit(bundle / name)
    content = (bundle / name).read_bytes()
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def _edit_json(key: str, value: Any) -> Callable[[Path], None]:
    return lambda path: (path.write_text(json.dumps({**json.loads(path.read_text()), key: value})), None)[1]


def test_a_failed_self_test(app: Path, bundle: Path, copy_of: Callable[[Path], Path]) -> None:
    changed = copy_of(bundle)
    _change(changed, "golden/forward/expected.npz",
            lambda path: write_arrays(path, {"output": read_arrays(path)["output"] + 100}))  # fmt: skip
    done = _run(app, changed, "openvino-cpu")
    assert done.returncode == 1
    assert re.search("self-test FAILED, largest difference (99|100)", done.stderr)


def test_a_changed_file_is_refused(app: Path, bundle: Path, copy_of: Callable[[Path], Path]) -> None:
    changed = copy_of(bundle)
    weights = next((changed / "engines/forward/openvino-cpu").glob("*.bin"))
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    done = _run(app, changed, "openvino-cpu")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{weights} is not the file that the manifest lists" in done.stderr
    assert _run(app, changed, "onnxruntime-cpu").returncode == 0  # whose files are as they were
    weights.unlink()
    assert f"{weights} cannot be read" in _run(app, changed, "openvino-cpu").stderr


def test_an_option_that_writes_files_is_refused(app: Path, bundle: Path, copy_of: Callable[[Path], Path]) -> None:
    for target, option in (("openvino-cpu", "CACHE_DIR"), ("onnxruntime-cpu", "session.optimized_model_filepath")):
        changed = copy_of(bundle)
        _change(changed, f"engines/forward/{target}/engine.json", _edit_json("options", {option: "/tmp/written"}))
        done = _run(app, changed, target)
        assert (done.returncode, done.stderr) == (2, f"error: an engine may not set {option}\n")
        shutil.rmtree(changed)


def test_a_path_out_of_the_bundle_is_refused(app: Path, bundle: Path, copy_of: Callable[[Path], Path]) -> None:
    changed = copy_of(bundle)
    shutil.copytree(bundle / "engines/forward/openvino-cpu", changed.parent / "outside")
    manifest = json.loads((changed / "manifest.json").read_text())
    manifest["graphs"]["forward"]["engines"]["openvino-cpu"]["path"] = "../outside"
    listed = {name: entry for name, entry in manifest["files"].items() if "openvino-cpu" in name}
    manifest["files"] |= {f"../outside/{name.split('/')[-1]}": entry for name, entry in listed.items()}
    (changed / "manifest.json").write_text(json.dumps(manifest))
    done = _run(app, changed, "openvino-cpu")
    assert done.returncode == 2
    assert "is a path out of the bundle" in done.stderr


def test_the_signature(app: Path, bundle: Path, feed: Path, copy_of: Callable[[Path], Path], tmp_path: Path) -> None:
    signed = copy_of(bundle)
    ours, theirs = tmp_path / "ours.pem", tmp_path / "theirs.pem"
    trusted, untrusted = new_key(ours), new_key(theirs)
    asked = [signed, "openvino-cpu", feed, "--key"]
    assert "manifest.sig cannot be read" in _run(app, *asked, trusted).stderr  # not signed yet
    sign(signed, ours)
    assert _run(app, *asked, trusted).returncode == 0
    assert "is a signature of another key" in _run(app, *asked, untrusted).stderr
    assert "is not an Ed25519 public key" in _run(app, *asked, ours).stderr  # the private one
    manifest = signed / "manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    done = _run(app, *asked, trusted)
    assert done.returncode == 2
    assert "manifest.sig is not a signature of this manifest" in done.stderr


GOOD = {"picture": np.zeros((2, 6), np.float32), "word": np.ones((2, 3), np.int64)}


@pytest.mark.parametrize(("changed", "said"), [
    ({"word": None}, "the feed lacks input word"),
    ({"other": np.zeros(1)}, "the feed has an input that the engine has not"),
    ({"picture": np.zeros((2, 6))}, 'input picture is float64, not "float32"'),
    ({"picture": np.zeros((2, 7), np.float32)}, "input picture has another shape"),
    ({"picture": np.zeros((2, 6, 1), np.float32)}, "input picture has another shape"),
    ({"word": np.ones((3, 3), np.int64)}, "input word has another shape"),      # two batches in one feed
    ({"picture": np.full((2, 6), np.nan, np.float32)}, "input picture holds NaN"),
    ({"word": np.full((2, 3), 10)}, "input word has a value outside [0,9]"),
    ({"word": np.full((2, 3), -1)}, "input word has a value outside [0,9]"),
    ({"picture": np.asfortranarray(np.ones((2, 6), np.float32))}, "is not row-major"),
    ({"picture": np.zeros((2, 6), ">f4")}, "not little-endian"),
    ({"picture": np.array(["a"])}, "not of plain numbers"),
])  # fmt: skip
def test_a_wrong_feed_is_refused(
    app: Path, bundle: Path, tmp_path: Path, changed: dict[str, np.ndarray | None], said: str
) -> None:
    feed = {name: array for name, array in {**GOOD, **changed}.items() if array is not None}
    np.savez(tmp_path / "feed.npz", **feed)  # type: ignore[arg-type]
    done = _run(app, bundle, "openvino-cpu", tmp_path / "feed.npz")
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_a_damaged_feed_is_refused(app: Path, bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "feed.npz"
    np.savez_compressed(path, **GOOD)  # type: ignore[arg-type]
    assert "a member is compressed" in _run(app, bundle, "openvino-cpu", path).stderr
    np.savez(path, **GOOD)  # type: ignore[arg-type]
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 4):
            damaged[place] ^= 1 << rng.integers(0, 8)
        path.write_bytes(bytes(damaged[: rng.integers(1, len(whole) + 1)]))
        assert _run(app, bundle, "openvino-cpu", path).returncode in (0, 2)     # never a crash
    path.write_bytes(whole[:-1])
    assert "cannot be read as an .npz file: it is no zip archive" in _run(app, bundle, "openvino-cpu", path).stderr


def test_what_is_asked_for_must_be_there(app: Path, bundle: Path, tmp_path: Path) -> None:
    assert "usage: device_app BUNDLE TARGET" in _run(app, bundle).stderr
    assert "no engine for rtx, it has: onnxruntime-cpu openvino-cpu" in _run(app, bundle, "rtx").stderr
    assert "name one of the bundle's graphs: forward" in _run(app, bundle, "rtx", "--graph", "decoder").stderr
    for threads in ("x", "0", "-1", "99999"):
        assert f"takes a number from 1 on, not {threads}" in _run(app, bundle, TARGETS[0], "--threads", threads).stderr
    assert "manifest.json cannot be read" in _run(app, tmp_path, "rtx").stderr
    (tmp_path / "manifest.json").write_text('{"format": "compress.bundle", "version": 1}')
    assert "is not a compress.bundle of version 2" in _run(app, tmp_path, "rtx").stderr
