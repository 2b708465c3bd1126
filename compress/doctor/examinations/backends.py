"""Operators that a target's backend refuses: the backend itself is asked, by building the engine and running it here.

A backend that is not installed is not asked, which is said. A Jetson's TensorRT is not here: TensorRT for RTX, whose
parser is of the same family and newer, is asked in its place where its libraries are set up.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from compress.doctor.exported import name_of, onnx_of
from compress.doctor.finding import Finding
from compress.doctor.patient import Patient
from compress.doctor.places import Place, of_node
from compress.errors import CompressError
from compress.targets import Target
from runtimes.errors import RuntimesError

_ASKED = {
    "openvino": "OpenVINO", "onnxruntime": "ONNX Runtime", "tensorrt_rtx": "TensorRT for RTX",
    "tensorrt": "TensorRT for RTX, asked in place of the device's TensorRT,",
}  # fmt: skip
_PACKAGES = {"openvino": "openvino", "onnxruntime": "onnxruntime"}


def examine(patient: Patient) -> Iterator[Finding]:
    if patient.model is None:
        return
    asked: dict[tuple[str, int], list[Target]] = {}
    for target in patient.targets:
        builder = "tensorrt_rtx" if target.backend == "tensorrt" else target.backend
        asked.setdefault((builder, target.opset), []).append(target)
    refused_by_torch: dict[tuple[str, str], list[str]] = {}
    for (backend, opset), targets in asked.items():
        names = tuple(target.name for target in targets)
        absent = _absent(backend)
        if absent is not None:
            yield Finding(
                examination="backends", severity="note", where=backend, concerns=("export", *names),
                what=f"{_ASKED[backend]} was not asked whether it takes the model: {absent[0]}", remedy=absent[1],
            )  # fmt: skip
        for graph in patient.model.graphs:
            file = onnx_of(patient, graph, opset)
            if isinstance(file, str):
                refused_by_torch.setdefault((graph, file), []).extend(names)
            elif absent is None:
                yield from _ask(patient, graph, file, targets[0], names)
    for (graph, said), concerned in refused_by_torch.items():
        yield _not_onnx(patient, graph, said, tuple(concerned))


def _absent(backend: str) -> tuple[str, str] | None:
    """Why a backend cannot be asked here, and what to do; None where it can."""
    if backend in _PACKAGES:
        present = importlib.util.find_spec(_PACKAGES[backend]) is not None
        return None if present else ("it is not installed here", f'pip install "compress-edge[{backend}]"')
    from compress.export.rtx_libraries import cache_folder

    installed = importlib.util.find_spec("tensorrt_rtx") is not None
    if installed or any((cache_folder() / "tensorrt-rtx").glob("[0-9]*")):
        return None
    return (
        "the libraries of TensorRT for RTX, whose parser would be, are not set up here",
        "python -m compress.export.rtx_libraries (148 MB), then again",
    )


def _ask(patient: Patient, graph: str, onnx: Path, target: Target, names: tuple[str, ...]) -> Iterator[Finding]:
    """Build as export does, and run the example where the engine can run here."""
    from compress.export import build_engine, only
    from runtimes.backends import open_engine

    assert patient.model is not None
    model = dataclasses.replace(only(patient.model, graph), quantization=None)
    asked = _ASKED[target.backend]
    if target.backend == "tensorrt":             # its own recipe is the opset's examination
        target = dataclasses.replace(target, backend="tensorrt_rtx", reach="local", address=None)
    into = patient.work / f"engine-{target.backend}-{onnx.stem}"
    try:
        engine = build_engine(onnx, model, target, into, precision="fp32")
        if engine.state == "runnable" and target.device == "CPU":
            open_engine(engine).run({spec.name: patient.example[spec.name] for spec in model.inputs})
    except (CompressError, RuntimesError) as error:
        said = _plain(str(error), (onnx, into))
        operator, place = _named(patient, graph, onnx, said)
        yield Finding(
            examination="backends", severity="blocks", where=place.path or operator or name_of(patient, graph),
            what=f"{asked} refuses {operator or 'the model'}: {_without_node(said)}",
            source=place.source, concerns=("export", *names),
            remedy="write it with other torch functions, keep that part outside of the model, or take another target",
        )  # fmt: skip
    finally:
        shutil.rmtree(into, ignore_errors=True)


def _plain(said: str, paths: tuple[Path, ...]) -> str:
    """The backend's words without our file names, documentation links and the names that tell the module."""
    for path in paths:
        said = said.replace(str(path), "the ONNX")
    said = re.sub(r"\b(ONNX Runtime|OpenVINO|TensorRT) refuses the ONNX:\s*", "", said)
    said = re.sub(r"FrontEnd API failed with \w+: Model wasn't fully converted\. (Summary: -- )?", "", said)
    said = re.sub(r"\s*To facilitate the conversion .*|^\[ONNXRuntimeError\] : \d+ : ", "", " ".join(said.split()))
    return said[:300]


def _without_node(said: str) -> str:
    """TensorRT and ONNX Runtime name the node, by a name of ours; TensorRT may then say no more than ``false``."""
    said = re.sub(r"^node '[^']*' \(\w+\): | node with name '[^']*'", "", said)
    return "its parser says no more" if said == "false" else said


def _named(patient: Patient, graph: str, onnx: Path, said: str) -> tuple[str, Place]:
    """The first ONNX node that ``said`` names by its name, or else by its operator; and where that is in the model."""
    from runtimes.backends import COMPONENT_MARK
    from runtimes.onnxgraph import read_nodes

    assert patient.model is not None
    nodes = read_nodes(onnx.read_bytes())
    quoted = [node for node in nodes if node.name and re.search(rf"(?<![\w.:]){re.escape(node.name)}(?![\w])", said)]
    named = [node for node in nodes if re.search(rf"(?<![\w:]){node.op}(?=\(|-\d|'|\b\s*$)", said)]
    node = next(iter([*quoted, *named]), None)
    if node is None:
        return "", Place()
    module, _, name = node.name.rpartition(COMPONENT_MARK)
    own = name.removeprefix("node_")
    traced = [n for n in patient.model.graphs[graph].program.graph.nodes if n.op == "call_function"]
    same = [n for n in traced if n.name == own]
    same = same or [n for n in traced if node.op.lower() in str(n.target).replace("_", "")]
    if same:
        return node.op, of_node(same[0])
    return node.op, Place(path=module.rpartition(COMPONENT_MARK)[2] if module != "model" else "")


def _not_onnx(patient: Patient, graph: str, said: str, names: tuple[str, ...]) -> Finding:
    """torch's exporter has no translation of an operator: which, and where it is first used."""
    assert patient.model is not None
    operator = re.search(r"OpOverload\(op='([\w.]+)'", said)
    place = Place()
    if operator is not None:
        wanted = operator[1].rpartition(".")[2].replace("_", "")
        for node in patient.model.graphs[graph].program.graph.nodes:
            if node.op == "call_function" and wanted in str(node.target).replace("_", ""):
                place = of_node(node)
                break
    return Finding(
        examination="backends", severity="blocks", source=place.source, concerns=("export", *names),
        where=place.path or (operator[1] if operator else name_of(patient, graph)),
        what=f"ONNX has no {operator[1]}: no target can be built for" if operator else said,
        remedy="write it with operators that ONNX has, or keep that part outside of the model",
    )  # fmt: skip
