"""A reference model: a network, its task and its data as one value; and the folder that `compress demo` makes of it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from compress.errors import CompressError
from compress.model import Input, Model
from compress.zoo import Progress
from compress.zoo.fitting import FitConfig, Loss, Rows, fit, predict, steps_of
from compress.zoo.folder import DATA, FORMAT, begin, digests, finish, is_whole, read_record, shifted
from compress.zoo.scores import scores_of

if TYPE_CHECKING:
    from compress.recipe import Recipe

Splits: TypeAlias = Mapping[str, tuple[Rows, np.ndarray]]
"""``train``, ``calibration`` and ``validation`` -> rows and targets i64 ``(samples,)``; no sample is in two."""

QUICK_EPOCHS = 2

RECIPE = """\
# What `compress run` does with the model {name}.
version: 1
model: model.pt
data: {{calibration: calibration/, train: train/, validation: validation/}}
metric: {metric}
max_drop: 0.01
target: [openvino-cpu, onnxruntime-cpu, rtx]
stages:
  - prune: {{macs: {macs}}}
  - distill: {{epochs: {epochs}, loss: {loss}}}
  - quantize: {{}}
  - distill: {{epochs: 2, loss: {loss}}}        # quantization-aware, because it follows quantize
  - export: {{}}
  - bench: {{preset: quick}}
comparisons: compress.zoo.reference:compare     # what the report holds the result against
"""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A network with its task: all that :func:`make_reference` needs.

    Attributes:
        factory: of the network, with ``kwargs``, as :func:`compress.save` takes them.
        samples: makes or loads the data; the same on every call.
        loss: which the network is trained with; it also says what its output is.
        labels: what the two classes are called. inputs, processing: of :func:`compress.save`.
        macs: share of the multiply-accumulates that the recipe keeps. distill_epochs: after pruning.
    """

    name: str
    factory: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    samples: Callable[[], Splits]
    loss: Loss
    fit: FitConfig
    labels: Sequence[str]
    inputs: Mapping[str, Input]
    processing: Mapping[str, Any]
    macs: float = 0.5
    distill_epochs: int = 10

    @property
    def metric(self) -> str:
        return "accuracy" if self.loss == "cross-entropy" else "compress.zoo.scores:decided_right"

    @property
    def recipe(self) -> str:
        return RECIPE.format(name=self.name, metric=self.metric, macs=self.macs, epochs=self.distill_epochs,
                             loss="kl" if self.loss == "cross-entropy" else "mse")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ReferenceRecord:
    """demo.json: what was trained, how well it does beside its baselines, and the digest of what was written."""

    model: str
    seed: int
    settings: Mapping[str, Any]
    scores: Mapping[str, float]             # accuracy, precision, recall, f1 in float32, on validation/
    baselines: Mapping[str, float]          # "text alone", .., "majority answer" -> accuracy
    samples: Mapping[str, int]              # data set -> samples
    parameters: int
    macs: int                               # of one sample
    seconds: Mapping[str, float]            # of training, by network
    threads: int
    versions: Mapping[str, str]
    files: Mapping[str, str]                # path -> SHA-256

    def to_json(self) -> dict[str, Any]:
        return {**FORMAT, **dataclasses.asdict(self)}

    def describe(self) -> str:
        beside = ", ".join(f"{name} {value:.1%}" for name, value in self.baselines.items())
        scores = ", ".join(f"{name} {value:.3f}" for name, value in self.scores.items() if name != "accuracy")
        return (
            f"{self.model}: accuracy {self.scores['accuracy']:.2%} on {self.samples['validation']} samples it has not "
            f"seen ({beside}), {scores}; {self.parameters} parameters, {self.macs} multiply-accumulates, "
            f"trained in {sum(self.seconds.values()):.0f} s"
        )


