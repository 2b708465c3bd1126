"""Sent to a device as text, and run there by whatever Python 3 it has: brings ``runtimes``, then serves the host.

``python3 -c ONE_LINE`` reads this file from stdin and calls :func:`start`. No f-string and nothing newer than
Python 3.4 may stand here, so that an old Python says how old it is, not that it found a syntax error.
"""

import hashlib
import importlib.util
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import zipfile

ONE_LINE = (
    "import sys;sys.path=[p for p in sys.path if p];"   # the folder it starts in holds no module of ours
    "import signal;signal.alarm(30);import json;"       # a host that is gone before it said anything is not waited for
    'exec(json.loads(open(0,"rb",0,closefd=False).readline().decode()))'    # no quote that a shell could see
)
GREETING = b"\n=compress= "     # what comes before it was printed by the device's shell
OLDEST = (3, 10)
WAIT_S = 30     # for the next bytes of the package; from then on the two sides exchange beats


def start(digest: str, size: int, beat_s: float, silence_s: float) -> None:
    """Say hello on stdout, take the package as a zip of ``size`` bytes if its files' digest is not here, and serve."""
    folder = os.path.join(cache_folder(), "runtimes", digest)
    numpy = sys.version_info >= OLDEST and importlib.util.find_spec("numpy") is not None
    have = tree_digest(folder) == digest
    hello = {"python": list(sys.version_info[:3]), "executable": sys.executable, "numpy": numpy, "have": have}
    sys.stdout.buffer.write(GREETING + json.dumps(hello).encode() + b"\n")
    sys.stdout.buffer.flush()
    if not numpy:
        return
    if not have:
        data = b""
        while len(data) < size:
            signal.alarm(WAIT_S)
            block = os.read(0, size - len(data))
            if not block:
                return
            data += block
    signal.alarm(0)
    try:
        if not have:
            unpack(data, folder, digest)
        os.utime(folder)    # those used longest ago are removed first
        forget_compiled(folder)
    except OSError as error:
        raise SystemExit("its cache folder cannot be used (" + str(error) + "): make it writable, with some space "
                         "left, or set COMPRESS_CACHE there to a folder that is") from error
    sys.path.insert(0, folder)
    from runtimes.serve import serve

    serve(beat_s, silence_s)


def cache_folder() -> str:
    """The same as runtimes.filestore.cache_folder, which is not here yet; an absolute path."""
    own, shared = os.environ.get("COMPRESS_CACHE"), os.environ.get("XDG_CACHE_HOME") or ""
    if own:
        return os.path.abspath(os.path.expanduser(own))
    home = os.path.abspath(os.path.expanduser("~"))
    return os.path.join(shared if os.path.isabs(shared) else os.path.join(home, ".cache"), "compress")


def forget_compiled(folder: str) -> None:
    """Python compiles again: what it keeps is checked by its time alone, and the digest does not cover it."""
    for place, folders, _ in os.walk(folder):
        if "__pycache__" in folders:
            folders.remove("__pycache__")
            shutil.rmtree(os.path.join(place, "__pycache__"), ignore_errors=True)


def unpack(data: bytes, folder: str, digest: str) -> None:
    """``folder`` with the files of the zip ``data``: all of them and right, or none."""
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    making = tempfile.mkdtemp(dir=os.path.dirname(folder))
    try:
        zipfile.ZipFile(io.BytesIO(data)).extractall(making)
        if tree_digest(making) != digest:
            raise SystemExit("the runtimes package did not arrive whole: try again")
        try:
            os.rename(making, folder)
        except OSError:
            if tree_digest(folder) != digest:       # else another session was first, and may be importing from it
                os.rename(folder, making + "-damaged")
                shutil.rmtree(making + "-damaged", ignore_errors=True)
                os.rename(making, folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def tree_digest(folder: str) -> str:
    """SHA-256 over the path and SHA-256 of every file of the package, without what Python compiled."""
    lines = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in files:
            path = os.path.join(place, name)
            with open(path, "rb") as file:
                content = hashlib.sha256(file.read()).hexdigest()
            lines.append(os.path.relpath(path, folder).replace(os.sep, "/") + " " + content + "\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
