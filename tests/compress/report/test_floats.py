"""The lines that say what stays in float: by reason, the most frequent first, and few of them."""

from typing import Any

from compress.report.floats import floats


def row(path: str, op: str = "linear", reason: str | None = "it is odd", graph: str = "forward") -> dict[str, Any]:
    return {"graph": graph, "path": path, "op": op, "precision": "int8" if reason is None else "float",
            "reason": reason}  # fmt: skip


def test_operators_are_gathered_by_what_they_are_and_why() -> None:
    rows = [row("words", "embedding", "it is small"), row("fine", reason=None), row("e", "gru"),
            *map(row, ("a", "b", "a", "c", "d", ""))]  # fmt: skip
    assert floats(rows) == [
        "in float: 6 linear (a, b, c and 2 more): it is odd",
        "in float: 1 embedding (words): it is small",
        "in float: 1 gru (e): it is odd",
    ]
    assert floats([row("", graph="encoder")]) == ["in float: 1 linear (graph 'encoder'): it is odd"]
    assert floats([row("fine", reason=None)]) == []


def test_there_are_no_more_than_nine_lines() -> None:
    assert len(floats([row("a", reason=f"reason {i}") for i in range(9)])) == 9
    lines = floats([row("a", reason=f"reason {i}") for i in range(12)])
    assert lines[8:] == ["in float: 4 more reasons, which --json tells"]
