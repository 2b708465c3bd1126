"""What stays in float in a quantized model, and why, in a few lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SHOWN = 8       # reasons
NAMED = 3       # operators of each


def floats(operators: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each kind of operator and reason, that of most operators first, from the record of ``quantize``."""
    groups: dict[tuple[str, str], list[str]] = {}
    for one in operators:
        if one["precision"] == "float":
            groups.setdefault((one["op"], one["reason"]), []).append(one["path"] or f"graph {one['graph']!r}")
    lines = [f"{len(paths)} {op} ({_named(paths)}): {reason}"
             for (op, reason), paths in sorted(groups.items(), key=lambda item: -len(item[1]))]  # fmt: skip
    rest = [f"{len(lines) - SHOWN} more reasons, which --json tells"] if len(lines) > SHOWN + 1 else lines[SHOWN:]
    return [f"in float: {line}" for line in (*lines[:SHOWN], *rest)]


def _named(paths: Sequence[str]) -> str:
    different = list(dict.fromkeys(paths))
    more = f" and {len(different) - NAMED} more" if len(different) > NAMED else ""
    return ", ".join(different[:NAMED]) + more
