"""Parity: the same feeds through every form of a model, from torch to each engine, and how far each step moved them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.errors import CompressError
from runtimes.engine import Precision
from runtimes.spec import Feed

if TYPE_CHECKING:
    from rich.table import Table

FORMAT, VERSION = "compress.parity", 1


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a step may differ from the step it was made from; beyond it the step is flagged."""

    cosine: float                      # at least
    disagreement: float = 0.01         # share of the answers that may differ; one answer always may


SAME_ARITHMETIC: Mapping[str, Limits] = {
    "fp32": Limits(cosine=0.999),
    "bf16": Limits(cosine=0.995),      # 8 bits of mantissa
    "fp16": Limits(cosine=0.999),
    "int8": Limits(cosine=0.99),       # a rounding that falls to the other side moves a value by a whole step
}
"""Limits of a step that only changes who computes: an ONNX against its program, an engine against its ONNX."""

LESS_PRECISE = Limits(cosine=0.95, disagreement=0.05)
"""Limits of the step that quantizes. What it costs is the metric's to judge: this only finds a broken one."""

_BITS = {"fp32": 32, "bf16": 16, "fp16": 16, "int8": 8}


@dataclass(frozen=True, kw_only=True)
class ParityStep:
    """One form of the model. ``after`` names the step it was made from; by default the one listed before it."""

    name: str
    kind: str                          # "torch", "onnx", or the engine's backend
    precision: Precision
    run: Callable[[Feed], Mapping[str, np.ndarray]]
    after: str | None = None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How one output of a step differs from the same output of another, over all feeds.

    ``cosine`` is over all values as one vector; ``sqnr_db`` is ``10 log10(sum(ref²) / sum(err²))``, None where the two
    are equal (``exact``). ``agreement`` is the share of equal answers (argmax over the last axis) among ``answers``,
    None where the output is no answer. The distances are None where values are not finite; ``not_finite`` counts them.
    Integers have none: they are answers, and each sample's are equal or not.
    """

    max_abs: float | None
    cosine: float | None
    sqnr_db: float | None
    exact: bool
    agreement: float | None
    answers: int
    not_finite: int = 0

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """A step's differences by output name, from the reference and from the step it was made from; what is wrong."""

    name: str
    kind: str
    precision: Precision
    after: str | None                  # None for the reference itself
    from_reference: Mapping[str, Difference] = field(default_factory=dict)
    from_previous: Mapping[str, Difference] = field(default_factory=dict)
    flags: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "kind": self.kind, "precision": self.precision, "after": self.after,
                "from_reference": {name: difference.to_json() for name, difference in self.from_reference.items()},
                "from_previous": {name: difference.to_json() for name, difference in self.from_previous.items()},
                "flags": list(self.flags)}


@dataclass(frozen=True, kw_only=True)
class ParityResult:
    """All steps, the reference first. ``noise_floor``: by output, the largest ``max_abs`` of an fp32 step from it."""

    feeds: int
    samples: int
    steps: tuple[StepResult, ...]
    noise_floor: Mapping[str, float]

    @property
    def passed(self) -> bool:
        return not any(step.flags for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "version": VERSION, "feeds": self.feeds, "samples": self.samples,
                "passed": self.passed, "noise_floor": dict(self.noise_floor),
                "steps": [step.to_json() for step in self.steps]}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ParityResult:
        """The result read back from its JSON.

        Raises:
            CompressError: if it is another format or version, or damaged.
        """
        import msgspec

        if (record.get("format"), record.get("version")) != (FORMAT, VERSION):
            raise CompressError(f"a parity record has format {FORMAT!r} version {VERSION}, this one says "
                                f"{record.get('format')!r} version {record.get('version')!r}: run parity again")
        try:
            return msgspec.convert(record, cls)
        except msgspec.ValidationError as error:
            raise CompressError(f"the parity record is damaged: {error}: run parity again") from error


