"""``compress doctor``: what will work with a model and what will not, before hours are spent on it."""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.doctor.finding import SEVERITIES, Diagnosis, Finding, Severity
from compress.errors import CompressError
from compress.targets import Target, get_target

if TYPE_CHECKING:
    from torch import nn

    from calibration import CalibrationSet
    from compress.model import Input, Model

__all__ = ["Diagnosis", "Finding", "Severity", "doctor"]

_SAMPLES = 8                                     # of a data set, beside the example


def doctor(
    model: Model | nn.Module | str | Path,
    targets: Sequence[str | Target] = (),
    *,
    example: Mapping[str, Any] | None = None,
    inputs: Mapping[str, Input] | None = None,
    factory: str | None = None,
    trust_pickle: bool = False,
    data: Path | CalibrationSet | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Diagnosis:
    """Examine ``model`` for ``targets``; nothing is written, and the model is left as it was.

    Args:
        model: a model, a module (with ``example``), or the path of anything :func:`compress.load` takes; it need not
            be traceable.
        targets: rows or their names; by default the local rows whose backend is installed.
        example, inputs, factory, trust_pickle: as :func:`compress.load` has them.
        data: a data set, whose first samples are looked at beside the example.
        progress: called with what is done, of how much, and what is being done.

    Raises:
        CompressError: if there is no such file or target, or the file is damaged, refused or no model.
    """
    from compress.doctor.examinations import examine
    from compress.doctor.reading import admit

    rows = [get_target(t) if isinstance(t, str) else t for t in (targets or _here())]
    with tempfile.TemporaryDirectory(prefix="compress-doctor-") as folder:
        patient = admit(model, rows, Path(folder), example=example, inputs=inputs, factory=factory,
                        trust_pickle=trust_pickle)  # fmt: skip
        if data is not None and patient.model is not None:
            from calibration import open_set

            held = open_set(data, patient.inputs) if isinstance(data, Path) else data
            patient.samples = (*patient.samples, *held.take(_SAMPLES).batches(1))
        found = sorted(examine(patient, progress), key=lambda finding: SEVERITIES.index(finding.severity))
        return Diagnosis(
            name=patient.name, targets=tuple(row.name for row in rows), findings=tuple(found), facts=_facts(patient)
        )


def _here() -> list[str]:
    rows = {"openvino": "openvino-cpu", "onnxruntime": "onnxruntime-cpu"}
    return [name for backend, name in rows.items() if importlib.util.find_spec(backend) is not None] or ["local"]


def _facts(patient: Any) -> dict[str, int]:
    from compress.doctor.examinations.memory import peak_bytes, weight_bytes

    weights, int8 = weight_bytes(patient)
    facts = {"parameters": sum(t.numel() for t in {id(t): t for t in patient.weights.values()}.values()),
             "weights_bytes": weights}  # fmt: skip
    if patient.model is None:
        return facts
    facts["int8_weights_bytes"] = int8
    with contextlib.suppress(CompressError):     # a model that fails on its samples: the examinations say so
        facts["activations_bytes"] = peak_bytes(patient.seen)
    return facts
