"""Fetching pinned wheels: the real pip over a folder, without a network."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from compress.errors import CompressError
from compress.wheels import fetch_wheels


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A folder with the wheel ``tiny-1.0``."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny.py", "x = 1\n")
        wheel.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        wheel.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tiny-1.0.dist-info/RECORD", "")
    return folder


def _options(shelf: Path) -> list[str]:
    return ["--no-index", f"--find-links={shelf}"]


def test_a_wheel_with_the_pinned_hash_comes(shelf: Path, tmp_path: Path) -> None:
    (file,) = shelf.iterdir()
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    fetch_wheels({"tiny==1.0": ["0" * 64, digest]}, tmp_path / "into", options=_options(shelf))
    assert (tmp_path / "into" / file.name).read_bytes() == file.read_bytes()


def test_another_hash_is_refused(shelf: Path, tmp_path: Path) -> None:
    with pytest.raises(CompressError, match=r"pip could not fetch its wheels \(.*Got "):
        fetch_wheels({"tiny==1.0": ["0" * 64]}, tmp_path / "into", options=_options(shelf))
    assert not list((tmp_path / "into").glob("*.whl"))


def test_no_such_wheel(shelf: Path, tmp_path: Path) -> None:
    with pytest.raises(CompressError, match=r"No matching distribution found for tiny==2\.0"):
        fetch_wheels({"tiny==2.0": ["0" * 64]}, tmp_path / "into", options=_options(shelf))


def test_a_network_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any, timeout: float, **__: Any) -> None:
        raise subprocess.TimeoutExpired("pip", timeout)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(CompressError, match="fetching its wheels took more than 600 s"):
        fetch_wheels({"tiny==1.0": ["0" * 64]}, tmp_path / "into")