def make_reference(
    reference: Reference, folder: Path, *, seed: int = 0, quick: bool = False, progress: Progress | None = None
) -> ReferenceRecord:
    """Train ``reference``; write its model, ``train/``, ``calibration/``, ``validation/``, a recipe and ``demo.json``.

    A folder that holds the same, whole, is left as it is. ``demo.json`` is marked unfinished until all is written.

    Args:
        seed: of the weights and the order of training. quick: train for one epoch, for tests.
        progress: called after every step of training.

    Raises:
        CompressError: if ``folder`` holds another model, or the disk is full.
    """
    from calibration import write

    config = dataclasses.replace(reference.fit, seed=seed, epochs=QUICK_EPOCHS if quick else reference.fit.epochs)
    settings = {"kwargs": dict(reference.kwargs), "fit": dataclasses.asdict(config)}
    if (found := read_record(folder, reference.name)) is not None and is_whole(folder, found, settings):
        return ReferenceRecord(**{field.name: found[field.name] for field in dataclasses.fields(ReferenceRecord)})
    splits = reference.samples()
    begin(folder, reference.name, reference.recipe)
    for name in DATA:
        rows, target = splits[name]
        write(folder / name, rows, target)
    record = _train(reference, folder, splits, config, settings, progress)
    finish(folder, record.to_json())
    return record


def compare(shipped: Model, recipe: Recipe, progress: Progress | None = None) -> list[dict[str, Any]]:
    """The baselines beside recipe.yaml, for the report.

    Raises:
        CompressError: if the recipe does not lie in a folder of ``shipped``'s.
    """
    found = read_record(recipe.path.parent, shipped.name)
    if found is None or "baselines" not in found:
        raise CompressError(f"{recipe.path.parent} holds no finished demo: `compress demo` writes one")
    return [
        {"name": name, "accuracy": value, "note": "always the most frequent answer" if name == MAJORITY else
         "the original's shape, trained with the other inputs at their mean"}
        for name, value in found["baselines"].items()
    ]  # fmt: skip


MAJORITY = "majority answer"


def alone(rows: Rows, kept: str, means: Rows) -> Rows:
    """``rows`` in which only the input ``kept`` says anything: the others are ``means``, each of shape ``(1, ...)``."""
    return {name: array if name == kept else np.repeat(means[name], len(array), axis=0) for name, array in rows.items()}


def means_of(rows: Rows) -> Rows:
    """What an input is replaced with that is not to be seen: its mean, or the first sample of integers."""
    return {name: array.mean(axis=0, keepdims=True, dtype=array.dtype) if array.dtype.kind == "f" else array[:1]
            for name, array in rows.items()}  # fmt: skip


def _train(
    reference: Reference, folder: Path, splits: Splits, config: FitConfig, settings: Mapping[str, Any],
    progress: Progress | None,
) -> ReferenceRecord:  # fmt: skip
    """Train the network and one of its shape for each input alone, and write model.pt."""
    import torch

    from compress.complexity import count
    from compress.factory import resolve
    from compress.versions import versions

    rows, target = splits["train"]
    asked, answers = splits["validation"]
    means = means_of(rows)
    kept: dict[str, str | None] = {"network": None}
    if len(rows) > 1:
        kept |= {f"{name} alone": name for name in rows}
    steps = steps_of(config, len(target))
    outputs, seconds = {}, {}
    for index, (name, only) in enumerate(kept.items()):
        torch.manual_seed(config.seed)
        network = resolve(reference.factory, "factory")(**reference.kwargs)
        seen, shown = (part if only is None else alone(part, only, means) for part in (rows, asked))
        started = time.monotonic()
        fit(network, seen, target, reference.loss, config, shifted(progress, index * steps, steps * len(kept), name))
        seconds[name] = round(time.monotonic() - started, 1)
        outputs[name] = predict(network, shown)
        if only is None:
            model = _save(reference, folder, network, rows)
    scores = {name: scores_of(output, answers) for name, output in outputs.items()}
    majority = float(np.bincount(answers).max() / len(answers))
    return ReferenceRecord(
        model=reference.name, seed=config.seed, settings=settings, scores=scores.pop("network"),
        baselines={**{name: values["accuracy"] for name, values in scores.items()}, MAJORITY: majority},
        samples={name: len(splits[name][1]) for name in DATA},
        parameters=sum(weight.numel() for weight in model.weights.values()),
        macs=count(model.graph.program, model).total.macs, seconds=seconds, threads=torch.get_num_threads(),
        versions=versions(), files=digests(folder),
    )  # fmt: skip


def _save(reference: Reference, folder: Path, network: Any, rows: Rows) -> Model:
    from compress.saving import save

    classes = {"output": reference.labels} if reference.loss == "cross-entropy" else {}
    return save(
        network, folder / "model.pt", name=reference.name, factory=reference.factory, factory_kwargs=reference.kwargs,
        example={name: array[:2] for name, array in rows.items()}, inputs=reference.inputs, labels=classes,
        processing=reference.processing,
    )  # fmt: skip
