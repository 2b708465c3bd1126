"""Run a recipe: the order of the stages on one page.

    load -> prune, distill -> (per scheme) quantize, distill -> (per target) engines and their float controls
         -> parity -> bench -> bundle -> report

Every stage's result is an artifact of the store, filed by what it was made from; a stage whose artifact is there is not
done again, so a run that was killed goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibration import CalibrationSet, open_set
from compress.bench import BenchConfig
from compress.errors import CompressError
from compress.metrics import get_metric
from compress.progress import Progress
from compress.recipe import Recipe, Stage, read_recipe
from compress.report import judge, report
from compress.store import Artifact, Store
from compress.targets import Target, get_target
from compress.versions import versions
from runtimes.engine import Engine, Precision, read_engine
from runtimes.hashing import file_digest
from runtimes.machine import machine_facts

if TYPE_CHECKING:
    from compress.model import Model

PARITY_SAMPLES = 64
GOLDEN_SAMPLES = 4
FORMAT = 1  # of what the stages below write; a change of theirs makes stored artifacts stale


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """``done`` and ``reused`` count stages; ``record`` is report.json's content."""

    output: Path
    report: Path
    bundle: Path | None
    record: Mapping[str, Any]
    done: int
    reused: int


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A model by its file and digest; loaded when a stage needs it."""

    path: Path
    digest: str

    def load(self) -> Model:
        return _load(self.path, self.digest)


@dataclass(frozen=True, kw_only=True)
class Build:
    """An engine that was built, of which model and for what; ``error`` where it was not."""

    name: str
    role: str
    target: Target
    precision: Precision
    onnx: Path
    engine: Engine | None = None
    error: str | None = None


def run(
    recipe: Path | Recipe, *, output: Path | None = None, progress: Progress | None = None, command: str | None = None
) -> RunResult:
    """Run every stage of a recipe that is not done yet, and write the bundle and the report.

    Args:
        recipe: a recipe or its file.
        output: the folder of the store, the bundle and the report; ``out`` beside the recipe by default.
        progress: told what goes on; silent by default.
        command: what the user typed, for the report.

    Raises:
        CompressError, CalibrationError, RuntimesError: as the stages do; what was finished stays.
    """
    recipe = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
    output = output or recipe.path.parent / "out"
    targets = [get_target(name) for name in recipe.targets]
    metric = get_metric(recipe.metric)
    with Store(output / "store") as store:
        steps = _Steps(recipe, store, progress or Progress(quiet=True))
        original = steps.load()
        floats, after = _split(recipe.stages)
        shipped = original
        for stage in floats:
            shipped = steps.transform(stage, shipped, original)
        quantized: dict[str, ModelFile] = {}
        for scheme in dict.fromkeys(target.scheme for target in targets) if after else ():
            quantized[scheme] = shipped
            for stage in after:
                quantized[scheme] = steps.transform(stage, quantized[scheme], original, scheme)
        bundle = None
        bench_stage = next((stage for stage in recipe.stages if stage.name == "bench"), None)
        if any(stage.name == "export" for stage in recipe.stages):
            builds = steps.engines(targets, original, shipped, quantized)
            steps.parity(builds, shipped, quantized)
            if bench_stage is not None:
                config = dataclasses.replace(bench_stage.config, max_drop=recipe.max_drop)
                steps.bench(builds, config, metric.name)
            bundle = steps.bundle(builds, shipped, output)
        if recipe.comparisons is not None:
            steps.compare(recipe.comparisons, shipped)
        record = steps.record(original, output, bundle, command)
        paths = report(record, output)
    return RunResult(
        output=output, report=paths.html, bundle=bundle, record=record, done=steps.done, reused=steps.reused
    )


def _split(stages: Iterable[Stage]) -> tuple[list[Stage], list[Stage]]:
    """The stages on the float model, and those from quantize on."""
    models = [stage for stage in stages if stage.name in ("prune", "distill", "quantize")]
    at = next((i for i, stage in enumerate(models) if stage.name == "quantize"), len(models))
    return models[:at], models[at:]


@lru_cache(maxsize=4)
def _load(path: Path, digest: str) -> Model:
    from compress.modelfile import read_model

    return read_model(path)


@dataclass
class _Steps:
    """The stages with the recipe's data, each filed in the store; and what they were, for the report."""

    recipe: Recipe
    store: Store
    progress: Progress
    done: int = 0
    reused: int = 0
    stages: list[dict[str, Any]] = field(default_factory=list)
    sections: dict[str, Any] = field(default_factory=dict)
    sets: dict[str, CalibrationSet] = field(default_factory=dict)

    # --- data -------------------------------------------------------------------------------------------------------

    def data(self, kind: str, model: Model) -> CalibrationSet:
        if kind not in self.sets:
            path = getattr(self.recipe, kind)
            if path is None:
                raise CompressError(f"{self.recipe.path}: data lacks {kind!r}, which a stage needs")
            self.sets[kind] = open_set(path, model.inputs, name=kind)
        return self.sets[kind]

    # --- models -----------------------------------------------------------------------------------------------------

    def load(self) -> ModelFile:
        """The model as given; any other form than a model file is converted to one first."""
        from compress.loading import load
        from compress.modelfile import write_model

        path = self.recipe.model
        if not path.is_file():
            raise CompressError(f"{self.recipe.path}: model {path} does not exist")

        def build(into: Path, scratch: Path) -> dict[str, Any]:
            write_model(load(path, factory=self.recipe.factory), into / "model.pt")
            return {}

        artifact = self.stage("load", {}, {"model": file_digest(path)}, build)
        model = ModelFile(path=artifact.path / "model.pt", digest=artifact.digest)
        for kind in ("calibration", "validation", "train"):
            if getattr(self.recipe, kind) is not None:
                self.data(kind, model.load())  # a set that does not fit is refused before hours are spent
        return model

    def transform(self, stage: Stage, model: ModelFile, original: ModelFile, scheme: str | None = None) -> ModelFile:
        """One stage from model to model: prune, distill or quantize."""
        from compress.modelfile import write_model

        make = {"prune": self._prune, "distill": self._distill, "quantize": self._quantize}[stage.name]
        inputs = {"model": model.digest}
        if stage.name == "distill":
            inputs |= {"teacher": original.digest, "metric": self.recipe.metric}
        for kind in {"prune": ["calibration"], "distill": ["train", "validation"], "quantize": ["calibration"]}[
            stage.name
        ]:
            inputs[kind] = self.data(kind, model.load()).digest

        def build(into: Path, scratch: Path) -> dict[str, Any]:
            result = make(stage.config, model, original, scheme, scratch)
            write_model(result.model, into / "model.pt")
            summary: dict[str, Any] = result.summary() if stage.name == "distill" else result.to_json()
            return summary

        settings = {**dataclasses.asdict(stage.config), **({"scheme": scheme} if stage.name == "quantize" else {})}
        artifact = self.stage(stage.name, settings, inputs, build, scheme=scheme)
        return ModelFile(path=artifact.path / "model.pt", digest=artifact.digest)

    def _prune(self, config: Any, model: ModelFile, original: ModelFile, scheme: str | None, scratch: Path) -> Any:
        from compress.prune import prune

        return prune(model.load(), self.sets["calibration"], config, factory=self.recipe.factory)

    def _distill(self, config: Any, model: ModelFile, original: ModelFile, scheme: str | None, scratch: Path) -> Any:
        from compress.distill import distill

        return distill(
            model.load(), original.load(), self.sets["train"], validation=self.sets["validation"],
            metric=get_metric(self.recipe.metric), config=config, scratch=scratch, progress=self.progress.step,
        )  # fmt: skip

    def _quantize(self, config: Any, model: ModelFile, original: ModelFile, scheme: str | None, scratch: Path) -> Any:
        from compress.quantize import quantize

        assert scheme is not None
        return quantize(
            model.load(), self.sets["calibration"], scheme=scheme, config=config, progress=self.progress.step
        )

    # --- engines ----------------------------------------------------------------------------------------------------

    def engines(
        self, targets: list[Target], original: ModelFile, shipped: ModelFile, quantized: Mapping[str, ModelFile]
    ) -> list[Build]:
        """Per target: what ships, and, where it can run here, the float controls of the original and of what ships."""
        builds = []
        for target in targets:
            final = quantized.get(target.scheme, shipped)
            ships: Precision = "int8" if quantized else "fp32"
            wanted: list[tuple[str, str, ModelFile, Precision]] = []
            if target.reach == "local" and target.backend in ("openvino", "onnxruntime"):
                for half in ("fp32", target.half):
                    if half is not None:
                        wanted.append((f"original {half}", "original", original, half))
                        if shipped != original and (quantized or half != "fp32"):
                            wanted.append((f"shipped {half}", "control", shipped, half))
            wanted.append((f"shipped {ships}", "shipped", final, ships))
            builds += [self._engine(f"{name}, {target.name}", role, target, model, precision)
                       for name, role, model, precision in wanted]  # fmt: skip
        built = [b for b in builds if b.role == "shipped" and b.engine is not None]
        if not built:
            raise CompressError(
                "no engine could be built: " + "; ".join(f"{b.target.name}: {b.error}" for b in builds if b.error)
            )
        self.stages.append(
            {
                "stage": "export",
                "summary": {
                    "built": [
                        {
                            "target": b.target.name, "precision": b.precision, "backend": b.engine.backend,
                            "state": b.engine.state, "digest": b.engine.digest, "size_bytes": _size(b.engine.path),
                        }
                        for b in builds if b.engine is not None
                    ],
                    "not_built": [
                        {"target": b.target.name, "precision": b.precision, "reason": b.error}
                        for b in builds if b.engine is None
                    ],
                },
            }
        )  # fmt: skip
        return builds

    def _engine(self, name: str, role: str, target: Target, model: ModelFile, precision: Precision) -> Build:
        from compress.export import build_engine, export_onnx

        def write_onnx(into: Path, scratch: Path) -> dict[str, Any]:
            export_onnx(model.load(), target, into / "model.onnx")
            return {}

        onnx = self.stage("onnx", {"opset": target.opset}, {"model": model.digest}, write_onnx)
        path = onnx.path / "model.onnx"

        def build(into: Path, scratch: Path) -> dict[str, Any]:
            build_engine(path, model.load(), target, into / "engine", precision=precision)
            return {}

        row = {
            key: value
            for key, value in dataclasses.asdict(target).items()
            if key not in ("verified", "description", "address")
        }
        made = Build(name=name, role=role, target=target, precision=precision, onnx=path)
        try:
            artifact = self.stage("engine", {"target": row, "precision": precision}, {"onnx": onnx.digest}, build)
        except CompressError as error:
            self.progress.say(f"{name} was not built: {error}")
            return dataclasses.replace(made, error=str(error))
        return dataclasses.replace(made, engine=read_engine(artifact.path / "engine"))

    # --- measurements -----------------------------------------------------------------------------------------------

    def parity(self, builds: list[Build], shipped: ModelFile, quantized: Mapping[str, ModelFile]) -> None:
        from compress.ladder import ladder
        from compress.parity import parity

        validation = self.data("validation", shipped.load())

        def build(into: Path, scratch: Path) -> dict[str, Any]:
            steps = ladder(builds, shipped.load(), {scheme: model.load() for scheme, model in quantized.items()})
            feeds = list(validation.take(PARITY_SAMPLES).batches(32))
            result = parity(steps, feeds, progress=lambda done: self.progress.step(done, len(feeds)))
            _write_json(into / "parity.json", result.to_json())
            return {}

        inputs = {"validation": validation.digest, "shipped": shipped.digest}
        inputs |= {build.name: build.engine.digest for build in builds if build.engine is not None}
        artifact = self.stage("parity", {"samples": PARITY_SAMPLES}, inputs, build)
        self.sections["parity"] = json.loads((artifact.path / "parity.json").read_text())

    def bench(self, builds: list[Build], config: BenchConfig, metric: str) -> None:
        from compress.bench import Candidate, asked_for_int8, bench

        validation = self.sets["validation"]
        candidates = [
            Candidate(
                name=b.name, role=b.role, engine=b.engine, target=b.target,  # type: ignore[arg-type]
                asked=asked_for_int8(b.onnx) if b.precision == "int8" else None,
            )
            for b in builds if b.engine is not None
        ]  # fmt: skip
        baseline = next((c.name for c in candidates if c.role == "original"), candidates[0].name)

        def build(into: Path, scratch: Path) -> dict[str, Any]:
            record = bench(
                candidates, feed=validation.first(1), data=validation, metric=get_metric(metric), config=config,
                baseline=baseline, workdir=scratch / "work", progress=self.progress.step,
            )  # fmt: skip
            _write_json(into / "bench.json", record.to_json())
            return {}

        inputs = {"validation": validation.digest, **{c.name: c.engine.digest for c in candidates}}
        settings = {**dataclasses.asdict(config), "metric": metric, "machine": _machine()}
        artifact = self.stage("bench", settings, inputs, build)
        self.sections["bench"] = json.loads((artifact.path / "bench.json").read_text())

    def compare(self, reference: str, shipped: ModelFile) -> None:
        """Rows the user's own function adds to the report: ``function(model file, recipe) -> list of baselines``."""
        from compress.modelfile import resolve

        def build(into: Path, scratch: Path) -> dict[str, Any]:
            rows = resolve(reference, "comparisons")(shipped.load(), self.recipe, self.progress.step)
            _write_json(into / "baselines.json", rows)
            return {}

        inputs = {"shipped": shipped.digest, "train": self.data("train", shipped.load()).digest}
        artifact = self.stage("compare", {"function": reference}, inputs, build)
        self.sections["baselines"] = json.loads((artifact.path / "baselines.json").read_text())

    # --- what leaves the store --------------------------------------------------------------------------------------

    def bundle(self, builds: list[Build], shipped: ModelFile, output: Path) -> Path:
        from compress.bundle import bundle, write_controls

        rows = {row["digest"]: row for row in self.sections.get("bench", {}).get("rows", ())}
        ships = {b.target.name: b.engine for b in builds if b.role == "shipped" and b.engine is not None}
        accuracy = {
            name: rows[e.digest]["accuracy"] for name, e in ships.items() if rows.get(e.digest, {}).get("accuracy")
        }
        with self.progress.stage("bundle"):
            made = bundle(
                shipped.load(), ships, self.sets["validation"].first(GOLDEN_SAMPLES), output / "bundle",
                accuracy={"metric": self.recipe.metric, "data": self.sets["validation"].digest, "targets": accuracy},
            )  # fmt: skip
            write_controls(
                [
                    (b.name, b.role, b.target.name, b.engine)
                    for b in builds
                    if b.role != "shipped" and b.engine is not None
                ],
                output / "controls",
            )
        return made.path

    def record(self, original: ModelFile, output: Path, bundle: Path | None, command: str | None) -> dict[str, Any]:
        from compress.inspection import model_facts

        model = original.load()
        bench = self.sections.get("bench")
        record: dict[str, Any] = {
            "format": "compress.report",
            "version": 1,
            "name": model.name,
            "command": command,
            "recipe": dict(self.recipe.raw),
            "model": model_facts(model),
            "data": {kind: {"name": s.name, "count": len(s), "digest": s.digest} for kind, s in self.sets.items()},
            "machine": bench["machine"] if bench else None,
            "versions": {**versions(), **(bench["versions"] if bench else {})},
            "stages": self.stages,
            **self.sections,
        }
        if bench:
            record["verdict"] = judge(bench, self.recipe.max_drop)
        if bundle is not None:
            files = [path for path in bundle.rglob("*") if path.is_file()]
            record["bundle"] = {
                "path": bundle.relative_to(output).as_posix(), "files": len(files),
                "size_bytes": sum(path.stat().st_size for path in files),
            }  # fmt: skip
        return {key: value for key, value in record.items() if value is not None}

    # --- the store --------------------------------------------------------------------------------------------------

    def stage(
        self,
        name: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, str],
        build: Callable[[Path, Path], dict[str, Any]],
        *,
        scheme: str | None = None,
    ) -> Artifact:
        """The artifact of one stage, made now or found; told to the progress, counted and noted for the report."""
        key = self.store.key(name, {**settings, "format": FORMAT, "versions": versions()}, inputs)
        artifact = self.store.find(key)
        reused = artifact is not None
        if artifact is None:
            with self.progress.stage(name, scheme):
                artifact = self.store.run(key, name, build)
            self.done += 1
        else:
            self.reused += 1
        if name not in ("engine", "onnx", "load"):
            self.stages.append(
                {
                    "stage": name, "target_scheme": scheme, "seconds": artifact.seconds,
                    "peak_memory_bytes": artifact.peak_memory_bytes, "reused": reused, "digest": artifact.digest,
                    "settings": dict(settings), "summary": dict(artifact.record),
                }
            )  # fmt: skip
        return artifact


def _machine() -> str:
    """What a measurement belongs to: figures of another CPU are not these."""
    facts = machine_facts()
    return f"{platform.node()}: {facts['cpu']}, {facts['cores_usable']} cores"


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
