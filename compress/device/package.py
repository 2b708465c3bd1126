"""The ``runtimes`` package as it is sent to a device: a zip with the same bytes every time, and its files' digest."""

from __future__ import annotations

import functools
import io
import zipfile
from pathlib import Path

import runtimes
from compress.device.bootstrap import tree_digest


@functools.lru_cache(maxsize=1)
def package() -> tuple[str, bytes]:
    """The digest of the package's files as :func:`compress.device.bootstrap.tree_digest` computes it, and the zip."""
    import tempfile

    root = Path(runtimes.__file__).parent
    files = {path.relative_to(root.parent).as_posix(): path.read_bytes() for path in sorted(root.rglob("*"))
             if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")}
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(data).extractall(folder)
        return tree_digest(folder), data.getvalue()
