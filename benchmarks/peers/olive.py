"""Olive's pass OnnxStaticQuantization with its own defaults, but u8 and s8 per channel, as ONNX Runtime recommends."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.peers.job import GraphJob, Reader, run

os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"     # sends nothing


def quantize(job: GraphJob) -> None:
    import onnx
    from olive.data.config import DataComponentConfig, DataConfig
    from olive.data.registry import Registry
    from olive.model import ONNXModelHandler
    from olive.passes.olive_pass import create_pass_from_dict
    from olive.passes.onnx.quantization import OnnxStaticQuantization

    @Registry.register_dataset("compress_feeds")
    def dataset(**_settings: Any) -> list[Any]:
        return []           # not read: the loader has the feeds

    @Registry.register_dataloader("compress_feeds")
    def loader(_dataset: Any, **_settings: Any) -> Reader:
        return Reader(job.feeds)

    data = DataConfig(
        name="feeds", load_dataset_config=DataComponentConfig(type="compress_feeds"),
        dataloader_config=DataComponentConfig(type="compress_feeds"),
    )  # fmt: skip
    settings = {"data_config": data, "per_channel": True, "activation_type": "uint8", "precision": "int8"}
    with tempfile.TemporaryDirectory() as folder:
        made = create_pass_from_dict(OnnxStaticQuantization, settings, disable_search=True).run(
            ONNXModelHandler(str(job.onnx)), str(Path(folder) / "made"))
        onnx.save(onnx.load(made.model_path), job.into / "model.onnx")


if __name__ == "__main__":
    run(quantize)
