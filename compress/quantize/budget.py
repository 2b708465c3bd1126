"""A budget: leave in float what costs too much accuracy, and what is slower in int8, and keep the rest in int8.

In decoders layers may have int4 weights besides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

from compress.errors import CompressError

if TYPE_CHECKING:
    from calibration import CalibrationSet
    from compress.metrics import Metric
    from compress.model import Model
    from compress.quantize.choices import Choice
    from compress.quantize.mixing import Point
    from compress.targets import Target

FORMAT, VERSION = "compress.budget", 1


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """How much may be lost, and how long is searched."""

    when: Literal["always", "needed", "never"] = field(
        default="always", metadata={"help": "Also where int8 alone keeps the budget (it may be slower here and there), "
                                            "only where it does not, or never."}
    )  # fmt: skip
    max_drop: float = field(default=0.01, metadata={"help": "Accuracy budget, in the metric's own unit."})
    by: Literal["auto", "layer", "block"] = field(
        default="auto", metadata={"help": "What is int8 or float as one: layers, or blocks where there are many."}
    )
    int4: Literal["auto", "always", "never"] = field(
        default="auto", metadata={"help": "Whether linear layers may have int4 weights too: by default in a model that "
                                          "answers token by token, whose time goes into reading weights."}
    )  # fmt: skip
    samples: int = field(
        default=256, metadata={"help": "Samples on which each part's cost is measured; mixtures are on all."}
    )
    rounds: int = field(default=8, metadata={"help": "Mixtures that are built and measured at most."})
    restarts: int = field(default=3, metadata={"help": "Processes in which each engine is timed."})

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop < float("inf"):
            raise CompressError(f"max_drop is {self.max_drop}: it must be finite and not negative")
        for name in ("by", "when", "int4"):
            known = get_args(get_type_hints(type(self))[name])
            if getattr(self, name) not in known:
                raise CompressError(f"{name} is {getattr(self, name)!r}: expected one of {', '.join(known)}")
        for name, least in (("samples", 2), ("rounds", 1), ("restarts", 1)):
            if getattr(self, name) < least:
                raise CompressError(f"{name} is {getattr(self, name)}: it must be at least {least}")


@dataclass(frozen=True, kw_only=True)
class PartChoice:
    """What became of a part, and why.

    ``noise`` is what it alone in int8 adds to the outputs, ``drop`` what that costs the metric, in the metric's unit;
    ``times_us`` are by target and choice, as the backends' profiles have them.
    """

    name: str
    components: tuple[str, ...]
    layers: int
    choice: str
    why: str
    noise: float | None
    drop: float | None
    times_us: Mapping[str, Mapping[str, float]]

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name, "components": list(self.components), "layers": self.layers, "choice": self.choice,
            "why": self.why, "noise": self.noise, "points": None if self.drop is None else 100 * self.drop,
            "times_us": {target: dict(times) for target, times in self.times_us.items()},
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class BudgetResult:
    """``model`` has ``best``'s layers in float; ``points`` is the trade-off curve, guesses and what was measured.

    ``outcome`` is "met" where the best keeps the budget, and "not met" where nothing that was tried does: it is the
    nearest then or, where the model in float loses more already, the fastest that adds no more than the budget to it.
    ``complete`` is False where the search was interrupted: the best is then the best so far.
    """

    model: Model
    best: Point | None
    points: tuple[Point, ...]
    parts: tuple[PartChoice, ...]
    floats: tuple[int, ...]                  # the choices that are float
    outcome: Literal["met", "not met"]
    sentence: str
    max_drop: float
    metric: str
    data: str
    timed: tuple[str, ...]                   # targets whose latency was measured
    untimed: Mapping[str, str]               # target -> why it was not
    complete: bool = True

    def to_json(self) -> dict[str, Any]:
        """The record: JSON values only."""
        names = [part.name for part in self.parts]
        return {
            "format": FORMAT, "version": VERSION, "metric": self.metric, "data": self.data, "max_drop": self.max_drop,
            "outcome": self.outcome, "sentence": self.sentence, "complete": self.complete, "timed": list(self.timed),
            "untimed": dict(self.untimed), "best": None if self.best is None else self.best.name,
            "points": [point.to_json(names, self.floats, self.max_drop) for point in self.points],
            "parts": [part.to_json() for part in self.parts],
        }  # fmt: skip


def budget(
    model: Model,
    validation: CalibrationSet,
    *,
    metric: Metric,
    targets: Sequence[Target],
    config: BudgetConfig = BudgetConfig(),
    reference: Model | None = None,
    choices: Sequence[Choice] | None = None,
    scratch: Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> BudgetResult:
    """Choose int8 or float for each part of ``model``, so that the drop stays within budget and latency is the least.

    The time of each part is measured on the targets, in an engine of one precision and in one of the other; its cost in
    the prepared program. What is chosen is built, timed and scored there as well. A target that cannot be run from here
    is chosen for by what the others measure; where there is none, by multiply-accumulates.

    It ends with the best so far and what was measured: also where nothing keeps the budget, and on an interruption
    (Ctrl-C).

    Args:
        model: a quantized model.
        validation: samples with targets of the metric.
        metric: whose drop ``config.max_drop`` limits.
        targets: what the model will run on, of one scheme.
        config: see :class:`BudgetConfig`.
        reference: the model that drops are counted from; by default ``model`` in float.
        choices: what a part may be, int8 first and one of them float; by default int8, float and, as ``config.int4``
            has it, int4 weights.
        scratch: folder for what was measured, from which a run with the same inputs and settings continues.
        progress: called with (steps done, steps in all, what comes).

    Raises:
        CompressError: if the model is not quantized, nothing in it runs in int8, the set has no targets, the metric
            fails on the float model, a target has another scheme, or ``config.when`` is "never".
    """
    from compress.distill.forcing import loops_of
    from compress.quantize.choices import CHOICES, WITH_INT4
    from compress.quantize.mixer import Mixer
    from compress.quantize.sensitivity import check

    layers = check(model)
    assert model.quantization is not None
    if config.when == "never":
        raise CompressError("when is 'never': then there is nothing to do; leave the budget out")
    if not targets:
        raise CompressError("no target is given: latency is that of a target")
    for target in targets:
        if target.scheme != model.quantization.scheme:
            raise CompressError(
                f"model {model.name!r} is quantized with the scheme {model.quantization.scheme!r}, target "
                f"{target.name!r} runs {target.scheme!r}: quantize the float model for it"
            )
    int4 = config.int4 == "always" or (config.int4 == "auto" and bool(loops_of(model)))
    mixer = Mixer(
        model, layers, validation, metric=metric, targets=targets, config=config, reference=reference,
        choices=(WITH_INT4 if int4 else CHOICES) if choices is None else tuple(choices), scratch=scratch,
        progress=progress,
    )  # fmt: skip
    return mixer.run()
