"""NVIDIA ModelOpt's ONNX quantizer with its own defaults, the rest in float32: it is made for TensorRT's s8."""

from __future__ import annotations

from benchmarks.peers.job import GraphJob, Reader, run


def quantize(job: GraphJob) -> None:
    from modelopt.onnx.quantization import quantize as quantize_onnx

    quantize_onnx(
        str(job.onnx), quantize_mode="int8", calibration_data_reader=Reader(job.feeds), calibration_eps=["cpu"],
        output_path=str(job.into / "model.onnx"), high_precision_dtype="fp32", log_level="ERROR",
    )  # fmt: skip


if __name__ == "__main__":
    run(quantize)
