"""The Python and the chains of docs/embedding.md run as they stand."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

import pytest

from runtimes.bundle import GraphEntry
from runtimes.wiring import parse_chain
from tests.contracts.models import BY_NAME
from tests.runtimes import networks
from tests.runtimes.bundles import write_bundle
from tests.runtimes.test_chain import TOWERS
from tests.runtimes.test_wiring import entry

TEXT = (Path(__file__).parents[2] / "docs/embedding.md").read_text()
BLOCKS = [(kind, code) for kind, code in re.findall(r"```(python|json)\n(.*?)```", TEXT, re.DOTALL)]


def test_the_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bundle(tmp_path / "model.bundle", {"main": BY_NAME["matmul"]}, ["onnxruntime"])
    graphs = {"image": networks.IMAGE, "text": BY_NAME["gather"]}
    write_bundle(tmp_path / "towers.bundle", graphs, ["onnxruntime"], chain=TOWERS)
    monkeypatch.chdir(tmp_path)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        names: dict[str, object] = {}
        for kind, code in BLOCKS:
            if kind == "python":
                exec(compile(code, "docs/embedding.md", "exec"), names)
    lines = said.getvalue().splitlines()
    assert lines[0] == "onnxruntime-cpu fp32 ['float32[batch=1..4, 2]']"
    assert lines[1:4] == ["[[5. 7. 9.]]"] * 3
    assert lines[-3:] == ["{'read': (1, 3, 2), 'seen': (2, 2)}", "0", "onnxruntime-cpu None"]


def test_the_chains() -> None:
    towers, step = (json.loads(code) for kind, code in BLOCKS if kind == "json")
    graphs: dict[str, GraphEntry] = {
        "image": entry(networks.IMAGE), "text": entry(BY_NAME["gather"]), "encoder": entry(networks.ENCODER),
        "decoder": entry(networks.CACHED)}
    assert towers == TOWERS
    parse_chain(towers, graphs, "docs")
    record = {"inputs": ["x"], "steps": [{"graph": "encoder", "inputs": {"x": "x"}}, step],
              "outputs": {"caption": "decoder.tokens"}}
    assert [found.name for found in parse_chain(record, graphs, "docs").steps] == ["encoder", "decoder"]
