"""One distillation from its models to its result: what is checked, what is compared, and what trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from calibration import CalibrationSet
from compress.distill import DistillResult
from compress.distill.batches import Batches
from compress.distill.bound import bind, keep_zeros
from compress.distill.checkpoint import Checkpoint, run_key
from compress.distill.config import DistillConfig
from compress.distill.criterion import Criterion
from compress.distill.forcing import loops_of, teacher_tokens
from compress.distill.graphs import compared_specs
from compress.distill.kinds import Output, outputs_of, paired, sharpness_of
from compress.distill.labels import read_labels
from compress.distill.learner import Learner
from compress.distill.loop import Run, train
from compress.distill.pairs import check_pair, match_features
from compress.distill.placement import device_of
from compress.distill.precision import check_precision
from compress.distill.scoring import Scorer
from compress.distill.teacher import Teacher
from compress.distill.terms import feature_terms, label_terms, output_terms, similarity_terms
from compress.distill.workers import Workers
from compress.errors import CompressError
from compress.evaluate import targets_of
from compress.metrics import Metric
from compress.model import Model
from compress.weights import with_weights
from runtimes.spec import largest_batch


def train_student(
    student: Model, teacher: Model, data: CalibrationSet, validation: CalibrationSet | None, metric: Metric | None,
    config: DistillConfig, scratch: Path | None, report: Callable[[int, int, str], None], workers: Workers,
) -> DistillResult:  # fmt: skip
    """As :func:`compress.distill.distill` says, in one of several processes."""
    check_pair(student, teacher, config)
    check_precision(config.precision, student)
    device = device_of(config.device)
    _check_data(student, data, validation, metric, config)
    matched = match_features(student, teacher, config)
    outputs = outputs_of(teacher, config.loss, metric)
    pairs = paired(teacher, outputs)
    sharpness = sharpness_of(teacher)
    labels = _labels(student, data, outputs, pairs, config)
    terms = [
        *output_terms(outputs, config.temperature),
        *feature_terms(matched, len(compared_specs(student)), config),
        *similarity_terms(pairs, sharpness),
        *(label_terms(outputs, labels, pairs, sharpness) if config.label_weight else ()),
    ]
    criterion = Criterion(terms, config.weights)
    if not criterion.parts:
        raise CompressError(
            f"student {student.name!r} and teacher {teacher.name!r} have nothing in common that is compared "
            f"({'; '.join(matched.skipped) or 'no components'}): give logit_weight"
        )
    key = run_key(student, teacher, data, validation, metric, config, workers.count)
    size = largest_batch(student.inputs, max(1, config.batch_size // workers.count))
    tokens = teacher_tokens(teacher, data, lambda text: report(0, config.epochs, text))
    batches = Batches(data, size, config.seed, labels=labels, more=tokens, share=(workers.rank, workers.count))
    module = bind(student, matched.student, device)
    keep_zeros(module, student.channels.get("sparse", ()))
    folder = None if scratch is None else scratch / f"teacher-{workers.rank}"
    with Teacher(
        bind(teacher, matched.teacher, device), batches, epochs=config.epochs, precision=config.precision,
        folder=folder, key=key, progress=lambda text: report(0, config.epochs * batches.per_epoch, text),
    ) as answers:  # fmt: skip
        state = train(Run(
            learner=Learner(module, matched, config.precision), teacher=answers, batches=batches, criterion=criterion,
            config=config, workers=workers, progress=report, name=f"model {student.name!r}",
            scorer=None if validation is None or metric is None else Scorer(student, module, validation, metric, size),
            checkpoint=None if scratch is None else Checkpoint(scratch, key, writing=workers.first),
        ))  # fmt: skip
    return DistillResult(
        model=with_weights(student, state.best_weights), history=tuple(state.history), before=state.before,
        after=state.best, kept=state.kept, features=matched.components, skipped=matched.skipped,
        projected=tuple(dict.fromkeys(pair.component for pair in matched.pairs if pair.projection is not None)),
        outputs={output.spec.name: output.compared for output in outputs}, quantized=student.quantization is not None,
    )  # fmt: skip


def _check_data(
    student: Model, data: CalibrationSet, validation: CalibrationSet | None, metric: Metric | None,
    config: DistillConfig,
) -> None:  # fmt: skip
    """Refuse sets that lack what this run reads, and settings that have nothing to work on."""
    if (validation is None) != (metric is None):
        raise CompressError("validation and metric go together: give both, or neither")
    for given in (data, validation):
        if given is None:
            continue
        got = {spec.name: spec.dtype for spec in given.inputs}
        expected = {spec.name: spec.dtype for spec in student.inputs}
        if got != expected:
            raise CompressError(
                f"data set {given.name!r} holds the inputs {got}, model {student.name!r} takes {expected}: open it "
                "with the model's inputs"
            )
    if validation is not None and metric is not None:
        targets_of(validation, metric.output)
    if config.patience and validation is None:
        raise CompressError(f"patience is {config.patience}, and there is no metric that could get better: give "
                            "validation and metric, or set it to 0")
    if strange := [name for name in config.of_components() if name not in student.components]:
        raise CompressError(f"component_weights names {strange[0]!r}, and model {student.name!r} has the components "
                            f"{list(student.components)}")


def _labels(
    student: Model, data: CalibrationSet, outputs: list[Output], pairs: list[tuple[Output, Output]],
    config: DistillConfig,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Output -> its labels; none of the embeddings that are paired, whose samples are each other's labels."""
    if not config.label_weight:
        return {}
    if loops_of(student):
        raise CompressError(
            f"label_weight is {config.label_weight}, but model {student.name!r} picks tokens, and learns those of its "
            "teacher: set it to 0"
        )
    alone = [output for output in outputs if not any(output in pair for pair in pairs)]
    return read_labels(data, alone) if alone else {}
