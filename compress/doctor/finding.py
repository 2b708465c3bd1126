"""What an examination finds, and all findings of one model together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from compress.errors import CompressError

Severity = Literal["blocks", "costs speed", "note"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that will not work, will be slow, or is worth knowing.

    ``source`` is the line of the user's code, ``file:line: code``: for their terminal, never part of a record.
    """

    examination: str
    severity: Severity
    what: str
    where: str = ""                              # module path, operator, input or output
    concerns: tuple[str, ...] = ()               # stages and targets
    remedy: str = ""
    source: str | None = None

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise CompressError(f"severity {self.severity!r} of a finding is unknown: expected one of {SEVERITIES}")

    def to_json(self) -> dict[str, Any]:
        """Everything but the user's source line."""
        return {
            "examination": self.examination, "severity": self.severity, "what": self.what, "where": self.where,
            "concerns": list(self.concerns), "remedy": self.remedy,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The findings, the worst first; ``facts`` are numbers of the model, as far as it could be traced."""

    name: str
    targets: tuple[str, ...]
    findings: tuple[Finding, ...]
    facts: Mapping[str, int] = field(default_factory=dict)

    @property
    def blocked(self) -> bool:
        """Whether something keeps a stage or a target from working."""
        return any(finding.severity == "blocks" for finding in self.findings)

    def of(self, examination: str) -> tuple[Finding, ...]:
        """The findings of one examination."""
        return tuple(finding for finding in self.findings if finding.examination == examination)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": "compress.diagnosis", "version": 1, "name": self.name, "targets": list(self.targets),
            "blocked": self.blocked, "facts": dict(self.facts), "findings": [f.to_json() for f in self.findings],
        }  # fmt: skip


def size_of(count: float) -> str:
    """Bytes for people."""
    units = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1.0))
    unit, factor = next((unit, factor) for unit, factor in units if count >= factor or factor == 1)
    return f"{count / factor:.3g} {unit}"
