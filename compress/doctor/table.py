"""The diagnosis for a terminal."""

from __future__ import annotations

from typing import Any

from compress.doctor.finding import Diagnosis, Finding, size_of

_STYLES = {"blocks": "bold red", "costs speed": "yellow", "note": "dim"}


def table(diagnosis: Diagnosis) -> Any:
    """One row a finding, the worst first: what and where, whom it concerns, what to do."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    rows = Table(show_lines=True, expand=True)
    rows.add_column("", no_wrap=True)
    rows.add_column("what and where", ratio=6)
    rows.add_column("concerns", width=18, overflow="fold")  # a ratio would cut the name of a target
    rows.add_column("nearest remedy", ratio=4)
    for finding in diagnosis.findings:
        style = _STYLES[finding.severity]
        what = Text(finding.what)
        if finding.where:
            what.append(f"\nin {finding.where}", style="cyan")
        if finding.source:
            what.append(f"\n{finding.source}", style="bold")
        rows.add_row(Text(finding.severity, style=style), what, Text(", ".join(finding.concerns)), Text(finding.remedy))
    return Group(*([rows] if diagnosis.findings else []), _facts(diagnosis), _verdict(diagnosis))


def _facts(diagnosis: Diagnosis) -> Any:
    from rich.text import Text

    facts = diagnosis.facts
    parts = [f"{facts['parameters']:,} parameters", f"{size_of(facts['weights_bytes'])} as they are"]
    if "int8_weights_bytes" in facts:
        parts.append(f"about {size_of(facts['int8_weights_bytes'])} in int8")
    if "activations_bytes" in facts:
        parts.append(f"{size_of(facts['activations_bytes'])} of activations on the example")
    return Text(f"{diagnosis.name}: {', '.join(parts)}")


def _verdict(diagnosis: Diagnosis) -> Any:
    from rich.text import Text

    blocking = [finding for finding in diagnosis.findings if finding.severity == "blocks"]
    names = ", ".join(diagnosis.targets)
    if not blocking:
        return Text(f"Nothing blocks it on {names}.", style="green")
    return Text(f"{_counted(blocking)} block{'s' * (len(blocking) == 1)} it (asked for {names}).", style="bold red")


def _counted(findings: list[Finding]) -> str:
    return "1 finding" if len(findings) == 1 else f"{len(findings)} findings"
