"""`compress bundle`: make, check, show, sign and compare bundles, and the updates between them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from compress.commands.shared import EXISTING, common, model_options, read_model, show, written
from compress.progress import Progress

KEY = click.option("--key", type=EXISTING, help="The public key (PEM) it must be signed with.")


@click.group("bundle")
def bundle_() -> None:
    """Make a bundle, check it, sign it, and make the update from one to the next."""


@bundle_.command("create")
@click.argument("model", type=EXISTING)
@click.option(
    "--target", "targets", multiple=True, default=["local"], show_default=True, help="May be given several times."
)
@click.option("--data", type=EXISTING, required=True, help="Real samples, for the golden feed.")
@click.option("--output", "-o", type=EXISTING, help="The bundle's folder; default: MODEL.bundle.")
@click.option("--processing", type=EXISTING, help="A record of raw inputs and answers (JSON), in place of MODEL's own.")
@click.option("--chain", type=EXISTING, help="How MODEL's graphs chain (JSON, docs/embedding.md).")
@model_options
@common
def create(
    model: Path, targets: tuple[str, ...], data: Path, output: Path | None, processing: Path | None, chain: Path | None,
    factory: str | None, trust_pickle: bool, example: Path | None, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Build MODEL's engines and write the bundle that a device app opens."""
    import tempfile

    import compress
    from compress.golden import golden_feeds, read_chain
    from compress.targets import get_target

    loaded = read_model(model, factory, trust_pickle, example)
    path = output or model.with_suffix(".bundle")
    with Progress(quiet=quiet).stage("bundle"), tempfile.TemporaryDirectory(prefix="compress-") as folder:
        rows = [get_target(target) for target in targets]
        golden = golden_feeds(loaded, data)
        engines = {
            name: {row.name: compress.export(loaded, row, Path(folder) / name / row.name, graph=name) for row in rows}
            for name in loaded.graphs
        }
        made = compress.bundle(
            loaded, engines, golden, path, processing=processing, chain=None if chain is None else read_chain(chain)
        )
    names = [row.name for row in rows]
    written(path, {"digest": made.digest, "targets": names}, as_json, f"bundle for {', '.join(names)}")


@bundle_.command("verify")
@click.argument("bundle", type=EXISTING)
@KEY
@click.option("--self-test", is_flag=True, help="Also run the golden feeds on the engines that can run here.")
@common
def verify(bundle: Path, key: Path | None, self_test: bool, quiet: bool, as_json: bool) -> None:
    """Check every file of BUNDLE, and its signature."""
    from compress.bundlefacts import self_tests
    from runtimes.bundle import read_bundle

    read = read_bundle(bundle, key=key)
    tests = self_tests(read) if self_test else None
    signer = None if read.signed_by is None else read.signed_by.hex()
    record = {"digest": read.digest, "files": len(read.files), "signed_by": signer, "key_checked": key is not None,
              "self_tests": tests}  # fmt: skip

    def text() -> str:
        lines = [f"{bundle}: {len(read.files)} files are those of the manifest {read.digest}", signature(record)]
        for test in tests or ():
            result = "passed" if test["passed"] else f"not run: {test['not_run']}"
            lines.append(printable(f"self-test of {test['graph']} for {test['target']}: {result}"))
        return "\n".join(lines)

    show(record, as_json, text)


@bundle_.command("inspect")
@click.argument("bundle", type=EXISTING)
@common
def inspect(bundle: Path, quiet: bool, as_json: bool) -> None:
    """Show what is in BUNDLE: graphs, engines, sizes, specs, golden feeds, processing, signature."""
    from compress.bundlefacts import bundle_facts
    from runtimes.bundle import read_bundle

    facts = bundle_facts(read_bundle(bundle))
    show(facts, as_json, lambda: _facts_text(facts))


@bundle_.command("keygen")
@click.argument("path", type=EXISTING)
@common
def keygen(path: Path, quiet: bool, as_json: bool) -> None:
    """Write a new private key to PATH, for you alone, and the public key that devices need to PATH.pub."""
    from compress.signing import new_key

    public = new_key(path)
    written(path, {"public_key": str(public)}, as_json, f"private key, to be kept safe; {public} goes to the devices")


@bundle_.command("sign")
@click.argument("bundle", type=EXISTING)
@click.option("--key", type=EXISTING, required=True, help="Your private key, as `compress bundle keygen` writes it.")
@common
def sign(bundle: Path, key: Path, quiet: bool, as_json: bool) -> None:
    """Check BUNDLE and sign its manifest, so that devices with your public key can trust it."""
    from compress.signing import sign as sign_bundle

    made = sign_bundle(bundle, key)
    assert made.signed_by is not None
    record = {"digest": made.digest, "signed_by": made.signed_by.hex()}
    written(bundle, record, as_json, f"signed by the key {made.signed_by.hex()}")


