"""`compress targets`."""

from __future__ import annotations

from typing import Any

import click

from compress.commands.shared import common, show


@click.command()
@common
def targets(quiet: bool, as_json: bool) -> None:
    """List the targets."""
    import dataclasses

    from compress.targets import targets as rows

    def table() -> Any:
        from rich.table import Table

        view = Table("target", "backend", "scheme", "float", "description", "verified")
        for row in rows().values():
            view.add_row(row.name, row.backend, row.scheme, row.float, row.description, row.verified)
        return view

    show([dataclasses.asdict(row) for row in rows().values()], as_json, table)
