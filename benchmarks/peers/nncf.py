"""NNCF's post-training quantization: of the OpenVINO model for OpenVINO, of the ONNX model for ONNX Runtime.

``model_type`` is "transformer" or none, its own default. With ``max_drop`` it is its accuracy control: layers go back
to float until the model's metric on the validation set has dropped by at most that share; of a model of several graphs
the others are in torch meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.peers.job import GraphJob, run

os.environ["NNCF_CI"] = "1"     # sends nothing


def quantize(job: GraphJob) -> None:
    import nncf

    feeds = nncf.Dataset(job.feeds, lambda feed: feed)
    kind, drop = job.settings.get("model_type"), job.settings.get("max_drop")
    settings = {"subset_size": len(job.feeds), "model_type": None if kind is None else nncf.ModelType(kind)}
    model = read(job)
    if drop is None:
        made = nncf.quantize(model, feeds, **settings)
    else:
        made = nncf.quantize_with_accuracy_control(model, feeds, nncf.Dataset(["all"]), scorer(job), max_drop=drop,
                                                   drop_type=nncf.DropType.RELATIVE, **settings)  # fmt: skip
    write(made, job)


def scorer(job: GraphJob) -> Callable[[Any, Iterable[Any]], tuple[float, None]]:
    """The metric of the case, for a candidate: an OpenVINO model that is compiled, or ONNX."""
    import compress
    from benchmarks.peers.engines import whole
    from calibration import open_set
    from compress.described import described
    from compress.evaluate import evaluate
    from compress.metrics import get_metric

    model = compress.load(job.case["model"])
    data = open_set(job.case["validation"], model.inputs)
    metric = get_metric(job.case["metric"], described(model))
    sign = -1.0 if metric.lower_is_better else 1.0

    def score(candidate: Any, _: Iterable[Any]) -> tuple[float, None]:
        runs = {job.name: runner(candidate, job.backend)}
        return sign * evaluate(whole(model, runs), data, metric).value, None

    return score


def runner(candidate: Any, backend: str) -> Any:
    if backend == "openvino":
        outputs = [(name, port) for port in candidate.outputs for name in port.names]

        def run_openvino(feed: Any) -> dict[str, Any]:
            made = candidate(dict(feed))
            return {name: made[port] for name, port in outputs}

        return run_openvino
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    session = onnxruntime.InferenceSession(candidate.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, dict(feed)), strict=True))


def read(job: GraphJob) -> Any:
    if job.backend == "openvino":
        import openvino

        return openvino.convert_model(job.onnx)
    import onnx

    return onnx.load(job.onnx)


def write(model: Any, job: GraphJob) -> None:
    if job.backend == "openvino":
        import openvino

        openvino.save_model(model, job.into / "model.xml", compress_to_fp16=False)
    else:
        import onnx

        onnx.save(model, job.into / "model.onnx")


if __name__ == "__main__":
    run(quantize)
