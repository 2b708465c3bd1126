"""A device app: open a bundle, check it against its golden feed, answer for each sample. Needs numpy and a backend.

    python examples/device_app.py BUNDLE [--backend openvino] [--image digit.npy]
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import runtimes


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a bundle on its golden feed and print the answers.")
    parser.add_argument("bundle", help="a folder written by `compress bundle`")
    parser.add_argument("--backend", help="openvino, onnxruntime, ...; default: the first that is installed")
    parser.add_argument("--threads", type=int, help="CPU threads; default: the backend's choice")
    parser.add_argument("--image", help="an .npy file shown in place of the golden feed's image")
    options = parser.parse_args()

    bundle = runtimes.read_bundle(options.bundle)
    feed = bundle.read_arrays(bundle.golden.feed)
    with runtimes.load(bundle, options.backend, threads=options.threads, self_test=True) as session:
        print(f"{bundle.name} on {session.target} ({session.precision}, {session.digest[:12]}): self-test passed")
        if options.image:
            name = next(spec.name for spec in session.inputs if spec.modality == "image")
            feed[name] = np.broadcast_to(np.load(options.image, allow_pickle=False), feed[name].shape)
        session.run({name: array[:1] for name, array in feed.items()})     # the first run is slower
        times_ms = []
        for index in range(len(next(iter(feed.values())))):
            sample = {name: array[index : index + 1] for name, array in feed.items()}
            start = time.perf_counter()
            outputs = session.run(sample)
            times_ms.append((time.perf_counter() - start) * 1e3)
            answers = {name: answer.labels[outputs[name][0].argmax()] for name, answer in bundle.answers.items()}
            print(f"sample {index}: {answers or outputs}  ({times_ms[-1]:.2f} ms)")
    print(f"latency: median {np.median(times_ms):.2f} ms over {len(times_ms)} samples, input checks included")


if __name__ == "__main__":
    try:
        main()
    except runtimes.RuntimesError as error:
        raise SystemExit(f"error: {error}") from error
