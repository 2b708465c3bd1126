"""A folder that imitates another machine's /proc and /sys, for the tests of what reads them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path


def write_files(root: Path, files: Mapping[str, object]) -> Path:
    """Write ``path -> content`` below ``root``; a file ends in a newline, as the kernel's do."""
    for path, content in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{content}\n")
    return root


def write_program(path: Path, code: str) -> None:
    """An executable file that runs ``code`` in this Python, with ``sys`` and ``time`` imported."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable}\nimport sys, time\n{code}\n")
    path.chmod(0o755)
