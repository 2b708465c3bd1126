"""A reference model: a network, its task and its data as one value; and the folder that `compress demo` makes of it."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibration.targets import Targets, named
from compress.errors import CompressError
from compress.metrics import Outputs
from compress.model import Input, Model
from compress.zoo import Progress
from compress.zoo.composed import Composed, said_by
from compress.zoo.fitting import FitConfig, Said, fit, predict, steps_of
from compress.zoo.folder import FORMAT, begin, digests, finish, is_whole, read_record, shifted
from compress.zoo.samples import Parts, Rows, Splits, alone, blank_of, count_of, targets_of
from compress.zoo.tasks import METRICS, Tasks, by_task, constant_answer, encoded, loss_of

if TYPE_CHECKING:
    from compress.recipe import Recipe

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


Blinding = Callable[[Rows], Rows]
"""Takes away what a baseline is not to see of rows."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A network with its task: all that :func:`make_reference` needs.

    Attributes:
        factory: of the network, with ``kwargs``, as :func:`compress.save` takes them.
        samples: makes or loads the data; the same on every call.
        tasks: what each output is trained for, in the order of the outputs; or
        composed: how a model of several graphs is saved, trained and judged.
        metric: of the recipe; its mean over the samples is what the network and its baselines are judged by.
        inputs, processing: of :func:`compress.save`.
        blinded: baselines besides each modality alone; what their networks see of the rows. Of a composed model there
            are no others.
        macs: share of the multiply-accumulates that the recipe keeps. distill_epochs: after pruning.
    """

    name: str
    factory: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    samples: Callable[[], Splits]
    tasks: Tasks = field(default_factory=dict)
    composed: Composed | None = None
    metric: str
    fit: FitConfig
    inputs: Mapping[str, Input]
    processing: Mapping[str, Any]
    blinded: Mapping[str, Blinding] = field(default_factory=dict)
    macs: float = 0.5
    distill_epochs: int = 10

    @property
    def recipe(self) -> str:
        kind = "kl" if all(task.loss in ("cross-entropy", "ctc") for task in self.tasks.values()) else "mse"
        kind = kind if self.composed is None else self.composed.loss
        return RECIPE.format(name=self.name, metric=self.metric, macs=self.macs, epochs=self.distill_epochs, loss=kind)

    @property
    def modalities(self) -> dict[str, tuple[str, ...]]:
        """Each input that the app gives, with the masks that are derived from it."""
        entries = self.processing["inputs"]
        of = {name: entries[name].get("of", name) if name in entries else name for name in self.inputs}
        return {name: tuple(key for key, source in of.items() if source == name) for name in of.values()}

    def baselines(self, train: Parts) -> dict[str, Blinding]:
        """Name -> what a network of the same shape is trained on, to show how much the rest is worth."""
        every, blank = self.modalities, blank_of(train)
        each = {f"{name} alone": functools.partial(alone, kept=kept, blank=blank) for name, kept in every.items()}
        return {**(each if len(every) > 1 and self.composed is None else {}), **self.blinded}


@dataclass(frozen=True, kw_only=True)
class ReferenceRecord:
    """demo.json: what was trained, how well it does beside its baselines, and the digest of what was written."""

    model: str
    seed: int
    settings: Mapping[str, Any]
    metric: str
    value: float                            # of the metric, in float32, on validation/
    scores: Mapping[str, float]             # accuracy, precision, recall, f1; or errors; of each output
    baselines: Mapping[str, float]          # "text alone", .., "majority answer" -> the metric's value
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
        metric = self.metric.rpartition(":")[2].replace("_", " ")
        beside = ", ".join(f"{name} {value:.1%}" for name, value in self.baselines.items())
        scores = ", ".join(f"{name} {value:.3f}" for name, value in self.scores.items() if name != "accuracy")
        return (
            f"{self.model}: {metric} {self.value:.2%} on {self.samples['validation']} samples it has not "
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
    tasks = {name: dataclasses.asdict(task) for name, task in reference.tasks.items()}
    settings = json.loads(json.dumps({"kwargs": reference.kwargs, "fit": dataclasses.asdict(config), "tasks": tasks}))
    if (found := read_record(folder, reference.name)) is not None and is_whole(folder, found, settings):
        return ReferenceRecord(**{field.name: found[field.name] for field in dataclasses.fields(ReferenceRecord)})
    splits = reference.samples()
    begin(folder, reference.name, reference.recipe)
    for name in splits:
        write(folder / name, ({**rows, **named(target), **_own(target, reference.tasks)}
                              for rows, target in splits[name]))  # fmt: skip
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
        {"name": name, "accuracy": value, "note": "always the most frequent answer, or the mean one"
         if name == MAJORITY else "the original's shape, trained without the rest of what it sees"}
        for name, value in found["baselines"].items()
    ]  # fmt: skip


MAJORITY = "majority answer"


def _own(target: Targets, tasks: Tasks) -> Rows:
    """Besides the columns of several outputs' targets each output's own, for the metrics of one output."""
    return named(by_task(target, tasks)) if len(tasks) > 1 else {}


def _train(
    reference: Reference, folder: Path, splits: Splits, config: FitConfig, settings: Mapping[str, Any],
    progress: Progress | None,
) -> ReferenceRecord:  # fmt: skip
    """Train the network and one of its shape for each baseline, and write model.pt."""
    import torch

    from compress.complexity import count_model
    from compress.factory import resolve
    from compress.versions import versions

    train, validation = splits["train"], splits["validation"]
    target = targets_of(validation)
    seen: dict[str, Blinding] = {"network": dict, **reference.baselines(train)}
    steps = steps_of(config, train)
    outputs, seconds = {}, {}
    for index, (name, blind) in enumerate(seen.items()):
        torch.manual_seed(config.seed)
        network = resolve(reference.factory, "factory")(**reference.kwargs)
        learnt, asked = ([(blind(rows), answers) for rows, answers in parts] for parts in (train, validation))
        started = time.monotonic()
        _teach(reference, network, learnt, config, shifted(progress, index * steps, steps * len(seen), name))
        seconds[name] = round(time.monotonic() - started, 1)
        outputs[name] = _ask(reference, network, asked)
        if name == "network":
            model = _save(reference, folder, network, train[0][0])
    if (constant := _constant(reference, targets_of(train), count_of(target))) is not None:
        outputs[MAJORITY] = [(count_of(target), dict(constant))]
    values = {name: _value(reference.metric, said, target, model) for name, said in outputs.items()}
    return ReferenceRecord(
        model=reference.name, seed=config.seed, settings=settings, metric=reference.metric,
        scores=_scores(reference, model, splits, outputs["network"]), value=values.pop("network"), baselines=values,
        samples={name: count_of(targets_of(parts)) for name, parts in splits.items()},
        parameters=sum(weight.numel() for weight in model.weights.values()),
        macs=count_model(model).total.macs, seconds=seconds, threads=torch.get_num_threads(),
        versions=versions(), files=digests(folder, splits),
    )  # fmt: skip


def _value(name: str, said: Said, target: Targets, model: Model) -> float:
    from compress.described import described
    from compress.metrics import get_metric, statistics_of, value_of

    metric = get_metric(name, described(model))
    wanted = target[str(metric.output)] if isinstance(target, Mapping) else target
    return value_of(metric, statistics_of(metric, said, wanted)).value


def _teach(reference: Reference, network: Any, parts: Parts, config: FitConfig, progress: Progress | None) -> None:
    if reference.composed is not None:
        reference.composed.train(network, parts, config, progress)
        return
    tasks = reference.tasks
    learnt = [(rows, encoded(answers, tasks)) for rows, answers in parts]
    fit(network, learnt, functools.partial(loss_of, tasks=tasks), config, progress)


def _ask(reference: Reference, network: Any, parts: Parts) -> Said:
    from compress.saving import export_model

    if reference.composed is None:
        return predict(network, parts)
    return said_by(export_model(network, **_form(reference, parts[0][0])), parts)


def _constant(reference: Reference, target: Targets, count: int) -> Outputs | None:
    """What is always the same: of a composed model only where it says what that would be."""
    if reference.composed is None:
        return constant_answer(target, reference.tasks, count)
    return None if reference.composed.constant is None else reference.composed.constant(target, count)


def _scores(reference: Reference, model: Model, splits: Splits, said: Said) -> dict[str, float]:
    """What is told of the network, which says ``said`` of validation."""
    target, tasks = targets_of(splits["validation"]), reference.tasks
    if reference.composed is not None:
        of = {split: said if split == "validation" else said_by(model, splits[split])
              for split in reference.composed.scores.values()}  # fmt: skip
        return {name: _value(name, of[split], targets_of(splits[split]), model)
                for name, split in reference.composed.scores.items()}  # fmt: skip
    wanted = by_task(target, tasks)
    return {metric if len(tasks) == 1 else f"{metric}/{name}": _value(f"{metric}/{name}", said, wanted, model)
            for name, task in tasks.items() for metric in METRICS[task.loss]}  # fmt: skip


def _save(reference: Reference, folder: Path, network: Any, rows: Rows) -> Model:
    from compress.saving import save

    return save(
        network, folder / "model.pt", factory=reference.factory, factory_kwargs=reference.kwargs,
        processing=reference.processing, **_form(reference, rows),
    )  # fmt: skip


def _form(reference: Reference, rows: Rows) -> dict[str, Any]:
    """What the model is, whatever the weights: arguments of :func:`compress.saving.export_model`."""
    example = {name: array[:2] for name, array in rows.items()}
    form = {"name": reference.name, "inputs": reference.inputs}
    if reference.composed is not None:
        return {**form, "example": {**example, **reference.composed.given}, "graphs": reference.composed.graphs,
                "chain": reference.composed.chain}  # fmt: skip
    classes = {name: task.labels for name, task in reference.tasks.items() if task.loss == "cross-entropy"}
    return {**form, "example": example, "labels": classes}
