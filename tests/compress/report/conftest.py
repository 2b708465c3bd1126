"""The example record: a fixture with plausible figures, measured nowhere."""

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def example() -> dict[str, Any]:
    record: dict[str, Any] = json.loads((Path(__file__).parent / "example_report.json").read_bytes())
    return record
