"""Files of the kernel's under /proc and /sys, read without privileges; ``None`` where there is nothing to read."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path("/")
"""Where ``proc`` and ``sys`` are looked for; the tests give a folder that imitates another machine."""


def text(path: Path) -> str | None:
    """The text of a file without its trailing NUL and newline; ``None`` where it is absent, unreadable or empty."""
    try:
        return path.read_text(errors="replace").strip("\0\n\t ") or None
    except OSError:
        return None


def integer(path: Path) -> int | None:
    """The decimal number a file holds; ``None`` where there is none."""
    return to_integer(text(path))


def to_integer(value: str | None, base: int = 10) -> int | None:
    try:
        return None if value is None else int(value, base)
    except ValueError:
        return None


def output_of(*command: str, timeout_s: float = 2) -> str | None:
    """What a vendor's small program prints; ``None`` if there is none, it may not be run, fails, or takes too long."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout_s,
                              check=False, stdin=subprocess.DEVNULL)  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return str(done.stdout) if done.returncode == 0 else None


def glob(root: Path, pattern: str) -> list[Path]:
    """The paths below ``root`` that match, in the order of the numbers in their names (cpu2 before cpu10)."""
    return sorted(root.glob(pattern), key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    parts: list[tuple[int, str]] = []
    for part in path.parts:
        digits = "".join(character for character in part if character.isdecimal())
        parts.append((int(digits) if digits else -1, part))
    return parts