def parity(
    steps: Sequence[ParityStep],
    feeds: Iterable[Feed],
    *,
    answers: Collection[str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> ParityResult:
    """Run every feed through every step and measure each against the reference and against the step it was made from.

    Outputs are compared feed by feed and dropped, so memory does not grow with the number of feeds.

    Args:
        steps: the reference (torch, fp32) first. A step is flagged where an output is not finite, or differs from that
            of the step it was made from beyond the limits above and beyond the noise floor of the fp32 steps.
        feeds: the feeds, each with a leading sample axis.
        answers: the outputs whose argmax over the last axis is the model's answer; by default, every float output of
            two or three dimensions: of maps and pictures the largest value is none.
        progress: called with the number of feeds done.

    Raises:
        CompressError: if there are no feeds, fewer than two steps, a name twice, an ``after`` that is not an earlier
            step, or outputs that differ in name or shape; names the step and the output.
    """
    parents = _parents(steps)
    sums: dict[tuple[str, str, str], _Sums] = {}
    count = samples = 0
    for feed in feeds:
        found: dict[str, dict[str, np.ndarray]] = {}
        for step in steps:
            found[step.name] = {name: np.asarray(value) for name, value in step.run(feed).items()}
            for other in {steps[0].name, parents[step.name]} - {None, step.name}:
                _compare(step.name, found[step.name], str(other), found[str(other)], answers, sums)
        count += 1
        samples += len(next(iter(feed.values())))
        if progress:
            progress(count)
    if not count:
        raise CompressError("parity needs at least one feed, and there is none")

    def between(name: str, other: str | None) -> dict[str, Difference]:
        return {key[2]: value.difference() for key, value in sums.items() if key[:2] == (name, other)}

    reference = steps[0].name
    floor = _noise_floor(between(step.name, reference) for step in steps[1:] if step.precision == "fp32")
    precisions = {step.name: step.precision for step in steps}
    results = []
    for step in steps:
        parent = parents[step.name]
        before = between(step.name, parent)
        flags = () if parent is None else _flags(parent, precisions[parent], step, before, floor)
        results.append(StepResult(name=step.name, kind=step.kind, precision=step.precision, after=parent,
                                  from_reference=between(step.name, reference), from_previous=before, flags=flags))
    return ParityResult(feeds=count, samples=samples, steps=tuple(results), noise_floor=floor)


def joined(results: Sequence[ParityResult], *, feeds: int, samples: int) -> ParityResult:
    """One result of the same steps on several outputs, those of each graph say; no two of one name."""
    steps = []
    for same in zip(*(one.steps for one in results), strict=True):
        reference = {name: found for one in same for name, found in one.from_reference.items()}
        previous = {name: found for one in same for name, found in one.from_previous.items()}
        flags = tuple(flag for one in same for flag in one.flags)
        steps.append(replace(same[0], from_reference=reference, from_previous=previous, flags=flags))
    floor = {name: value for one in results for name, value in one.noise_floor.items()}
    return ParityResult(feeds=feeds, samples=samples, steps=tuple(steps), noise_floor=floor)


def table(result: ParityResult) -> Table:
    """The result as a table: one row per step and output, errors against the reference and the step before."""
    from rich.table import Table

    view = Table(title=f"Parity over {result.samples} samples")
    for heading in ("step", "precision", "output", "made from"):
        view.add_column(heading)
    for heading in ("max abs", "cosine", "SQNR dB", "answers", "cosine to that", "SQNR dB", "answers"):
        view.add_column(heading, justify="right")
    view.add_column("flag", style="red")
    for step in result.steps[1:]:
        for name, whole in step.from_reference.items():
            last = step.from_previous[name]
            view.add_row(step.name, step.precision, name, step.after, _number(whole.max_abs, ".2e"), *_cells(whole),
                         *_cells(last), "; ".join(flag for flag in step.flags if flag.startswith(f"output {name!r}")))
    return view


@dataclass
class _Sums:
    """Running sums of one output of one step against another's, in float64."""

    max_abs: float = 0.0
    reference: float = 0.0
    candidate: float = 0.0
    product: float = 0.0
    error: float = 0.0
    not_finite: int = 0
    equal: int = 0
    answers: int = 0
    integers: bool = False

    def add(self, candidate: np.ndarray, reference: np.ndarray, is_answer: bool) -> None:
        if reference.dtype.kind != "f":
            same = (candidate == reference).reshape(len(reference), -1).all(axis=1)
            self.equal += int(same.sum())
            self.answers += same.size
            self.integers = True
            return
        if is_answer:
            same = candidate.argmax(axis=-1) == reference.argmax(axis=-1)
            self.equal += int(same.sum())
            self.answers += same.size
        a, b = candidate.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
        self.not_finite += int((~(np.isfinite(a) & np.isfinite(b))).sum())
        if self.not_finite:
            return
        error = a - b
        self.max_abs = max(self.max_abs, float(np.abs(error).max(initial=0.0)))
        self.error += float(error @ error)
        self.reference += float(b @ b)
        self.candidate += float(a @ a)
        self.product += float(a @ b)

    def difference(self) -> Difference:
        agreement = self.equal / self.answers if self.answers else None
        if self.not_finite or self.integers:
            exact = self.integers and self.equal == self.answers
            return Difference(max_abs=None, cosine=None, sqnr_db=None, exact=exact, agreement=agreement,
                              answers=self.answers, not_finite=self.not_finite)
        exact = self.error == 0.0
        norms = math.sqrt(self.reference) * math.sqrt(self.candidate)
        cosine = 1.0 if exact else self.product / norms if norms else 0.0
        # A reference of zeros with any error has no signal: the ratio is 0, and its logarithm is not a number to print.
        sqnr = None if exact or not self.reference else 10 * math.log10(self.reference / self.error)
        return Difference(max_abs=self.max_abs, cosine=min(1.0, cosine), sqnr_db=sqnr, exact=exact, agreement=agreement,
                          answers=self.answers)


def _parents(steps: Sequence[ParityStep]) -> dict[str, str | None]:
    if len(steps) < 2:
        raise CompressError(f"parity compares steps, and got {[step.name for step in steps]}: give at least two")
    parents: dict[str, str | None] = {}
    for step in steps:
        if step.name in parents:
            raise CompressError(f"parity step {step.name!r} is listed twice: give each its own name")
        if step.after is not None and step.after not in parents:
            raise CompressError(f"parity step {step.name!r} is after {step.after!r}, which is not listed before it: "
                                f"those are {list(parents)}")
        parents[step.name] = step.after or next(reversed(parents), None)
    return parents


def _compare(
    name: str, candidate: Mapping[str, np.ndarray], other: str, reference: Mapping[str, np.ndarray],
    answers: Collection[str] | None, sums: dict[tuple[str, str, str], _Sums],
) -> None:
    if candidate.keys() != reference.keys():
        raise CompressError(f"parity step {name!r} has the outputs {sorted(candidate)}, "
                            f"{other!r} has {sorted(reference)}")
    for output, value in candidate.items():
        if value.shape != reference[output].shape:
            raise CompressError(f"parity step {name!r}: output {output!r} has shape {value.shape}, "
                                f"{reference[output].shape} in {other!r}")
        is_answer = output in answers if answers is not None else value.ndim in (2, 3) and value.dtype.kind == "f"
        sums.setdefault((name, other, output), _Sums()).add(value, reference[output], is_answer)


def _noise_floor(steps: Iterable[Mapping[str, Difference]]) -> dict[str, float]:
    floor: dict[str, float] = {}
    for differences in steps:
        for output, difference in differences.items():
            if difference.max_abs is not None:
                floor[output] = max(floor.get(output, 0.0), difference.max_abs)
    return floor


def _flags(
    parent: str, parent_precision: Precision, step: ParityStep, differences: Mapping[str, Difference],
    floor: Mapping[str, float],
) -> tuple[str, ...]:
    is_reduction = _BITS[step.precision] < _BITS[parent_precision]
    limits = LESS_PRECISE if is_reduction and step.precision == "int8" else SAME_ARITHMETIC[step.precision]
    flags = []
    for output, found in differences.items():
        where = f"output {output!r} against {parent!r}:"
        if found.not_finite:
            flags.append(f"{where} {found.not_finite} values are not finite")
            continue
        # An fp32 step is the noise floor, so it is held to the limits alone. Of integers, fp32 ones alone are: a token
        # that falls to the other side takes all that follow it along.
        if step.precision != "fp32" and (found.max_abs is None or found.max_abs <= floor.get(output, 0.0)):
            continue
        if found.cosine is not None and found.cosine < limits.cosine:
            flags.append(f"{where} cosine {found.cosine:.4f}, expected at least {limits.cosine}")
        if found.agreement is not None:
            differing = round((1 - found.agreement) * found.answers)
            if differing > max(1, limits.disagreement * found.answers):
                flags.append(f"{where} {differing} of {found.answers} answers differ, "
                             f"expected at most {limits.disagreement:.0%}")
    return tuple(flags)


def _cells(difference: Difference) -> tuple[str, str, str]:
    sqnr = "exact" if difference.exact else _number(difference.sqnr_db, ".1f")
    return _number(difference.cosine, ".5f"), sqnr, _number(difference.agreement, ".2%")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
