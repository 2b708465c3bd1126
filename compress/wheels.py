"""Wheels fetched by pip, each checked against its SHA-256: too large, or of too strange a platform, to depend on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from compress.errors import CompressError

_TIMEOUT_S = 600


def fetch_wheels(wheels: Mapping[str, Sequence[str]], into: Path, *, options: Sequence[str] = ()) -> None:
    """Fetch ``wheels`` (``name==version`` -> the SHA-256 of each file that may come) into the new folder ``into``.

    Args:
        wheels: dependencies are not followed, so all that is wanted is named.
        into: its parent exists.
        options: more for ``pip download``: another platform, another Python.

    Raises:
        CompressError: if pip cannot fetch them or a file has another hash; the message is the reason alone.
    """
    into.mkdir()
    requirements = into / "requirements.txt"
    requirements.write_text("".join(
        " ".join([package, *(f"--hash=sha256:{digest}" for digest in digests)]) + "\n"
        for package, digests in wheels.items()
    ))
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes",
               "--disable-pip-version-check", "--quiet", "--retries=1", "--timeout=30", *options,
               "--dest", str(into), "--requirement", str(requirements)]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise CompressError(f"fetching its wheels took more than {_TIMEOUT_S} s") from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line and not line.startswith("WARNING")]
        raise CompressError(f"pip could not fetch its wheels ({' '.join(lines[-1:]) or 'it said nothing'})")
