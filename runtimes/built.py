"""Build a TensorRT engine on the device it is for, once: kept in a cache by what it was built from, for and with.

``python -m runtimes.built BUNDLE TARGET`` builds ahead of the first start. An engine folder of state "build on the
device" holds the ONNX file and ``build.json``, the recipe (format ``compress.build``). What is built is an engine
folder of its own, of state "runnable", whose ``built_with`` is the fingerprint: the GPU, its compute capability, the
releases of TensorRT and JetPack. It is used again only where all of them are the same.

Written, never run on a GPU: its tests build with a fake TensorRT; the builder itself, :mod:`runtimes.tensorrt_builder`,
is also the one that builds for TensorRT for RTX on the host.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtimes.backends import find_backend, import_backend, read_files
from runtimes.engine import Engine, read_engine, write_engine
from runtimes.errors import RuntimesError
from runtimes.hashing import json_digest
from runtimes.onnxfile import refuse_external_data
from runtimes.records import get, parse_record, string_list, typed, write_json

RECIPE_FORMAT, RECIPE_VERSION = "compress.build", 2
BUILD_TIMEOUT_S = 3600.0
PLAN, LAYERS, LOG, TIMINGS = "model.engine", "layers.json", "build.log", "timing.cache"

_BUILDER = Path(__file__).with_name("tensorrt_builder.py")
_TYPINGS = ("strong", "weak")
_L4T = re.compile(r"R(\d+) \(release\), REVISION: ([\d.]+)")


def built_engine(
    engine: Engine, cache: Path | None = None, *, expected: Mapping[str, str] | None = None,
    timeout_s: float = BUILD_TIMEOUT_S,
) -> Engine:
    """The engine that ``engine`` becomes on this device: from the cache, else built now, which takes minutes.

    Args:
        engine: one of state "build on the device"; any other is returned as it is.
        cache: where built engines are kept; :func:`cache_folder` by default.
        expected: path relative to the engine's folder -> SHA-256, from a bundle's manifest.
        timeout_s: seconds after which the build is ended.

    Raises:
        RuntimesError: if a file was changed, the recipe is damaged, TensorRT is not installed or refuses the model, or
            there is no GPU.
    """
    if engine.state != "build on the device":
        return engine
    files = read_files(engine, expected)
    refuse_external_data(files[engine.entry], str(engine.path / engine.entry))
    recipe = _read_recipe(files, f"{engine.path / 'build.json'}")
    found = fingerprint(engine.backend)
    cache = cache_folder() if cache is None else cache
    folder = _place(engine, found, cache)
    kept = _kept(folder)
    if kept is not None:
        return kept
    folder.parent.mkdir(parents=True, exist_ok=True)
    timings = cache / "timings" / f"{json_digest(found)[:16]}.cache"
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-") as name:
        work, whole = Path(name) / "work", Path(name) / "made"
        made = whole / "engine"
        work.mkdir()
        made.mkdir(parents=True)
        if timings.is_file():
            shutil.copyfile(timings, work / TIMINGS)
        package = importlib.import_module(find_backend(engine.backend).package)
        origin = Path(str(package.__file__)).parents[1]
        job = {**recipe, "module": package.__name__, "python_path": str(origin), "inspect": True}
        result = run_builder(files[engine.entry], job, work, str(engine.path), dict(os.environ), timeout_s)
        for file in (PLAN, LAYERS, LOG):
            shutil.move(work / file, made / file)
        _keep_timings(work / TIMINGS, timings)
        write_engine(
            made, backend=engine.backend, device=engine.device, precision=engine.precision, entry=PLAN,
            inputs=engine.inputs, outputs=engine.outputs, options={}, source=engine.source, built_with=found,
            state="runnable", notes=[f"warning of the builder: {text}" for text in dict.fromkeys(result["warnings"])],
        )  # fmt: skip
        write_json(whole / "digest.json", {"digest": read_engine(made).digest})
        try:
            whole.rename(folder)
        except OSError:
            if not folder.is_dir():  # another process was first
                raise
    return read_engine(folder / "engine")


def cached_engine(engine: Engine, cache: Path | None = None) -> Engine | None:
    """What :func:`built_engine` built of ``engine`` earlier for this very device and these versions, or None."""
    if engine.state != "build on the device":
        return engine
    cache = cache_folder() if cache is None else cache
    return _kept(_place(engine, fingerprint(engine.backend), cache))


def fingerprint(backend: str) -> dict[str, str]:
    """What an engine built here depends on: the backend's release, the GPU with its compute capability, and L4T's.

    Raises:
        RuntimesError: if the backend is not installed, or there is no GPU.
    """
    from runtimes.tensorrt import gpu_facts

    import_backend(backend)
    package = importlib.import_module(find_backend(backend).package)
    l4t = _l4t()
    return {backend: str(package.__version__), **gpu_facts(backend), **({"l4t": l4t} if l4t else {})}


def cache_folder() -> Path:
    """``$COMPRESS_CACHE``, else ``compress`` in ``$XDG_CACHE_HOME``, else ``~/.cache/compress``; with ``engines``."""
    own, shared = os.environ.get("COMPRESS_CACHE"), os.environ.get("XDG_CACHE_HOME")
    base = Path(own) if own else Path(shared or Path.home() / ".cache") / "compress"
    return base / "engines"


def run_builder(
    onnx: bytes, job: Mapping[str, Any], work: Path, name: str, environment: Mapping[str, str], timeout_s: float
) -> dict[str, Any]:
    """Build in a process of its own, which ends with this one, with an error, or when its time is over.

    Args:
        onnx: the model.
        job: as :mod:`runtimes.tensorrt_builder` reads it, without ``parent``.
        work: an empty folder, or one with ``timing.cache``; gets what the builder writes.
        name: what messages call the model.
        environment: of the process.
        timeout_s: seconds after which it is ended.

    Raises:
        RuntimesError: what TensorRT refused, or how the process ended.
    """
    (work / "model.onnx").write_bytes(onnx)
    (work / "job.json").write_text(json.dumps({**job, "parent": os.getpid()}), encoding="utf-8")
    with subprocess.Popen(
        [sys.executable, "-I", str(_BUILDER)], cwd=work, env=dict(environment), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
    ) as process:  # fmt: skip
        try:
            said, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise RuntimesError(
                f"TensorRT did not finish building {name} within {timeout_s:g} s: make the model or the range of its "
                "dynamic dimensions smaller, or leave out this target"
            ) from error
        finally:
            process.kill()
    result_file = work / "result.json"
    if not result_file.is_file():
        last = (said.strip().splitlines() or ["it said nothing"])[-1]
        raise RuntimesError(f"the TensorRT builder died of {_ending(process.returncode)} on {name}: {last}")
    result = dict(json.loads(result_file.read_text(encoding="utf-8")))
    if result["error"] is not None:
        raise RuntimesError(f"TensorRT refuses {name}: {result['error']}")
    return result


def _read_recipe(files: Mapping[str, bytes], where: str) -> dict[str, Any]:
    """The job that a recipe is, every value of the type the builder relies on."""
    if "build.json" not in files:
        raise RuntimesError(f"{where} is missing: copy the bundle again")
    record = parse_record(files["build.json"], where, format=RECIPE_FORMAT, version=RECIPE_VERSION)
    typing = get(record, "typing", str, where)
    if typing not in _TYPINGS:
        raise RuntimesError(f"{where}: 'typing' is {typing!r:.80}, expected one of {_TYPINGS}: export the model again")
    workspace = record.get("workspace_mib")
    profile = {}
    for name, shapes in get(record, "profile", dict, where).items():
        place = f"{where}: profile of {name!r}"
        sizes = [get(typed(shapes, dict, place), kind, list, place) for kind in ("min", "opt", "max")]
        profile[name] = [[typed(size, int, place) for size in shape] for shape in sizes]
    return {
        "typing": typing,
        "flags": list(string_list(record, "flags", where)),
        "workspace_mib": None if workspace is None else typed(workspace, int, f"{where}: 'workspace_mib'"),
        "profile": profile,
    }


def _place(engine: Engine, found: Mapping[str, str], cache: Path) -> Path:
    return cache / json_digest({"engine": engine.digest, "with": dict(found)})[:32]


def _kept(folder: Path) -> Engine | None:
    """The engine kept in ``folder``, unless it is damaged: it is then removed, to be built again."""
    try:
        record = json.loads((folder / "digest.json").read_bytes())
        engine = read_engine(folder / "engine")
        if engine.digest == record["digest"]:
            return engine
    except (OSError, ValueError, KeyError, TypeError, RuntimesError):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    return None


def _keep_timings(made: Path, kept: Path) -> None:
    if made.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        temporary = kept.with_name(f".{kept.name}.{os.getpid()}.tmp")
        shutil.copyfile(made, temporary)
        os.replace(temporary, kept)


def _l4t(file: Path = Path("/etc/nv_tegra_release")) -> str | None:
    """The release of NVIDIA's Linux for Tegra, which a JetPack comes with: "36.4.3"."""
    try:
        match = _L4T.search(file.read_text(errors="replace"))
    except OSError:
        return None
    return f"{match[1]}.{match[2]}" if match else None


def _ending(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def main(arguments: list[str]) -> int:
    from runtimes.bundle import read_bundle

    if len(arguments) != 2:
        print("usage: python -m runtimes.built BUNDLE TARGET", file=sys.stderr)
        return 2
    try:
        bundle = read_bundle(arguments[0])
        for graph, entry in bundle.graphs.items():
            if arguments[1] not in entry.engines:
                raise RuntimesError(f"graph {graph!r} has no engine for {arguments[1]!r}: it has {list(entry.engines)}")
            held = entry.engines[arguments[1]]
            expected = bundle.engine_files(held)
            engine = built_engine(read_engine(bundle.path / held.path, expected=expected), expected=expected)
            print(f"{graph}: {engine.path}")
    except RuntimesError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