@bundle_.command("diff")
@click.argument("old", type=EXISTING)
@click.argument("new", type=EXISTING)
@common
def diff(old: Path, new: Path, quiet: bool, as_json: bool) -> None:
    """Show what changed from the bundle OLD to the bundle NEW."""
    from compress.bundlefacts import bundle_changes
    from runtimes.bundle import read_bundle

    changes = bundle_changes(read_bundle(old), read_bundle(new))
    show(changes, as_json, lambda: _changes_text(changes))


@bundle_.command("delta")
@click.argument("old", type=EXISTING)
@click.argument("new", type=EXISTING)
@click.option("--output", "-o", type=EXISTING, help="The file to write; default: NEW.delta.")
@common
def delta(old: Path, new: Path, output: Path | None, quiet: bool, as_json: bool) -> None:
    """Write the update that turns the bundle OLD into the bundle NEW, its signature included."""
    from compress.delta import make_delta

    path = output or new.with_name(new.name + ".delta")
    with Progress(quiet=quiet).stage("delta"):
        made = make_delta(old, new, path)
    record = {"old": made.old, "new": made.new, "size_bytes": made.size_bytes, "bundle_bytes": made.bundle_bytes,
              "files": dict(made.files)}  # fmt: skip
    share = f"{made.size_bytes / made.bundle_bytes:.1%} of the new bundle's {size(made.bundle_bytes)}"
    written(path, record, as_json, f"{size(made.size_bytes)}, {share}")


@bundle_.command("apply")
@click.argument("old", type=EXISTING)
@click.argument("update", type=EXISTING)
@click.argument("into", type=EXISTING)
@KEY
@common
def apply(old: Path, update: Path, into: Path, key: Path | None, quiet: bool, as_json: bool) -> None:
    """Write into the new folder INTO what the delta UPDATE makes of the bundle OLD."""
    from runtimes.delta import apply_delta

    made = apply_delta(old, update, into, key=key)
    written(into, {"digest": made.digest}, as_json, f"bundle {made.digest}")


def signature(record: dict[str, Any]) -> str:
    """One sentence on the signature; ``record`` has ``signed_by`` and may have ``key_checked``."""
    if record["signed_by"] is None:
        return "not signed"
    known = "the key given" if record.get("key_checked") else "give the public key with --key to trust it"
    return f"signed by {record['signed_by']} ({known})"


def size(count: int) -> str:
    """Bytes in a unit a person reads."""
    if count < 1000:
        return f"{count} bytes"
    power, unit = next((p, u) for p, u in ((9, "GB"), (6, "MB"), (3, "kB")) if count >= 10**p)
    return f"{count / 10**power:.1f} {unit}"


def printable(text: str) -> str:
    """``text`` with what a terminal would obey written out: the names in a bundle are its maker's."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _facts_text(facts: dict[str, Any]) -> str:
    lines = [f"{facts['name']}  {facts['digest']}",
             f"{facts['files']} files, {size(facts['size_bytes'])}; {signature(facts)}"]  # fmt: skip
    for name, graph in facts["graphs"].items():
        lines.append(f"graph {name}")
        lines += [f"  input   {tensor}: {text}" for tensor, text in graph["inputs"].items()]
        lines += [f"  output  {tensor}: {text}" for tensor, text in graph["outputs"].items()]
        for target, engine in graph["engines"].items():
            checked = "" if engine["tolerance"] is None else f", golden feed within {engine['tolerance']:.3g}"
            lines.append(
                f"  engine  {target}: {engine['backend']} {engine['precision']}, {size(engine['size_bytes'])}, "
                f"{engine['state']}{checked}")  # fmt: skip
    for section in ("processing", "chain", "accuracy"):
        if facts[section]:
            lines.append(f"{section}: {json.dumps(facts[section], ensure_ascii=False)}")
    return "\n".join(map(printable, lines))


def _changes_text(changes: dict[str, Any]) -> str:
    if changes["old"] == changes["new"]:
        return "the same bundle"
    lines = [f"{section}: changed" for section in changes["sections"]]
    lines += [f"{c['graph']}: {c['kind']} {c['name']}: {c['old'] or 'none'} -> {c['new'] or 'none'}"
              for c in changes["specs"]]  # fmt: skip
    for change in changes["engines"]:
        was, now = (side and f"{side['backend']} {side['precision']}, {size(side['size_bytes'])}, {side['state']}"
                    for side in (change["old"], change["new"]))  # fmt: skip
        lines.append(f"engine {change['target']} of {change['graph']}: {was or 'none'} -> {now or 'none'}")
    for change in changes["files"]:
        sizes = [size(change[side]) if change[side] is not None else "none" for side in ("old_bytes", "new_bytes")]
        lines.append(f"file {change['path']}: {change['change']}, {' -> '.join(sizes)}")
        inside = [tensor for tensor in changes["tensors"] if tensor["file"] == change["path"]]
        for tensor in sorted(inside, key=lambda tensor: -tensor["changed_bytes"]):
            lines.append(
                f"  tensor {tensor['tensor']}: {tensor['change']}, {tensor['changed_bytes']} of "
                f"{tensor['size_bytes']} bytes")  # fmt: skip
    return "\n".join(map(printable, lines))
