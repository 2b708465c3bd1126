"""ONNX Runtime's static quantizer as its documentation recommends it: preprocessed, Q/DQ, u8 and s8 per channel.

With ``plain`` it is what its defaults make: the smallest and the largest value, and one scale for a whole weight. Where
its preprocessing cannot infer symbolic shapes, it goes without, as its documentation advises.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.peers.job import GraphJob, Reader, run


def quantize(job: GraphJob) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        try:
            quant_pre_process(job.onnx, prepared, auto_merge=True)
        except Exception as error:      # it raises its own and whatever goes wrong inside
            print(f"without symbolic shapes: {error}", file=sys.stderr)
            quant_pre_process(job.onnx, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared, job.into / "model.onnx", Reader(job.feeds), quant_format=QuantFormat.QDQ,
            per_channel=not job.settings.get("plain", False), activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )  # fmt: skip


if __name__ == "__main__":
    run(quantize)
