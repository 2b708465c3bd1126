"""Write the README's figures from the committed records: python benchmarks/readme.py [REPORT.json]

With a report.json of `make demo`, that becomes the committed record first. `--check` only says whether the README is
what the records give, and exits with 1 if not.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
from pathlib import Path

from compress.report import read_record, show

HERE = Path(__file__).resolve().parent
RECORD, README = HERE / "results/demo.json", HERE.parent / "README.md"


def block(record: dict[str, object]) -> str:
    """The demo's real output, as the terminal shows it, with what it was measured on."""
    text = io.StringIO()
    show(record, text)
    machine = record["machine"]
    assert isinstance(machine, dict)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    where = f"{machine['cores_usable']} cores of a {machine['cpu']} ({', '.join(machine['flags'])})"
    return f"On {where}, in a shared virtual machine:\n\n```\n" + "\n".join(lines).strip() + "\n```\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", nargs="?", type=Path, help="a report.json to commit")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.report is not None:
        text = json.dumps(read_record(options.report), indent=1, ensure_ascii=False)
        RECORD.write_text(text + "\n", encoding="utf-8")
    readme = README.read_text(encoding="utf-8")
    figures = block(read_record(RECORD))
    made = re.sub(r"(?s)(<!-- demo -->\n).*?(<!-- /demo -->)", lambda found: found[1] + figures + found[2], readme)
    if options.check and made != readme:
        sys.exit("README.md is not what benchmarks/results/demo.json gives: run python benchmarks/readme.py")
    README.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
