"""What the report reads of each stage's own summary, by the stage's name.

Keys that the report does not read are kept in report.json and ignored here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0)]
Amount = Annotated[float, msgspec.Meta(ge=0)]
Positive = Annotated[float, msgspec.Meta(gt=0)]


class Open(msgspec.Struct, frozen=True, kw_only=True):
    """A section that another stage writes: these keys at least."""


class ComponentChange(Open, frozen=True, kw_only=True):
    name: str
    macs_before: Count
    macs_after: Count
    params_before: Count
    params_after: Count


class LostPoints(Open, frozen=True, kw_only=True):
    """A drop in hundredths of the metric, with its interval."""

    points: float
    interval: tuple[float, float]
    verdict: str = ""


class Effect(Open, frozen=True, kw_only=True):
    """What a change does: ``noise`` is the power of the outputs' difference over their own, None where infinite."""

    noise: Amount | None = None
    sqnr_db: float | None = None
    drop: LostPoints | None = None
    failure: str | None = None


class PrunePoint(Effect, frozen=True, kw_only=True):
    """Every group of a part keeps the share ``kept`` of its units, all of the model ``macs`` of its MACs."""

    kept: Positive
    macs: Amount


class PruneCurve(Open, frozen=True, kw_only=True):
    kind: str
    name: str
    groups: Count
    modality: str = ""
    points: list[PrunePoint]


class PruneCurves(Open, frozen=True, kw_only=True):
    """What each part costs that is pruned alone; ``whole`` is the metric's value of the model as it is."""

    metric: str | None = None
    whole: float | None = None
    samples: Count
    parts: list[PruneCurve]


class PruneSummary(Open, frozen=True, kw_only=True):
    macs_before: Count
    macs_after: Count
    components: list[ComponentChange] = []
    removed: dict[str, Count] = {}  # module -> channels removed
    skipped: dict[str, str] = {}  # module -> why nothing could be removed
    gave_nothing: list[str] = []  # components that are as large as before
    check_max_abs: float | None = None  # largest output difference between the zeroed original and the result
    sensitivity: PruneCurves | None = None


class Epoch(Open, frozen=True, kw_only=True):
    epoch: Amount
    loss: float
    metric: float | None = None


class DistillSummary(Open, frozen=True, kw_only=True):
    before: float | None = None  # the metric before the first epoch and after the last
    after: float | None = None
    history: list[Epoch] = []
    kept_epoch: Count | None = None  # the epoch whose weights were kept, 0 for those it began with


class Operator(Open, frozen=True, kw_only=True):
    """An operator with weights, and why it stays float where it does."""

    path: str
    op: str
    component: str
    precision: str  # "int8", "int8 weights", "int4 weights" or "float"
    reason: str | None = None


class CoveredInput(Open, frozen=True, kw_only=True):
    """``present`` samples of those used, ``present_of`` of all, hold a value other than zero."""

    modality: str
    present: Count
    present_of: Count
    distinct: Count


class CoveredSize(Open, frozen=True, kw_only=True):
    """A dynamic dimension: what it may be, and the least and the most that samples are."""

    min: Count
    opt: Count
    max: Count
    least: Count
    most: Count


class CoveredLabels(Open, frozen=True, kw_only=True):
    classes: Count
    lost: Count
    fewest: tuple[str, Count]
    most: tuple[str, Count]


class CoveredSamples(Open, frozen=True, kw_only=True):
    """``samples`` of the ``of`` in a set; their least, middle and greatest length."""

    set: str
    samples: Count
    of: Count
    lengths: tuple[Count, Count, Count]
    inputs: dict[str, CoveredInput] = {}
    sizes: dict[str, CoveredSize] = {}
    labels: CoveredLabels | None = None


class CoveredComponent(Open, frozen=True, kw_only=True):
    """``still`` of its ``tensors`` are the same for every sample."""

    tensors: Count
    still: Count
    values_least: Count


class CoveredTensor(Open, frozen=True, kw_only=True):
    layer: str
    clipped: Annotated[float, msgspec.Meta(ge=0, le=1)]


class Finding(Open, frozen=True, kw_only=True):
    kind: str
    where: str
    text: str


class Coverage(Open, frozen=True, kw_only=True):
    samples: list[CoveredSamples] = []
    components: dict[str, CoveredComponent] = {}
    tensors: list[CoveredTensor] = []
    findings: list[Finding] = []


class QuantizeSummary(Open, frozen=True, kw_only=True):
    scheme: str
    ranges: str  # the method, such as "percentile"
    samples: Count
    operators: list[Operator] = []
    size_bytes: dict[str, Count] = {}  # component -> bytes of its weights once quantized
    coverage: Coverage = Coverage()


