"""The stages from model to model: load, prune, distill, quantize."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.described import described
from compress.errors import CompressError
from compress.metrics import get_metric
from compress.recipe import Stage
from compress.stages.filing import Filing
from compress.versions import versions
from runtimes.hashing import file_digest, tree_digest

if TYPE_CHECKING:
    from compress.model import Model

READS = {"prune": ("calibration",), "distill": ("train", "validation"), "quantize": ("calibration",)}
"""Stage -> the data sets it reads."""


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A model by its file and digest; loaded when a stage needs it."""

    path: Path
    digest: str

    def load(self) -> Model:
        return _read(self.path, self.digest)


@lru_cache(maxsize=4)
def _read(path: Path, digest: str) -> Model:
    from compress.modelfile import read_model

    return read_model(path)


def load_model(filing: Filing) -> ModelFile:
    """The recipe's model as a model file, whatever form it has; every data set is checked against its inputs."""
    from compress.loading import load
    from compress.modelfile import write_model
    from compress.program import chain_of

    path, factory = filing.recipe.model, filing.recipe.factory
    if not path.exists():
        raise CompressError(f"{filing.recipe.path}: model {path} does not exist")
    for stage in filing.recipe.stages:
        if stage.name == "distill" and stage.config.teacher is not None:
            _teacher(filing, stage.config)      # one that is missing is refused before hours are spent
        if stage.name == "prune":
            _corpus(filing, stage.config)

    def build(into: Path, scratch: Path) -> dict[str, Any]:
        write_model(load(path, factory=factory), into / "model.pt")
        return {}

    settings: dict[str, Any] = {"factory": factory}
    if path.is_dir():       # a Hugging Face folder, whose network is the library's
        settings["library"] = versions(("transformers",))
    artifact = filing.artifact("load", settings, {"model": _digest(path)}, build)
    model = ModelFile(path=artifact.path / "model.pt", digest=artifact.digest)
    if model.load().wiring is None:
        chain_of(model.load())      # says what is missing
    for kind in ("calibration", "validation", "train"):
        if getattr(filing.recipe, kind) is not None:
            filing.data(kind, model.load())  # a set that does not fit is refused before hours are spent
    return model


def transform(
    filing: Filing, stage: Stage, model: ModelFile, original: ModelFile, scheme: str | None = None
) -> ModelFile:
    """The model that one stage, prune, distill or quantize (for ``scheme``), makes of ``model``."""
    from compress.modelfile import write_model

    make = {"prune": _prune, "distill": _distill, "quantize": _quantize}[stage.name]
    inputs = {"model": model.digest}
    if stage.name == "distill":
        inputs |= {"teacher": _teacher_digest(filing, stage.config, original), "metric": filing.recipe.metric}
    told = stage.name == "prune" and stage.config.sensitivity
    if told:
        inputs["metric"] = filing.recipe.metric
    if stage.name == "prune" and (corpus := _corpus(filing, stage.config)) is not None:
        inputs["corpus"] = _digest(corpus)
    for kind in (*READS[stage.name], *(("validation",) if told else ())):
        inputs[kind] = filing.data(kind, model.load()).digest

    def build(into: Path, scratch: Path) -> dict[str, Any]:
        result = make(filing, stage.config, model, original, scheme, scratch)
        write_model(result.model, into / "model.pt")
        record: dict[str, Any] = result.to_json()
        return record

    settings = {**dataclasses.asdict(stage.config), **({"scheme": scheme} if stage.name == "quantize" else {})}
    artifact = filing.stage(stage.name, settings, inputs, build, scheme=scheme)
    return ModelFile(path=artifact.path / "model.pt", digest=artifact.digest)


def _prune(
    filing: Filing, config: Any, model: ModelFile, original: ModelFile, scheme: str | None, scratch: Path
) -> Any:
    from compress.prune import prune

    loaded = _with_module(filing, model.load())
    return prune(
        loaded, filing.sets["calibration"], config, factory=filing.recipe.factory,
        tables=filing.store.root / "latencies", corpus=_corpus(filing, config), progress=filing.progress.step,
        validation=filing.sets["validation"] if config.sensitivity else None,
        metric=get_metric(filing.recipe.metric, described(loaded)) if config.sensitivity else None,
    )  # fmt: skip


def _corpus(filing: Filing, config: Any) -> Path | None:
    if config.corpus is None:
        return None
    path: Path = filing.recipe.path.parent / config.corpus
    if not path.exists():
        raise CompressError(f"{filing.recipe.path}: the corpus {path} of the prune stage does not exist")
    return path


def _with_module(filing: Filing, model: Model) -> Model:
    """Of a Hugging Face folder, which needs no factory: with the module that it holds, and the weights of ``model``."""
    from compress.loading import load
    from compress.prune import load_into

    if filing.recipe.factory is not None or not filing.recipe.model.is_dir():
        return model
    module = load(filing.recipe.model).module
    assert module is not None
    return dataclasses.replace(model, module=load_into(module, model))


def _distill(
    filing: Filing, config: Any, model: ModelFile, original: ModelFile, scheme: str | None, scratch: Path
) -> Any:
    from compress.distill import distill
    from compress.loading import load

    student = model.load()
    teacher = original.load() if config.teacher is None else load(_teacher(filing, config))
    metric = get_metric(filing.recipe.metric, described(student))
    return distill(
        student, teacher, filing.sets["train"], validation=filing.sets["validation"], metric=metric,
        config=config, scratch=scratch, progress=filing.progress.step,
    )  # fmt: skip


def _teacher_digest(filing: Filing, config: Any, original: ModelFile) -> str:
    if config.teacher is None:
        return original.digest
    return _digest(_teacher(filing, config))


def _teacher(filing: Filing, config: Any) -> Path:
    path: Path = filing.recipe.path.parent / config.teacher
    if not path.exists():
        raise CompressError(f"{filing.recipe.path}: the teacher {path} of a distill stage does not exist")
    return path


def _digest(path: Path) -> str:
    return tree_digest(path) if path.is_dir() else file_digest(path)


def _quantize(
    filing: Filing, config: Any, model: ModelFile, original: ModelFile, scheme: str | None, scratch: Path
) -> Any:
    from compress.quantize import quantize

    assert scheme is not None
    return quantize(
        model.load(), filing.sets["calibration"], scheme=scheme, config=config,
        statistics=filing.store.root / "statistics", progress=filing.progress.step,
    )  # fmt: skip
