"""What a student is worth while it trains: its metric on the validation set, as it would answer on a device."""

from __future__ import annotations

from calibration import CalibrationSet
from compress.distill.bound import Bound
from compress.evaluate import evaluate
from compress.metrics import Metric
from compress.model import Model
from compress.program import chain_of


class Scorer:
    """The value of ``metric`` over the validation set, for the weights ``bound`` has when it is called.

    The chain runs as it will on a device: a decoder picks its own tokens.
    """

    def __init__(self, model: Model, bound: Bound, data: CalibrationSet, metric: Metric, batch: int) -> None:
        self.run = chain_of(model, bound.runs()).run
        self.data = data
        self.metric = metric
        self.batch = batch

    def __call__(self) -> float:
        return evaluate(self.run, self.data, self.metric, self.batch).value
