"""Installing on a device: complete or not at all, whatever fails and whenever it is killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import runtimes
from compress.delta import make_delta
from compress.signing import new_key, sign
from runtimes import install as install_module
from runtimes.bundle import MANIFEST, SIGNATURE, read_bundle
from runtimes.errors import RuntimesError
from runtimes.hashing import file_digest, tree_digest
from runtimes.install import current, install, main, rollback

REPOSITORY = Path(runtimes.__file__).parents[1]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture(scope="session")
def step(made_bundle: Path, next_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("step") / "u.delta"
    make_delta(made_bundle, next_bundle, path)
    return path


def digest_of(bundle: Path) -> str:
    return file_digest(bundle / MANIFEST)


def answer(root: Path) -> float:
    """What the installed version says of (1, 1): 5 in the first version, 10 in the next."""
    with runtimes.load(current(root), "onnxruntime", threads=1) as session:
        return float(session.run({"x": np.ones((1, 2), np.float32)})["y"][0, 0])


def names(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.glob("*/*"))


def test_a_bundle_then_a_delta_then_back(made_bundle: Path, next_bundle: Path, step: Path, root: Path) -> None:
    first, second = digest_of(made_bundle), digest_of(next_bundle)
    assert install(made_bundle, root) == root / "versions" / first == current(root)
    assert tree_digest(current(root)) == tree_digest(made_bundle)
    assert answer(root) == 5
    assert install(step, root) == root / "versions" / second == current(root)
    assert tree_digest(current(root)) == tree_digest(next_bundle)
    assert answer(root) == 10
    assert names(root) == sorted(f"versions/{digest}" for digest in (first, second))
    assert json.loads((root / "current").read_text()) == {
        "format": "compress.installed", "version": 1, "current": second, "previous": first}  # fmt: skip
    assert rollback(root) == root / "versions" / first == current(root)
    assert answer(root) == 5
    with pytest.raises(RuntimesError, match="has no version before"):
        rollback(root)
    install(made_bundle, root)      # the version left behind goes with the next installation
    assert names(root) == [f"versions/{first}"]


def test_only_two_versions_are_kept(made_bundle: Path, next_bundle: Path, tmp_path: Path, root: Path) -> None:
    third = Path(shutil.copytree(made_bundle, tmp_path / "third"))
    record = json.loads((third / MANIFEST).read_text())
    (third / MANIFEST).write_text(json.dumps({**record, "name": "third"}))
    for bundle in (made_bundle, next_bundle, third):
        install(bundle, root)
    assert names(root) == sorted(f"versions/{digest_of(bundle)}" for bundle in (next_bundle, third))
    install(next_bundle, root)      # back to one that is there
    assert (answer(root), rollback(root).name) == (10, digest_of(third))


def test_nothing_is_installed(root: Path, tmp_path: Path, step: Path) -> None:
    for action in (current, rollback):
        with pytest.raises(RuntimesError, match="nothing is installed in"):
            action(root)
    with pytest.raises(RuntimesError, match="none is not there: name a bundle's folder, or the file of a delta"):
        install(tmp_path / "none", root)
    assert not root.exists()
    with pytest.raises(RuntimesError, match=r"has no version that the delta .*u\.delta could start from"):
        install(step, root)
    with pytest.raises(RuntimesError, match="nothing is installed"):
        current(root)


def test_a_delta_for_another_version(next_bundle: Path, step: Path, root: Path) -> None:
    install(next_bundle, root)
    with pytest.raises(RuntimesError, match="take the delta from this version"):
        install(step, root)
    assert answer(root) == 10


def wrong_answers(bundle: Path, into: Path) -> Path:
    """A whole and complete bundle whose engine does not answer as its golden feed says."""
    shutil.copytree(bundle, into)
    shutil.copy(into / "golden/feed.npz", into / "golden/other.npz")
    from runtimes.arrays import write_arrays

    write_arrays(into / "golden/expected.npz", {"y": np.zeros((1, 3), np.float32)})
    (into / "golden/other.npz").unlink()
    record = json.loads((into / MANIFEST).read_text())
    file = into / "golden/expected.npz"
    record["files"]["golden/expected.npz"] = {"sha256": file_digest(file), "size": file.stat().st_size}
    (into / MANIFEST).write_text(json.dumps(record))
    return into


def test_the_old_version_stays_when_the_self_test_fails(
    made_bundle: Path, next_bundle: Path, tmp_path: Path, root: Path
) -> None:
    bad = wrong_answers(next_bundle, tmp_path / "bad")
    with pytest.raises(RuntimesError, match=r"failed its self-test, nothing is installed: self-test of .* in bundle"):
        install(bad, root)
    install(made_bundle, root)
    make_delta(made_bundle, bad, tmp_path / "bad.delta")
    for update in (bad, tmp_path / "bad.delta"):
        before = (root / "current").read_bytes()
        with pytest.raises(RuntimesError, match=rf"failed its self-test, version {digest_of(made_bundle)[:12]}… stays"):
            install(update, root)
        assert (root / "current").read_bytes() == before
        assert names(root) == [f"versions/{digest_of(made_bundle)}"]
    assert answer(root) == 5
    with pytest.raises(RuntimesError, match="has no engine for target 'rtx'"):
        install(next_bundle, root, target="rtx")
    install(bad, root, self_test=False)     # asked for
    assert answer(root) == 10


def test_signed_versions(made_bundle: Path, next_bundle: Path, step: Path, tmp_path: Path, root: Path) -> None:
    public = new_key(tmp_path / "a.key")
    signed = Path(shutil.copytree(made_bundle, tmp_path / "signed"))
    sign(signed, tmp_path / "a.key")
    with pytest.raises(RuntimesError, match=r"has no manifest\.sig, and only signed"):
        install(made_bundle, root, key=public)
    assert not (root / "current").exists()
    install(made_bundle, root)
    install(signed, root, key=public)       # the same manifest, now with a signature
    assert read_bundle(current(root), key=public).digest == digest_of(made_bundle)
    with pytest.raises(RuntimesError, match=r"has no manifest\.sig, and only signed"):
        install(step, root, key=public)
    other = Path(shutil.copytree(next_bundle, tmp_path / "other"))
    new_key(tmp_path / "b.key")
    sign(other, tmp_path / "b.key")
    make_delta(signed, other, tmp_path / "other.delta")
    with pytest.raises(RuntimesError, match="this device trusts"):
        install(tmp_path / "other.delta", root, key=public)
    install(tmp_path / "other.delta", root)
    (root / "versions" / digest_of(made_bundle) / SIGNATURE).unlink()
    with pytest.raises(RuntimesError, match=r"has no manifest\.sig, and only signed"):
        rollback(root, key=public)
    assert current(root).name == digest_of(other)


def test_a_damaged_version_is_not_rolled_back_to(made_bundle: Path, next_bundle: Path, root: Path) -> None:
    install(made_bundle, root)
    install(next_bundle, root)
    (root / "versions" / digest_of(made_bundle) / "golden/feed.npz").write_bytes(b"x")
    with pytest.raises(RuntimesError, match=r"feed\.npz is not the file"):
        rollback(root)
    assert answer(root) == 10
    install(made_bundle, root)              # what is damaged is replaced
    assert answer(root) == 5
    assert tree_digest(current(root)) == tree_digest(made_bundle)


@pytest.mark.parametrize(("pointer", "message"), [
    (b"{", "is not JSON .* installing a whole bundle replaces it"),
    (b'{"format": "compress.installed", "version": 2}', "has format version 2"),
    (b'{"format": "compress.installed", "version": 1, "current": "../../etc", "previous": null}', "no digest"),
    (b'{"format": "compress.installed", "version": 1, "current": 5}', "must be a string"),
    (json.dumps({"format": "compress.installed", "version": 1, "current": "0" * 64}).encode(), "is gone, and"),
])
def test_a_damaged_pointer(pointer: bytes, message: str, made_bundle: Path, step: Path, root: Path) -> None:
    install(made_bundle, root)
    (root / "current").write_bytes(pointer)
    with pytest.raises(RuntimesError, match=message):
        current(root)
    with pytest.raises(RuntimesError, match=f"{message}|is not a bundle"):      # a delta has nothing to start from
        install(step, root)
    assert install(made_bundle, root) == current(root)
    assert answer(root) == 5


def test_folders_of_somebody_else_are_left_alone(made_bundle: Path, root: Path) -> None:
    root.mkdir()
    (root / "incoming").mkdir()
    (root / "incoming/thesis.tex").write_text("years of work")
    with pytest.raises(RuntimesError, match="holds something else"):
        install(made_bundle, root)
    (root / "lock").touch()
    (root / "home").mkdir()
    with pytest.raises(RuntimesError, match="holds something else"):
        install(made_bundle, root)
    assert (root / "incoming/thesis.tex").read_text() == "years of work"
    (root.parent / "file").touch()
    with pytest.raises(RuntimesError, match=r"nothing was installed in .*(Not a directory|File exists)"):
        install(made_bundle, root.parent / "file")


def test_two_at_once(made_bundle: Path, root: Path) -> None:
    install(made_bundle, root)
    code = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, root / "lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RuntimesError, match="another process is installing in"):
            install(made_bundle, root)
        holder.communicate("\n")
    install(made_bundle, root)


def test_a_full_disk(made_bundle: Path, next_bundle: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(made_bundle, root)
    with monkeypatch.context() as patched:
        usage = shutil.disk_usage(root)._replace(free=10)
        patched.setattr(install_module.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(RuntimesError, match=r"takes \d+ bytes, 10 are free"):
            install(next_bundle, root)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(install_module.shutil, "copyfile", full)
    with pytest.raises(RuntimesError, match="No space left on device"):
        install(next_bundle, root)
    assert answer(root) == 5


def test_the_command_line(made_bundle: Path, step: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--root", str(root)]
    assert main(["current", *where]) == 2
    assert capsys.readouterr().err.startswith("runtimes.install: nothing is installed")
    for arguments in (["install", str(made_bundle)], ["install", str(step), "--target", "onnxruntime-cpu"],
                      ["rollback"], ["current"], ["install", str(step), "--no-self-test"]):  # fmt: skip
        assert main([*arguments, *where]) == 0
        assert capsys.readouterr().out == f"{current(root)}\n"
    key = ["--key", str(root / "none.pub")]
    assert main(["install", str(made_bundle), *where, *key]) == 2
    assert "none.pub cannot be read" in capsys.readouterr().err


KILLED = """
import os, signal, sys
from runtimes.install import install
import zstandard, onnxruntime
events, last = 0, int(sys.argv[3])
def count(event, arguments):
    global events
    if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.copyfile", "fcntl.flock"):
        events += 1
        if events == last:
            os.kill(os.getpid(), signal.SIGKILL)
