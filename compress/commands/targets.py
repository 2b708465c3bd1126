"""`compress targets`: what engines are made for, and the devices that are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from compress.commands.shared import common, show, written

if TYPE_CHECKING:
    from compress.probe import Finding
    from compress.targets import Target


class _ListByDefault(click.Group):
    """``compress targets`` alone, or with options of ``list``, lists."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_ListByDefault)
def targets() -> None:
    """List, show, add and probe targets."""


@targets.command("list")
@common
def list_(quiet: bool, as_json: bool) -> None:
    """List the targets."""
    import dataclasses

    from compress.targets import targets as rows

    def table() -> Any:
        from rich.table import Table

        view = Table("target", "backend", "scheme", "float", "reached", "description", "verified")
        for row in rows().values():
            view.add_row(row.name, row.backend, row.scheme, row.float, _reached(row), row.description, row.verified)
        return view

    show([dataclasses.asdict(row) for row in rows().values()], as_json, table)


@targets.command("show")
@click.argument("name")
@common
def show_(name: str, quiet: bool, as_json: bool) -> None:
    """Show every field of target NAME, and what a probe of its device found."""
    import dataclasses

    from compress.probe import contradictions, read_finding
    from compress.targets import get_target, row_of

    row, used = row_of(name), get_target(name)
    finding = read_finding(row)
    against = [] if finding is None else contradictions(row, finding.facts)
    value = {
        "row": dataclasses.asdict(row),
        "used": dataclasses.asdict(used),
        "found": None if finding is None else dataclasses.asdict(finding),
        "contradictions": against,
    }

    def text() -> Any:
        from rich.console import Group

        return Group(_row(row, used), "Not probed." if finding is None else _found(finding, against))

    show(value, as_json, text)


@targets.command("add")
@click.argument("name")
@click.option("--address", required=True, help="What you would give to ssh: a host, user@host or a name of your ssh "
                                               "configuration, where ports belong.")  # fmt: skip
@click.option("--like", help="The row that a new target is copied from.")
@click.option("--python", help="The interpreter there, 3.10 or newer; a name or a path.")
@click.option("--here", is_flag=True, help="Write into ./targets.toml instead of ~/.config/compress/targets.toml.")
@common
def add(name: str, address: str, like: str | None, python: str | None, here: bool, quiet: bool, as_json: bool) -> None:
    """Give target NAME an address, or add a new target like another one."""
    import dataclasses

    from compress.targetfile import add_target

    file, row = add_target(name, address=address, like=like, python=python, here=here)
    sentence = f"target {row.name!r} is at {row.address}; `compress targets probe {row.name}` reads what it is"
    written(file, dataclasses.asdict(row), as_json, sentence)


@targets.command("probe")
@click.argument("name")
@click.option("--emulate", is_flag=True, help="Probe the emulated device instead of the real one.")
@common
def probe(name: str, emulate: bool, quiet: bool, as_json: bool) -> None:
    """Read what the device of target NAME really is, and keep it."""
    import dataclasses

    from compress.probe import contradictions
    from compress.probe import probe as probe_device
    from compress.progress import Progress
    from compress.targets import row_of

    row = row_of(name)
    finding = probe_device(row, emulate=emulate, progress=Progress(quiet=quiet))
    against = contradictions(row, finding.facts)
    show({**dataclasses.asdict(finding), "contradictions": against}, as_json, lambda: _found(finding, against))


def _row(row: Target, used: Target) -> Any:
    """Every field as it is written, and where another value is used instead."""
    import dataclasses

    fields = {}
    for key, value in dataclasses.asdict(row).items():
        now = getattr(used, key)
        fields[key] = _shown(value) if now == getattr(row, key) else f"{_shown(value)}; {_shown(now)} is used, as found"
    return _table("field", "value", fields)


def _found(finding: Finding, against: list[str]) -> Any:
    from rich.console import Group

    where = "an emulated device" if finding.emulated else finding.address or "this machine"
    facts = {
        key: f"{value / 2**30:.1f} GiB" if key == "memory_bytes" and isinstance(value, int) else _shown(value)
        for key, value in finding.facts.items()
    }
    table = _table("found", f"{finding.target}: {where}, {finding.when}", facts)
    return Group(table, *(_plain(f"warning: {sentence}") for sentence in against))


def _table(key: str, value: str, rows: Mapping[str, str]) -> Any:
    from rich.table import Table

    view = Table(key, value)
    for name, text in rows.items():
        view.add_row(name, _plain(text))
    return view


def _plain(text: str) -> Any:
    """What a device says, as it is: "[N/A]" is no markup, and an escape sequence does not reach the terminal."""
    from rich.text import Text

    return Text("".join(character if character.isprintable() else "?" for character in text))


def _reached(row: Target) -> str:
    return row.address or ("here" if row.reach == "local" else "no address")


def _shown(value: Any) -> str:
    """A value in a table's cell: numbers short, lists and objects in a line, nothing as a dash."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(entry)}" for key, entry in value.items() if entry is not None) or "-"
    if isinstance(value, (list, tuple)):
        return ", ".join(_shown(entry) for entry in value) or "-"
    return str(value)
