"""Sign a bundle's manifest with Ed25519, and make the key pair: done where the private key is, never on a device.

Verifying is :mod:`runtimes.signing`. Needs ``cryptography`` (the extra ``[sign]``).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from compress.errors import CompressError
from compress.store import atomic_write
from runtimes.bundle import MANIFEST, SIGNATURE, Bundle, read_bundle
from runtimes.hashing import bytes_digest
from runtimes.signing import MESSAGE_PREFIX, read_key, write_key, write_signature

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def new_key(path: Path) -> Path:
    """Write a new private key to ``path`` (PEM, readable by its owner alone) and its public key beside it, ``.pub``.

    Returns:
        The public key's path.

    Raises:
        CompressError: if either file exists, or the folder does not.
    """
    _check_installed()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    public = path.with_name(path.name + ".pub")
    for file in (path, public):
        if file.exists():
            raise CompressError(f"{file} exists: a key that has signed something must not be lost; name another file")
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file_:
            file_.write(pem)
            file_.flush()
            os.fsync(file_.fileno())
    except OSError as error:
        raise CompressError(f"cannot write {path}: {error.strerror}") from error
    atomic_write(public, write_key(key.public_key().public_bytes_raw()))
    return public


def sign(path: Path, private_key: Path) -> Bundle:
    """Write ``manifest.sig`` into the bundle at ``path``, replacing one that is there; return the bundle, verified.

    Every file is checked first: what is damaged is not signed.

    Raises:
        CompressError: if the private key cannot be read or is of another kind.
        RuntimesError: if the bundle is damaged.
    """
    key = _private_key(private_key)
    public = key.public_key().public_bytes_raw()
    bundle = read_bundle(path)
    manifest = (path / MANIFEST).read_bytes()
    if bytes_digest(manifest) != bundle.digest:
        raise CompressError(f"{path / MANIFEST} was changed while it was being signed: sign it again")
    atomic_write(path / SIGNATURE, write_signature(public, key.sign(MESSAGE_PREFIX + manifest)))
    return read_bundle(path, key=read_key(public))


def _private_key(path: Path) -> Ed25519PrivateKey:
    _check_installed()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        data = path.read_bytes()
    except OSError as error:
        raise CompressError(f"{path} cannot be read ({error.strerror}): name a private key file") from error
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError as error:
        raise CompressError(
            f"{path} is encrypted: give it decrypted, as `openssl pkey -in {path.name}` prints it") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CompressError(
            f"{path} is not a private key in a PEM file: make one with `compress bundle keygen`") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise CompressError(f"{path} is a private key of another kind: Ed25519 is used here")
    return key


def _check_installed() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise CompressError('signing needs cryptography: pip install "compress-edge[sign]"') from error
