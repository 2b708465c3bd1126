"""Ed25519 against RFC 8032's vectors and ``cryptography``; signed bundles, and what must not pass for one."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed448
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

import runtimes
from compress.signing import new_key, sign
from runtimes import backends
from runtimes.bundle import MANIFEST, SIGNATURE, read_bundle
from runtimes.errors import RuntimesError
from runtimes.signing import MESSAGE_PREFIX, check_signature, read_key, verify, write_key, write_signature

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493

RFC8032 = [  # section 7.1: public key, message, signature
    ("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
     "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
     "d25bf5f0595bbe24655141438e7a100b"),
    ("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
     "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
     "387b2eaeb4302aeeb00d291612bb0c00"),
    ("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025", "af82",
     "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659"
     "4a7c15e9716ed28dc027beceea1ec40a"),
    ("ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
     "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
     "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
     "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e030"
     "3dca179c138ac17ad9bef1177331a704"),
]  # fmt: skip

# The encodings of the points of order 1, 2, 4 and 8, in canonical form and not (Chalkias et al. 2020, table 1).
SMALL_ORDER = [
    (1).to_bytes(32, "little"), (1 | 1 << 255).to_bytes(32, "little"), (P + 1).to_bytes(32, "little"),
    (P - 1).to_bytes(32, "little"), (P - 1 | 1 << 255).to_bytes(32, "little"),
    bytes(32), (1 << 255).to_bytes(32, "little"), P.to_bytes(32, "little"), (P | 1 << 255).to_bytes(32, "little"),
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85"),
    bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
    bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa"),
]  # fmt: skip


def reference(public: bytes, message: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def private(seed: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(random.Random(seed).randbytes(32))


@pytest.mark.parametrize(("public", "message", "signature"), RFC8032)
def test_rfc_8032(public: str, message: str, signature: str) -> None:
    key, text, signed = bytes.fromhex(public), bytes.fromhex(message), bytes.fromhex(signature)
    assert verify(key, text, signed)
    assert not verify(key, text + b"\0", signed)


def test_it_agrees_with_cryptography_on_random_and_mutated_input() -> None:
    rng = random.Random(8032)
    accepted = 0
    for number in range(1200):
        key = private(number)
        parts = [key.public_key().public_bytes_raw(), rng.randbytes(rng.randrange(70))]
        parts.append(key.sign(parts[1]))
        if number % 4:
            place = number % 4 - 1
            changed = bytearray(parts[place] or b"\0")
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            parts[place] = bytes(changed)
        assert verify(*parts) == reference(*parts), parts
        accepted += verify(*parts)
    assert accepted == 300


def test_signatures_that_only_a_lenient_verifier_takes() -> None:
    key, message = private(1), b"message"
    public, signature = key.public_key().public_bytes_raw(), key.sign(message)
    scalar = int.from_bytes(signature[32:], "little")
    assert verify(public, message, signature)
    for wrong in (scalar + L, scalar + 2 * L, L - scalar, 0, L, 2**256 - 1):
        forged = signature[:32] + wrong.to_bytes(32, "little")
        assert not verify(public, message, forged)
        assert not reference(public, message, forged)
    for forged in (b"", signature[:63], signature + b"\0", signature[32:] + signature[:32], bytes(64), b"\xff" * 64):
        assert not verify(public, message, forged)
        assert not reference(public, message, forged)
    for first in SMALL_ORDER:  # R of small order, and R not canonical
        assert not verify(public, message, first + signature[32:])
    for length in (0, 31, 33):
        assert not verify(public.ljust(length, b"\0")[:length], message, signature)


@pytest.mark.parametrize("public", SMALL_ORDER)
def test_a_key_with_which_anything_verifies(public: bytes) -> None:
    """With such a key the equation holds for R of small order and S = 0, whatever the message."""
    forged = [first + bytes(32) for first in SMALL_ORDER]
    assert not any(verify(public, message, signature) for signature in forged for message in (b"a", b"b", b"c"))
    with pytest.raises(RuntimesError, match="the key is not an Ed25519 public key"):
        read_key(public)


def test_a_number_that_is_no_point() -> None:
    refused = 0
    for y in range(40):
        public = y.to_bytes(32, "little")
        known = pow((y * y - 1) * pow(-121665 * pow(121666, -1, P) * y * y + 1, -1, P), (P - 1) // 2, P)
        if known == P - 1:  # Euler's criterion: x² has no root
            refused += 1
            with pytest.raises(RuntimesError, match="not an Ed25519 public key"):
                read_key(public)
    assert refused > 10


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "release.key"
    path.write_bytes(private(7).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    path.with_suffix(".pub").write_bytes(write_key(private(7).public_key().public_bytes_raw()))
    return path


@pytest.fixture
def signed(bundle: Path, key_file: Path) -> Path:
    sign(bundle, key_file)
    return bundle


@pytest.fixture
def no_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """No engine's bytes may reach a backend."""
    monkeypatch.setattr(backends, "read_files", lambda *_: pytest.fail("an engine was read"))
    monkeypatch.setattr(backends, "import_backend", lambda *_: pytest.fail("a backend was imported"))


