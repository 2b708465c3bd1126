"""The detached signature of a manifest, verified with the standard library alone.

``manifest.sig`` is one line, every byte of which counts::

    compress.signature 1 ed25519 <public key, 64 hex digits> <signature, 128 hex digits>\\n

It signs ``MESSAGE_PREFIX`` followed by the exact bytes of ``manifest.json``. The manifest lists the SHA-256 of every
other file, so the signature covers the bundle.

Verifying handles no secret, so plain integers do, in a few milliseconds, and a device needs no further package; there
is this one path, whatever else is installed. It is strict: RFC 8032, section 5.1.7, without the cofactor, refusing a
scalar of at least the group's order, points not in their one canonical form, and keys of small order.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from pathlib import Path
from typing import TypeAlias

from runtimes.errors import RuntimesError

Key: TypeAlias = "bytes | str | Path"
"""A public key: its 32 bytes, or the path of a PEM file with one (``BEGIN PUBLIC KEY``, as OpenSSL writes it)."""

MESSAGE_PREFIX = b"compress.bundle manifest\x00"
LARGEST_KEY_FILE = 1 << 16

_LINE = re.compile(rb"compress\.signature 1 ed25519 ([0-9a-f]{64}) ([0-9a-f]{128})\n")
_PEM = re.compile(rb"\s*-----BEGIN PUBLIC KEY-----\s+([A-Za-z0-9+/=\s]+?)\s*-----END PUBLIC KEY-----\s*")
_DER = bytes.fromhex("302a300506032b6570032100")  # SubjectPublicKeyInfo of Ed25519, RFC 8410; the key's bytes follow

_P = 2**255 - 19
_L = 2**252 + 27742317777372353535851937790883648493  # the order of the base point
_D = -121665 * pow(121666, -1, _P) % _P
_SQRT_MINUS_1 = pow(2, (_P - 1) // 4, _P)

_Point: TypeAlias = "tuple[int, int, int, int]"  # extended coordinates X, Y, Z, T with x = X/Z, y = Y/Z, xy = T/Z
_ZERO: _Point = (0, 1, 1, 0)


def write_signature(public: bytes, signature: bytes) -> bytes:
    """The content of ``manifest.sig``."""
    return b"compress.signature 1 ed25519 %s %s\n" % (public.hex().encode(), signature.hex().encode())


def check_signature(data: bytes, manifest: bytes, key: bytes | None, where: str) -> bytes:
    """The public key whose signature of ``manifest`` is in ``data``, the content of ``manifest.sig``.

    Args:
        data: the file's bytes.
        manifest: the exact bytes of the manifest.
        key: the public key it must be signed with. Without one, whoever changed the bundle may have signed it: the
            answer then says that the file is whole, and no more.
        where: names the signature's file.

    Raises:
        RuntimesError: if ``data`` is no signature, is of another key, or is not of this manifest.
    """
    match = _LINE.fullmatch(data)
    if match is None:
        raise RuntimesError(f"{where} is not a signature file of version 1: it is damaged, copy the bundle again")
    public, signature = (bytes.fromhex(match[group].decode()) for group in (1, 2))
    if key is not None and public != key:
        raise RuntimesError(
            f"{where} is a signature of the key {public.hex()[:16]}…, and this device trusts {key.hex()[:16]}…: "
            "do not use this bundle unless you know who made it"
        )
    if not verify(public, MESSAGE_PREFIX + manifest, signature):
        raise RuntimesError(f"{where} is not a signature of this manifest: the bundle was changed, do not use it")
    return public


def read_key(key: Key) -> bytes:
    """The 32 bytes of a public key.

    Raises:
        RuntimesError: if it is not an Ed25519 public key, or one with which anything would verify.
    """
    if isinstance(key, bytes):
        public, where = key, "the key"
    else:
        where = str(key)
        try:
            with Path(key).open("rb") as file:
                text = file.read(LARGEST_KEY_FILE)
        except OSError as error:
            raise RuntimesError(f"{where} cannot be read ({error.strerror}): name a public key file") from error
        public = _from_pem(text, where)
    if _key_point(public) is None:
        raise RuntimesError(f"{where} is not an Ed25519 public key: make one with `compress bundle keygen`")
    return public


def write_key(public: bytes) -> bytes:
    """A public key as a PEM file."""
    body = binascii.b2a_base64(_DER + public, newline=False)
    return b"-----BEGIN PUBLIC KEY-----\n%s\n-----END PUBLIC KEY-----\n" % body


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether ``signature`` (64 bytes) is the Ed25519 signature of ``message`` by the key ``public`` (32 bytes).

    Source: RFC 8032, section 5.1.7, and the stricter checks of Chalkias et al. 2020, "Taming the many EdDSAs"
    (https://eprint.iacr.org/2020/1244).
    """
    key = _key_point(public)
    encoded, scalar = signature[:32], int.from_bytes(signature[32:], "little")
    if key is None or len(signature) != 64 or scalar >= _L:
        return False
    challenge = int.from_bytes(hashlib.sha512(encoded + public + message).digest(), "little") % _L
    minus_key = (_P - key[0], key[1], 1, _P - key[3])
    # Comparing what R should be, encoded, accepts the canonical encoding of R alone.
    return _encode(_sum_of_products(scalar, _BASE, challenge, minus_key)) == encoded


