"""This project: from the model file to an engine of each graph, on the calibration set itself.

With ``max_drop`` it is its accuracy budget: layers go back to float until the model's metric on the validation set has
dropped by at most that share, and where they are slower in int8.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peers.job import read_job

if TYPE_CHECKING:
    from compress.model import Model
    from compress.targets import Target


def main() -> None:
    import calibration
    import compress
    from compress.targets import get_target

    job = read_job()
    model = compress.load(job["model"])
    target = get_target(f"{job['backend']}-cpu")
    data = calibration.open_set(job["calibration"], model.inputs)
    settings = dict(job["settings"])
    drop = settings.pop("max_drop", None)
    config = compress.QuantizeConfig(samples=job["samples"], **settings)
    quantized = compress.quantize(model, data, scheme=target.scheme, config=config).model
    if drop is not None:
        quantized = within(quantized, model, job, target, drop)
    for graph in quantized.graphs:
        compress.export(quantized, target, Path(job["into"]) / graph, graph=graph)


def within(quantized: Model, model: Model, job: dict[str, Any], target: Target, drop: float) -> Model:
    """``quantized`` with the layers in float that a relative ``drop`` asks for."""
    import calibration
    import compress
    from compress.described import described
    from compress.metrics import get_metric
    from compress.program import model_runner

    validation = calibration.open_set(job["validation"], model.inputs)
    metric = get_metric(job["metric"], described(model))
    whole = abs(compress.evaluate(model_runner(model), validation, metric).value)
    config = compress.BudgetConfig(max_drop=drop * whole)
    return compress.budget(quantized, validation, metric=metric, targets=[target], config=config, reference=model).model


if __name__ == "__main__":
    main()
