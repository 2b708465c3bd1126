"""Keys and signatures on the host; what the device makes of them is in tests/runtimes/test_signing.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed448
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from compress.errors import CompressError
from compress.signing import new_key, sign
from runtimes.bundle import MANIFEST, SIGNATURE, read_bundle
from runtimes.errors import RuntimesError
from runtimes.hashing import bytes_digest
from runtimes.signing import read_key
from tests.runtimes.conftest import bundle, made_bundle  # noqa: F401

PEM = serialization.Encoding.PEM
PKCS8 = serialization.PrivateFormat.PKCS8


def test_a_new_key_signs_and_its_public_half_verifies(bundle: Path, tmp_path: Path) -> None:  # noqa: F811
    public = new_key(tmp_path / "release.key")
    assert public == tmp_path / "release.key.pub"
    assert (tmp_path / "release.key").stat().st_mode & 0o777 == 0o600
    before = bytes_digest((bundle / MANIFEST).read_bytes())
    made = sign(bundle, tmp_path / "release.key")
    assert (made.digest, made.signed_by) == (before, read_key(public))
    again = (bundle / SIGNATURE).read_bytes()
    sign(bundle, tmp_path / "release.key")
    assert (bundle / SIGNATURE).read_bytes() == again  # Ed25519 signatures have no chance in them
    other = new_key(tmp_path / "other.key")
    assert sign(bundle, tmp_path / "other.key").signed_by == read_key(other)
    with pytest.raises(RuntimesError, match="this device trusts"):
        read_bundle(bundle, key=public)


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    new_key(tmp_path / "a.key")
    for left in ("a.key", "a.key.pub"):
        with pytest.raises(CompressError, match=rf"{left} exists: a key that has signed something must not be lost"):
            new_key(tmp_path / "a.key")
        (tmp_path / "a.key").unlink(missing_ok=True)
    with pytest.raises(CompressError, match=r"cannot write .*none/a\.key: No such file"):
        new_key(tmp_path / "none" / "a.key")


def test_what_is_damaged_is_not_signed(bundle: Path, tmp_path: Path) -> None:  # noqa: F811
    new_key(tmp_path / "a.key")
    (bundle / "golden/feed.npz").write_bytes(b"changed")
    with pytest.raises(RuntimesError, match=r"feed\.npz is not the file"):
        sign(bundle, tmp_path / "a.key")
    assert not (bundle / SIGNATURE).exists()


def test_private_keys_that_are_refused(made_bundle: Path, tmp_path: Path) -> None:  # noqa: F811
    file = tmp_path / "x.key"
    encrypted = Ed25519PrivateKey.generate().private_bytes(PEM, PKCS8, serialization.BestAvailableEncryption(b"secret"))
    other = ed448.Ed448PrivateKey.generate().private_bytes(PEM, PKCS8, serialization.NoEncryption())
    for data, message in (
        (b"hello", r"x\.key is not a private key in a PEM file"),
        (encrypted, r"x\.key is encrypted: give it decrypted"),
        (other, r"x\.key is a private key of another kind: Ed25519 is used here"),
    ):
        file.write_bytes(data)
        with pytest.raises(CompressError, match=message):
            sign(made_bundle, file)
    with pytest.raises(CompressError, match=r"none\.key cannot be read \(No such file"):
        sign(made_bundle, tmp_path / "none.key")


def test_without_cryptography(monkeypatch: pytest.MonkeyPatch, made_bundle: Path, tmp_path: Path) -> None:  # noqa: F811
    monkeypatch.setitem(sys.modules, "cryptography", None)
    for action in (lambda: new_key(tmp_path / "a.key"), lambda: sign(made_bundle, tmp_path / "a.key")):
        with pytest.raises(CompressError, match=r'pip install "compress-edge\[sign\]"'):
            action()