def run():
    sys.addaudithook(count)
    install(sys.argv[1], sys.argv[2], target="onnxruntime-cpu")
"""


@pytest.mark.parametrize("form", ["bundle", "delta"])
def test_killed_at_every_kind_of_moment(
    form: str, made_bundle: Path, next_bundle: Path, step: Path, tmp_path: Path
) -> None:
    """Killed before its n-th look at the disk, for n over the whole of an installation, in a fork of one process."""
    install(made_bundle, tmp_path / "clean")
    update = next_bundle if form == "bundle" else step
    forks = KILLED + """
import shutil
def attempt(root, number):
    global last
    child = os.fork()
    if child == 0:
        last = number
        sys.argv[2] = root
        run()
        os._exit(0)
    return os.waitpid(child, 0)[1]
number, step = 1, int(sys.argv[3])
while True:
    root = f"{sys.argv[2]}-{number}"
    shutil.copytree(sys.argv[2], root)
    if attempt(root, number) == 0:
        break
    number += step
print(number)
"""
    done = subprocess.run(
        [sys.executable, "-c", forks, update, tmp_path / "clean", "3"], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 80        # there were that many moments
    roots = sorted(tmp_path.glob("clean-*"), key=lambda path: int(path.name.split("-")[1]))
    seen = []
    for root in roots:
        seen.append(current(root).name)
        read_bundle(current(root))
        install(update if seen[-1] == digest_of(made_bundle) else next_bundle, root, self_test=False)
        assert current(root).name == digest_of(next_bundle)
        assert len(names(root)) == 2
    assert set(seen) == {digest_of(made_bundle), digest_of(next_bundle)}
    assert seen == sorted(seen, key=lambda digest: digest == digest_of(next_bundle))    # it moves once


@pytest.mark.slow
def test_killed_at_random_times(made_bundle: Path, next_bundle: Path, step: Path, root: Path) -> None:
    install(made_bundle, root)
    rng = random.Random(0)
    command = [sys.executable, "-m", "runtimes.install", "install", step, "--root", root]
    for _ in range(12):
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.05, 1.2))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert answer(root) in (5, 10)
        if current(root).name == digest_of(next_bundle):
            rollback(root)
    install(step, root)
    assert answer(root) == 10


def test_importing_it_loads_no_vendor_package() -> None:
    code = ("import sys, runtimes.install; "
            "print([m for m in ('zstandard', 'cryptography', 'onnxruntime', 'openvino') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