def test_public_keys_in_files(key_file: Path, tmp_path: Path) -> None:
    public = private(7).public_key()
    assert read_key(key_file.with_suffix(".pub")) == public.public_bytes_raw()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert key_file.with_suffix(".pub").read_bytes() == pem
    assert read_key(public.public_bytes_raw()) == public.public_bytes_raw()
    with pytest.raises(RuntimesError, match=r"release\.key is not a PEM file with one public key: this is a private"):
        read_key(key_file)
    with pytest.raises(RuntimesError, match=r"none\.pub cannot be read \(No such file"):
        read_key(tmp_path / "none.pub")
    with pytest.raises(RuntimesError, match="the key is not an Ed25519 public key"):
        read_key(b"short")
    other = ed448.Ed448PrivateKey.generate().public_key()
    file = tmp_path / "k.pub"
    for text, message in (
        (other.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
         "another kind: only Ed25519"),
        (b"", "not a PEM file"),
        (pem + pem, "not a PEM file"),
        (pem.replace(b"MCow", b"MCo"), "not a PEM file with one public key"),
        (pem.replace(b"MCow", b"M=Cow"), r"not a PEM file with one public key|another kind"),
        (write_key(bytes(32)), r"k\.pub is not an Ed25519 public key"),
    ):
        file.write_bytes(text)
        with pytest.raises(RuntimesError, match=message):
            read_key(str(file))


def test_a_signed_bundle(signed: Path, key_file: Path) -> None:
    public = private(7).public_key().public_bytes_raw()
    assert read_bundle(signed).signed_by == public
    assert read_bundle(signed, key=public).signed_by == public
    with runtimes.load(signed, "onnxruntime", threads=1, key=key_file.with_suffix(".pub"), self_test=True) as session:
        assert session.target == "onnxruntime-cpu"
    line = (signed / SIGNATURE).read_bytes()
    signature = bytes.fromhex(line.split()[-1].decode())
    assert reference(public, MESSAGE_PREFIX + (signed / MANIFEST).read_bytes(), signature)
    assert line == write_signature(public, signature)


def test_an_unsigned_bundle_where_a_key_is_given(made_bundle: Path, key_file: Path, no_backend: None) -> None:
    assert read_bundle(made_bundle).signed_by is None
    public = key_file.with_suffix(".pub")
    with pytest.raises(RuntimesError, match=r"has no manifest\.sig, and only signed bundles are trusted"):
        runtimes.load(made_bundle, key=public)
    with pytest.raises(RuntimesError, match="was read without this key"):
        runtimes.load(read_bundle(made_bundle), key=public)


def test_a_signature_of_another_key(signed: Path, no_backend: None) -> None:
    with pytest.raises(RuntimesError, match=r"is a signature of the key .* this device trusts"):
        runtimes.load(signed, key=private(8).public_key().public_bytes_raw())
    with pytest.raises(RuntimesError, match="was read without this key"):
        runtimes.load(read_bundle(signed), key=private(8).public_key().public_bytes_raw())


