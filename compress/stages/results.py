"""What leaves the store: the bundle with its float controls, and the record of the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress.report import judge
from compress.stages.engines import Build
from compress.stages.filing import Filing
from compress.stages.models import ModelFile
from compress.versions import versions
from runtimes.spec import largest_batch

GOLDEN_SAMPLES = 4


def write_bundle(filing: Filing, builds: Sequence[Build], shipped: ModelFile, output: Path) -> Path:
    """Write ``bundle`` and ``controls`` into ``output``; the same engines give the same bytes."""
    from compress.bundle import bundle
    from compress.controls import Control, write_controls
    from compress.golden import feeds_of

    rows = {row["digest"]: row for row in filing.sections.get("bench", {}).get("rows", ())}
    ships = {b.target.name: b.engines for b in builds if b.role == "shipped" and b.engines is not None}
    accuracy = {
        name: rows[e.digest]["accuracy"] for name, e in ships.items() if rows.get(e.digest, {}).get("accuracy")
    }
    model, validation = shipped.load(), filing.sets["validation"]
    engines = {
        graph: {target: held.engines[graph] for target, held in ships.items()} for graph in model.graphs
    }
    first = validation.first(largest_batch(validation.inputs, GOLDEN_SAMPLES))
    with filing.progress.stage("bundle"):
        made = bundle(
            model, engines, feeds_of(model, first), output / "bundle",
            accuracy={"metric": filing.recipe.metric, "data": validation.digest, "targets": accuracy},
        )  # fmt: skip
        controls = [
            Control(b.name, b.role, b.target.name, b.engines)
            for b in builds
            if b.role != "shipped" and b.engines is not None
        ]  # fmt: skip
        write_controls(controls, output / "controls", ships=ships.values())
    return made.path


def record_of(
    filing: Filing, original: ModelFile, output: Path, bundle: Path | None, command: str | None
) -> dict[str, Any]:
    """report.json's content: the schema is :mod:`compress.report.schema`."""
    from compress.inspection import model_facts

    model = original.load()
    bench = filing.sections.get("bench")
    record: dict[str, Any] = {
        "format": "compress.report",
        "version": 1,
        "name": model.name,
        "command": command,
        "recipe": dict(filing.recipe.raw),
        "model": model_facts(model),
        "data": {kind: {"name": s.name, "count": len(s), "digest": s.digest} for kind, s in filing.sets.items()},
        "machine": next(iter(bench["machines"].values()), None) if bench else None,
        "versions": {**versions(), **(next(iter(bench["versions"].values()), {}) if bench else {})},
        "stages": filing.stages,
        **filing.sections,
    }
    if bench:
        record["verdict"] = judge(bench, filing.recipe.max_drop)
    if bundle is not None:
        files = [path for path in bundle.rglob("*") if path.is_file()]
        record["bundle"] = {
            "path": bundle.relative_to(output).as_posix(), "files": len(files),
            "size_bytes": sum(path.stat().st_size for path in files),
        }  # fmt: skip
    return {key: value for key, value in record.items() if value is not None}
