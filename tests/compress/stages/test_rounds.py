"""What each round of a search is told to do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compress.prune.config import PruneStage
from compress.recipe import Stage
from compress.stages import rounds
from compress.stages.models import ModelFile
from compress.targets import get_target


def test_a_vocabulary_goes_in_the_first_round_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[PruneStage] = []

    def transform(filing: Any, stage: Stage, model: ModelFile, original: ModelFile) -> ModelFile:
        told.append(stage.config)
        return ModelFile(path=Path(f"{len(told)}.pt"), digest=str(len(told)))

    monkeypatch.setattr(rounds, "transform", transform)
    stage = Stage(name="prune", config=PruneStage(vocabulary="used", corpus="texts", samples=32))
    filing: Any = SimpleNamespace(recipe=SimpleNamespace(on_float=(stage,), on_int8=()))
    original, targets = ModelFile(path=Path("0.pt"), digest="0"), [get_target("openvino-cpu")]
    first = rounds.make(filing, original, original, 1.5, targets).shipped
    assert rounds.make(filing, original, first, 1.2, targets).shipped.digest == "2"
    assert told == [
        PruneStage(vocabulary="used", corpus="texts", samples=32, speedup=1.5, target="openvino-cpu"),
        PruneStage(samples=32, speedup=1.2, target="openvino-cpu")]
    assert rounds.make(filing, original, original, 1.0, targets).shipped == original
