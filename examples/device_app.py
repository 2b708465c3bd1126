"""A device app: open a bundle, check it against its golden feed, answer. Needs numpy, a backend, Pillow for pictures.

    python examples/device_app.py BUNDLE [--backend openvino]                                   # its golden samples
    python examples/device_app.py BUNDLE --ask image=digit.png --ask "question=is it even ?"    # an input of one's own
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import runtimes


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a bundle on its golden feed, or on inputs given, and answer.")
    parser.add_argument("bundle", help="a folder written by `compress bundle create`")
    parser.add_argument("--backend", help="openvino, onnxruntime, ...; default: the first that is installed")
    parser.add_argument("--threads", type=int, help="CPU threads; default: the backend's choice")
    parser.add_argument("--ask", action="append", metavar="NAME=VALUE", default=[],
                        help="a raw input: a text, or the path of a picture (.png, .jpg) or a sound (.wav)")
    options = parser.parse_args()

    bundle = runtimes.read_bundle(options.bundle)
    with runtimes.load(bundle, options.backend, threads=options.threads, self_test=True) as session:
        print(f"{bundle.name} on {session.target} ({session.precision}, {session.digest[:12]}): self-test passed")
        if options.ask:
            raw = dict(pair.partition("=")[::2] for pair in options.ask)
            session.ask(raw)    # the first run is slower
            answers, latency_ms = timed(lambda: session.ask(raw))
            print(f"{describe(answers)}  ({latency_ms:.2f} ms, pre- and post-processing included)")
            return
        feed = bundle.read_arrays(bundle.golden.feed)
        session.run({name: array[:1] for name, array in feed.items()})
        times_ms = []
        for index in range(len(next(iter(feed.values())))):
            sample = {name: array[index : index + 1] for name, array in feed.items()}
            outputs, latency_ms = timed(lambda sample=sample: session.run(sample))
            times_ms.append(latency_ms)
            read = bundle.processing is not None and bundle.processing.outputs
            rows = session.processor.answer(outputs) if read else outputs
            answers = {name: values[0] for name, values in rows.items()}
            print(f"sample {index}: {describe(answers)}  ({latency_ms:.2f} ms)")
    print(f"latency: median {np.median(times_ms):.2f} ms over {len(times_ms)} samples, input checks included")


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What ``call`` returns, and the milliseconds it took."""
    start = time.perf_counter()
    result = call()
    return result, (time.perf_counter() - start) * 1e3


def describe(answers: dict[str, Any]) -> str:
    """``output: label (score)`` for labels, and other answers as they are."""
    parts = []
    for name, answer in answers.items():
        labelled = isinstance(answer, dict) and "label" in answer
        parts.append(f"{name}: {answer['label']} ({answer['score']:.1%})" if labelled else f"{name}: {answer}")
    return ", ".join(parts)


if __name__ == "__main__":
    try:
        main()
    except runtimes.RuntimesError as error:
        raise SystemExit(f"error: {error}") from error
