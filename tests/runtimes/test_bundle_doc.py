"""docs/bundle.md: its tables have the keys the code has, and its example is a manifest whose signature is right."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from runtimes import bundle, delta, engine, install, signing, spec
from runtimes.hashing import bytes_digest

TEXT = (Path(__file__).parents[2] / "docs/bundle.md").read_text(encoding="utf-8")
EXAMPLE = re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)[0].encode()
LINE = re.findall(r"^compress\.signature 1 ed25519 [0-9a-f]{64} [0-9a-f]{128}\n", TEXT, re.MULTILINE)[0].encode()


def keys(title: str) -> set[str]:
    """The keys in the first column of the table with this title."""
    rows = TEXT[TEXT.index(f"| {title} |"):].split("\n\n")[0].splitlines()[2:]
    return {key for row in rows for key in re.findall(r"`([^`]+)`", row.split("|")[1])}


def fields(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


@pytest.mark.parametrize(("title", "expected"), [
    ("key", bundle.KEYS | bundle.SECTIONS),
    ("key of a graph", fields(bundle.GraphEntry)),
    ("key of an engine", fields(bundle.EngineEntry)),
    ("key of a golden feed", fields(bundle.Golden)),
    ("key of a file", fields(bundle.FileEntry)),
    ("key of a spec", fields(spec.TensorSpec)),
    ("key of engine.json", engine.KEYS),
    ("key of the header", delta.HEADER_KEYS),
    ("key of a delta's file", delta.PATCH_KEYS),
    ("key of a chain", {"inputs", "steps", "outputs"}),
])
def test_tables_have_the_keys_of_the_code(title: str, expected: set[str]) -> None:
    assert keys(title) == set(expected)


def test_the_example_is_a_manifest() -> None:
    read = bundle.parse_bundle(EXAMPLE, Path("example"), signature=None, key=None, check_files=False)
    assert read.name == "digits-vqa"
    assert read.processing is not None
    assert read.chain is not None
    assert [tensor.describe() for tensor in read.inputs] == [
        "float32[batch=1..8, 1, 8, 8]", "int64[batch=1..8, length=4..12]"]  # fmt: skip
    record = json.loads(EXAMPLE)
    assert record.keys() == bundle.KEYS | bundle.SECTIONS       # it shows every key
    digest = record["graphs"]["classify"]["engines"]["jetson-orin-nano"]["digest"]
    # the digest of several files, by the words of the page
    folder = "engines/classify/jetson-orin-nano/"
    pairs = sorted([name[len(folder):], entry["sha256"]] for name, entry in record["files"].items() if folder in name)
    assert bytes_digest(json.dumps(pairs, separators=(",", ":")).encode()) == digest
    assert json.dumps(pairs, separators=(",", ":")).startswith('[["engine.json","32cc')


def test_the_example_is_signed() -> None:
    public, signature = (bytes.fromhex(word.decode()) for word in LINE.split()[3:])
    assert len(signing.MESSAGE_PREFIX) == 25
    Ed25519PublicKey.from_public_bytes(public).verify(signature, b"compress.bundle manifest\0" + EXAMPLE)
    assert signing.check_signature(LINE, EXAMPLE, public, "doc") == public
    assert public.hex().startswith("d75a980182b10ab7")          # RFC 8032, section 7.1, test 1


def test_the_numbers_it_names() -> None:
    for words, value in (
        ("`version` | `2` |", bundle.VERSION == 2), ("`version` | `1` |", engine.VERSION == delta.VERSION == 1),
        ("at most 16 MiB", bundle.LARGEST_MANIFEST == 16 << 20), ("at most 8 MiB", delta.LARGEST_HEADER == 8 << 20),
        ("blocks of 4 MiB", delta.BLOCK == 4 << 20), ("shorter than 8 bytes", delta.SMALLEST_PREFIX == 8),
        ('"compress.installed", "version": 1', (install.FORMAT, install.VERSION) == ("compress.installed", 1)),
        ("`compress.delta`, a zero byte, and the version, 1", delta.MAGIC == b"compress.delta\0\1"),
    ):  # fmt: skip
        assert words in TEXT
        assert value, words


def test_its_commands_exist() -> None:
    from compress.commands.bundle import bundle_

    assert set(re.findall(r"^compress bundle (\w+)", TEXT, re.MULTILINE)) == set(bundle_.commands)