def _from_pem(text: bytes, where: str) -> bytes:
    match = _PEM.fullmatch(text)
    if match is None:
        hint = ": this is a private key, keep it off the device" if b"PRIVATE KEY" in text else ""
        raise RuntimesError(f"{where} is not a PEM file with one public key{hint}")
    body = b"".join(match[1].split())
    try:
        der = binascii.a2b_base64(body)
    except binascii.Error as error:
        raise RuntimesError(f"{where} is not a PEM file with one public key ({error})") from error
    if not der.startswith(_DER) or len(der) != len(_DER) + 32 or binascii.b2a_base64(der, newline=False) != body:
        raise RuntimesError(f"{where} is a public key of another kind: only Ed25519 is used here")
    return der[len(_DER):]


def _key_point(public: bytes) -> _Point | None:
    """The point of a public key; ``None`` where it is no canonical one, or one of small order (1, 2, 4 or 8)."""
    point = _decode(public)
    if point is None:
        return None
    multiple = point
    for _ in range(3):
        multiple = _double(multiple)
    return point if multiple[0] != 0 else None


def _decode(encoded: bytes) -> _Point | None:
    """The point, or ``None`` where these are not the 32 bytes of its one encoding (RFC 8032, section 5.1.3)."""
    if len(encoded) != 32:
        return None
    number = int.from_bytes(encoded, "little")
    sign, y = number >> 255, number & ((1 << 255) - 1)
    if y >= _P:
        return None
    u, v = (y * y - 1) % _P, (_D * y * y + 1) % _P
    x = u * pow(v, 3, _P) * pow(u * pow(v, 7, _P), (_P - 5) // 8, _P) % _P
    square = v * x * x % _P
    if square == (-u) % _P:
        x = x * _SQRT_MINUS_1 % _P
    elif square != u:
        return None
    if x == 0 and sign:
        return None
    if x & 1 != sign:
        x = _P - x
    return x, y, 1, x * y % _P


def _encode(point: _Point) -> bytes:
    inverse = pow(point[2], -1, _P)
    x, y = point[0] * inverse % _P, point[1] * inverse % _P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def _add(a: _Point, b: _Point) -> _Point:
    """RFC 8032, section 5.1.4; the formula is complete, so that equal and opposite points need no case of their own."""
    s, t = (a[1] - a[0]) * (b[1] - b[0]) % _P, (a[1] + a[0]) * (b[1] + b[0]) % _P
    c, d = 2 * a[3] * b[3] * _D % _P, 2 * a[2] * b[2] % _P
    e, f, g, h = t - s, d - c, d + c, t + s
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _double(a: _Point) -> _Point:
    s, t, c = a[0] * a[0] % _P, a[1] * a[1] % _P, 2 * a[2] * a[2] % _P
    h = s + t
    e, g = h - (a[0] + a[1]) ** 2 % _P, s - t
    f = c + g
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _sum_of_products(a: int, p: _Point, b: int, q: _Point) -> _Point:
    """``a p + b q``, the two doublings shared (Shamir's trick). In variable time: nothing here is secret."""
    table = (_ZERO, p, q, _add(p, q))
    total = _ZERO
    for bit in range(max(a.bit_length(), b.bit_length()) - 1, -1, -1):
        total = _double(total)
        index = (a >> bit & 1) | (b >> bit & 1) << 1
        if index:
            total = _add(total, table[index])
    return total


_base = _decode((4 * pow(5, -1, _P) % _P).to_bytes(32, "little"))
assert _base is not None
_BASE = _base