def test_a_manifest_signed_by_somebody_else_in_our_name(signed: Path, key_file: Path, no_backend: None) -> None:
    public = private(7).public_key().public_bytes_raw()
    forged = private(8).sign(MESSAGE_PREFIX + (signed / MANIFEST).read_bytes())
    (signed / SIGNATURE).write_bytes(write_signature(public, forged))
    for key in (None, public):
        with pytest.raises(RuntimesError, match="is not a signature of this manifest: the bundle was changed"):
            runtimes.load(signed, key=key)


def test_a_signature_of_the_bare_manifest_does_not_count(signed: Path) -> None:
    """What else this key has signed can never pass for a manifest's signature."""
    manifest = (signed / MANIFEST).read_bytes()
    bare = write_signature(private(7).public_key().public_bytes_raw(), private(7).sign(manifest))
    with pytest.raises(RuntimesError, match="not a signature of this manifest"):
        check_signature(bare, manifest, None, "s")


def test_a_changed_manifest_is_refused_before_it_is_parsed(
    signed: Path, key_file: Path, monkeypatch: pytest.MonkeyPatch, no_backend: None
) -> None:
    manifest = signed / MANIFEST
    manifest.write_bytes(manifest.read_bytes().replace(b'"tiny"', b'"tinz"'))
    monkeypatch.setattr("runtimes.bundle.parse_record", lambda *_, **__: pytest.fail("it was parsed"))
    with pytest.raises(RuntimesError, match=r"manifest\.sig is not a signature of this manifest"):
        runtimes.load(signed, key=key_file.with_suffix(".pub"))


def test_every_byte_of_the_signature_counts(signed: Path) -> None:
    manifest, data = (signed / MANIFEST).read_bytes(), (signed / SIGNATURE).read_bytes()
    rng = random.Random(3)
    for at in range(len(data)):
        for byte in {data[at] ^ 1, data[at] ^ 0x20, rng.randrange(256), 0, 32, 10} - {data[at]}:
            with pytest.raises(RuntimesError, match="s is "):
                check_signature(data[:at] + bytes([byte]) + data[at + 1:], manifest, None, "s")
        with pytest.raises(RuntimesError, match="s is not a signature file"):
            check_signature(data[:at] + data[at + 1:], manifest, None, "s")
    for changed in (data + b"\n", b"\n" + data, data[:-1], b"", data.upper(), data.replace(b" 1 ", b" 2 ")):
        with pytest.raises(RuntimesError, match="s is not a signature file of version 1"):
            check_signature(changed, manifest, None, "s")


@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "large"])
def test_a_signature_that_is_no_plain_file(kind: str, signed: Path, tmp_path: Path) -> None:
    path = signed / SIGNATURE
    shutil.move(path, tmp_path / "elsewhere")
    if kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        with path.open("wb") as file:
            file.truncate(17 << 20)
    message = {"link": "is a link", "large": "is larger than 16 MiB"}.get(kind, "is not a regular file")
    with pytest.raises(RuntimesError, match=rf"manifest\.sig {message}"):
        read_bundle(signed)


def test_a_signature_elsewhere_is_an_unlisted_file(signed: Path) -> None:
    shutil.copy(signed / SIGNATURE, signed / "golden" / SIGNATURE)
    with pytest.raises(RuntimesError, match=r"golden/manifest\.sig is not listed"):
        read_bundle(signed)


def test_openssl_makes_and_reads_these_keys(tmp_path: Path, bundle: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    private_file, public_file = tmp_path / "a.key", tmp_path / "a.pub"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private_file], check=True)
    subprocess.run(["openssl", "pkey", "-in", private_file, "-pubout", "-out", public_file], check=True)
    sign(bundle, private_file)
    assert read_bundle(bundle, key=public_file).signed_by == read_key(public_file)
    made = new_key(tmp_path / "b.key")
    shown = subprocess.run(["openssl", "pkey", "-in", tmp_path / "b.key", "-pubout"], check=True, capture_output=True)
    assert shown.stdout == made.read_bytes()
