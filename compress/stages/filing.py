"""What the stages of one run share: its recipe, store, data sets and progress, and what was done, for the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibration import CalibrationSet, convert, open_set
from calibration.converting import source_digest
from compress.data import is_raw, wanted_of
from compress.errors import CompressError
from compress.progress import Progress
from compress.recipe import Recipe
from compress.store import Artifact, Store
from compress.versions import READING, versions

if TYPE_CHECKING:
    from compress.model import Model

FORMAT = 1  # of what the stages write; a change of theirs makes stored artifacts stale


@dataclass(kw_only=True)
class Filing:
    """``stages`` and ``sections`` become the report's; ``done`` and ``reused`` count artifacts."""

    recipe: Recipe
    store: Store
    progress: Progress
    done: int = 0
    reused: int = 0
    stages: list[dict[str, Any]] = field(default_factory=list)
    sections: dict[str, Any] = field(default_factory=dict)
    sets: dict[str, CalibrationSet] = field(default_factory=dict)
    artifacts: dict[str, tuple[Artifact, bool]] = field(default_factory=dict)  # by key; whether it was there already

    def data(self, kind: str, model: Model) -> CalibrationSet:
        """The recipe's ``calibration``, ``validation`` or ``train`` set, checked against the model's inputs."""
        if kind not in self.sets:
            path = getattr(self.recipe, kind)
            if path is None:
                raise CompressError(f"{self.recipe.path}: data lacks {kind!r}, which a stage needs")
            self.sets[kind] = self._processed(kind, path, model) if is_raw(path) else open_set(
                path, model.inputs, name=kind)
        return self.sets[kind]

    def _processed(self, kind: str, path: Path, model: Model) -> CalibrationSet:
        """Raw samples, processed once and kept in the store."""
        wanted = wanted_of(model)
        inputs = {"source": source_digest(path), "processing": wanted.digest}
        specs = {"inputs": [spec.to_json() for spec in model.inputs], "labels": wanted.labels,
                 "reading": versions(READING)}

        def build(into: Path, scratch: Path) -> dict[str, Any]:
            return convert(path, into / "data", wanted).to_json()

        artifact = self.artifact("data", specs, inputs, build, detail=kind)
        return open_set(artifact.path / "data", model.inputs, name=kind)

    def artifact(
        self,
        name: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, str],
        build: Callable[[Path, Path], dict[str, Any]],
        *,
        detail: str | None = None,
    ) -> Artifact:
        """What a stage makes, now or before; told to the progress and counted, once for all who ask for it in a run.

        Args:
            name: the stage.
            settings: what it was told.
            inputs: the digest of each thing it reads, by name.
            build: makes it, as :meth:`compress.store.Store.run` says.
            detail: what the progress calls it besides its name.
        """
        key = self.store.key(name, {**settings, "format": FORMAT, "versions": versions()}, inputs)
        if key in self.artifacts:
            return self.artifacts[key][0]
        found = self.store.find(key)
        while self.store.warnings:
            self.progress.say(self.store.warnings.pop(0))
        if found is not None:
            self.reused += 1
            self.artifacts[key] = found, True
            return found
        with self.progress.stage(name, detail):
            made = self.store.run(key, name, build)
        self.done += 1
        self.artifacts[key] = made, False
        return made

    def stage(
        self,
        name: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, str],
        build: Callable[[Path, Path], dict[str, Any]],
        *,
        scheme: str | None = None,
    ) -> Artifact:
        """:meth:`artifact` of one stage of the recipe, noted for the report."""
        artifact = self.artifact(name, settings, inputs, build, detail=scheme)
        self.stages.append(
            {
                "stage": name, "target_scheme": scheme, "seconds": artifact.seconds,
                "peak_memory_bytes": artifact.peak_memory_bytes, "reused": self.artifacts[artifact.key][1],
                "digest": artifact.digest, "settings": dict(settings), "summary": dict(artifact.record),
            }
        )  # fmt: skip
        return artifact


def write_json(path: Path, value: Any) -> None:
    """A result that a later stage, or the report, reads."""
    path.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