class GraphEngine(Open, frozen=True, kw_only=True):
    precision: str
    digest: str


class BuiltEngine(Open, frozen=True, kw_only=True):
    """What was built of a model for a target: an engine of each of its ``graphs``."""

    target: str
    precision: str
    backend: str | None = None
    state: str = "runnable"
    digest: str | None = None
    size_bytes: Count | None = None
    graphs: dict[str, GraphEngine] = {}


class NotBuilt(Open, frozen=True, kw_only=True):
    target: str
    reason: str
    precision: str | None = None


class ExportSummary(Open, frozen=True, kw_only=True):
    built: list[BuiltEngine] = []
    not_built: list[NotBuilt] = []


class SensitivePart(Open, frozen=True, kw_only=True):
    """A part alone in int8, and alone in float; None where the work ended before."""

    kind: str
    name: str
    layers: Count
    modality: str = ""
    reached: bool = True
    int8: Effect | None = None
    float: Effect | None = None         # the last field: it hides the type of that name


class SensitivitySummary(Open, frozen=True, kw_only=True):
    metric: str | None = None
    samples: Count
    in_float: float | None = None
    everything: Effect | None = None
    complete: bool = True
    parts: list[SensitivePart] = []


class Predicted(Open, frozen=True, kw_only=True):
    points: float
    latency_ms: dict[str, float] = {}


class Mixture(Open, frozen=True, kw_only=True):
    """A point of the trade-off: which parts are float, what was guessed, and what was measured."""

    name: str
    predicted: Predicted
    drop: LostPoints | None = None
    latency_ms: dict[str, Positive] | None = None
    failure: str | None = None
    float: list[str]                    # the last field: it hides the type of that name


class MixedPart(Open, frozen=True, kw_only=True):
    name: str
    layers: Count
    choice: str
    why: str = ""
    noise: Amount | None = None
    points: float | None = None
    times_us: dict[str, dict[str, Amount]] = {}     # target -> choice -> time in an engine of that choice alone


class BudgetSummary(Open, frozen=True, kw_only=True):
    metric: str
    max_drop: Amount
    outcome: str
    sentence: str
    complete: bool = True
    best: str | None = None
    timed: list[str] = []
    untimed: dict[str, str] = {}        # target -> why it was not
    points: list[Mixture] = []
    parts: list[MixedPart] = []


class RoundComponent(Open, frozen=True, kw_only=True):
    """``modality`` is what reaches it: "image", or "image + text"."""

    macs: Count
    params: Count
    modality: str


class RoundFigures(Open, frozen=True, kw_only=True):
    """An engine of a round, timed beside the original's in fp32; ``components_us`` add up to its latency."""

    latency_ms: Positive
    speedup: Positive
    interval: tuple[float, float]
    score: float
    drop: LostPoints
    size_bytes: Count
    components_us: dict[str, Amount] = {}


class RoundStage(Open, frozen=True, kw_only=True):
    stage: str
    target_scheme: str | None = None
    seconds: Amount = 0.0
    summary: dict[str, Any] = {}


class Round(Open, frozen=True, kw_only=True):
    """``measured`` is by target and precision, ``parts`` by scheme; ``speedup`` and ``points`` are the worst of them.

    ``began`` is the round whose float model it pruned until it was ``asked`` times as fast.
    """

    number: Count
    asked: Positive
    began: Count | None = None
    failure: str | None = None
    speedup: Positive | None = None
    points: float | None = None
    ships: dict[str, str] = {}          # target -> the precision that would ship
    macs: Count = 0
    params: Count = 0
    components: dict[str, RoundComponent] = {}
    measured: dict[str, dict[str, RoundFigures]] = {}
    parts: dict[str, list[SensitivePart]] = {}
    stages: list[RoundStage] = []


class Search(Open, frozen=True, kw_only=True):
    """``speedup`` is what was asked for, None for the most that ``max_drop`` allows."""

    metric: str
    max_drop: Amount
    speedup: Positive | None = None
    outcome: str
    sentence: str
    complete: bool = True
    kept: Count
    targets: list[str]
    untimed: dict[str, str] = {}        # target -> why it was not
    rounds: list[Round]


SUMMARIES: Mapping[str, type[Open]] = {
    "prune": PruneSummary,
    "distill": DistillSummary,
    "quantize": QuantizeSummary,
    "budget": BudgetSummary,
    "sensitivity": SensitivitySummary,
    "export": ExportSummary,
}
