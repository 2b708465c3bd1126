"""This project: from the model file to an engine of each graph, on the calibration set itself."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.job import read_job


def main() -> None:
    import calibration
    import compress
    from compress.targets import get_target

    job = read_job()
    model = compress.load(job["model"])
    target = get_target(f"{job['backend']}-cpu")
    data = calibration.open_set(job["calibration"], model.inputs)
    config = compress.QuantizeConfig(samples=job["samples"], **job["settings"])
    quantized = compress.quantize(model, data, scheme=target.scheme, config=config).model
    for graph in quantized.graphs:
        compress.export(quantized, target, Path(job["into"]) / graph, graph=graph)


if __name__ == "__main__":
    main()
