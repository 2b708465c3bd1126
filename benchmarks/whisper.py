"""A Whisper of the base size on 30 seconds of sound with OpenVINO, fp32 beside int8: JSON on standard output.

    python benchmarks/whisper.py [--folder FOLDER] [--rounds 7] > benchmarks/results/whisper.json

The network has transformers' base sizes and random weights (72 million), so what it writes means nothing; the time
does not depend on it. The token that ends a text is suppressed: each writes 100. int8 is calibrated on four made-up
sounds, encoder and decoder on its own steps; with "int8 weights" and "int4 weights" the decoder's layers, which read
one row, have their weights alone quantized, and the encoder is the same. The fp32 engines compute in float32
(OpenVINO's own default is bf16 where the CPU has it). Each precision has a process of its own, as in an app; a round
runs all, one after the other in turning order, and the medians are over rounds. ``end_to_end_ms`` is ``session.ask``:
features, encoder, 100 steps and the text; ``real_time_factor`` is that by the 30 seconds. ``step_ms`` is the decoder's
step as a function of how many tokens are cached: with the cache it should hardly grow. Goal: encoder and decoder in
int8, of either form, at least twice as fast end to end. Exit code 1 where it is missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import runtimes
from runtimes.decoding import decode
from runtimes.machine import machine_facts

SECONDS, RATE, STEPS, GOAL = 30, 16000, 100, 2.0
PRECISIONS = ("fp32", "int8", "int8 weights", "int4 weights")
OF_ONE_ROW = ("model.proj_out", *(f"model.model.decoder.layers.*.{name}" for name in (
    "self_attn.*_proj", "encoder_attn.q_proj", "encoder_attn.out_proj", "fc?")))
TARGET = "openvino-cpu"
CALIBRATION = 4         # sounds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the bundles are kept; default: a temporary folder")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve)
        return 0
    with tempfile.TemporaryDirectory(prefix="compress-whisper-") as temporary:
        bundles = made(options.folder or Path(temporary))
        rows = measure(bundles, options.rounds)
    speedup = {precision: round(rows["fp32"]["end_to_end_ms"] / rows[precision]["end_to_end_ms"], 2)
               for precision in PRECISIONS[1:]}  # fmt: skip
    print(json.dumps({
        "model": "whisper, base size, random weights", "seconds": SECONDS, "tokens": STEPS, "target": TARGET,
        "rounds": options.rounds, "rows": rows, "speedup": speedup, "goal": GOAL,
        "versions": {name: version(name) for name in ("openvino", "torch", "transformers")}, "machine": machine_facts(),
    }, indent=1))  # fmt: skip
    return 0 if max(speedup["int8"], speedup["int8 weights"]) >= GOAL else 1


def measure(bundles: Mapping[str, Path], rounds: int) -> dict[str, Any]:
    """Medians over rounds of all precisions in turning order, one warm-up round before them."""
    servers = {precision: subprocess.Popen([sys.executable, __file__, "--serve", str(bundle)], text=True,
                                           stdin=subprocess.PIPE, stdout=subprocess.PIPE)
               for precision, bundle in bundles.items()}
    seen: dict[str, list[dict[str, Any]]] = {precision: [] for precision in servers}
    order = list(servers)
    for _ in range(rounds + 1):
        for precision in order:
            seen[precision].append(json.loads(asked(servers[precision])))
        order = [*order[1:], order[0]]
    for server in servers.values():
        server.communicate()        # ends its input, and so the server
    return {precision: row(found[1:]) for precision, found in seen.items()}


def asked(server: subprocess.Popen[str]) -> str:
    """The server's next line."""
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write("\n")
    server.stdin.flush()
    return server.stdout.readline()


def serve(bundle: Path) -> None:
    """For each line read, one measurement on a line."""
    sound = speech(0)
    with runtimes.load(bundle, warmup=1) as session:
        for _ in sys.stdin:
            print(json.dumps(once(session, sound)), flush=True)


def once(session: Any, sound: np.ndarray) -> dict[str, Any]:
    """The time of its parts one by one, then of the whole, warm from those."""
    start = time.perf_counter_ns()
    feed = session.processor.feed({"audio": sound})
    features = time.perf_counter_ns() - start
    start = time.perf_counter_ns()
    crossed = session.sessions["encoder"].run(feed)
    encoder = time.perf_counter_ns() - start
    timed = Timed(session.sessions["decoder"])
    loop = next(step.loop for step in session.wiring.steps if step.loop is not None)
    tokens = decode(timed, loop, crossed)["tokens"]     # type: ignore[arg-type]
    assert tokens.shape == (1, STEPS)
    start = time.perf_counter_ns()
    session.ask({"audio": sound})
    whole = time.perf_counter_ns() - start
    return {"end_to_end": whole, "features": features, "encoder": encoder, "steps": timed.times_ns,
            "digests": {graph: one.digest for graph, one in session.sessions.items()}}


class Timed:
    """A decoder's session whose runs are timed."""

    def __init__(self, session: Any) -> None:
        self.session, self.inputs = session, session.inputs
        self.times_ns: list[int] = []

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._timed(self.session.run, feed)

    def run_checked(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._timed(self.session.run_checked, feed)

    def _timed(self, run: Any, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        start = time.perf_counter_ns()
        outputs: dict[str, np.ndarray] = run(feed)
        self.times_ns.append(time.perf_counter_ns() - start)
        return outputs


def row(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians in milliseconds; of the steps those of each tenth, and how much longer a step takes per cached token."""
    whole, features, encoder = (np.array([one[key] for one in found]) / 1e6
                                for key in ("end_to_end", "features", "encoder"))
    steps_ms = np.median([one["steps"] for one in found], axis=0) / 1e6
    places = np.arange(1, STEPS)        # the first step reads the prompt
    slope, _ = np.polyfit(places, steps_ms[1:], 1)
    end_to_end = float(np.median(whole))
    return {
        "end_to_end_ms": round(end_to_end, 1), "end_to_end_p90_ms": round(float(np.percentile(whole, 90)), 1),
        "real_time_factor": round(end_to_end / 1e3 / SECONDS, 4), "features_ms": round(float(np.median(features)), 1),
        "encoder_ms": round(float(np.median(encoder)), 1), "first_step_ms": round(float(steps_ms[0]), 2),
        "step_ms": {str(at): round(float(np.median(steps_ms[at - 10 : at])), 3) for at in range(20, STEPS + 1, 20)},
        "step_growth_us_per_token": round(float(slope) * 1e3, 2),
        "digests": found[0]["digests"],
    }  # fmt: skip


def speech(seed: int) -> np.ndarray:
    """Tones that come and go amid noise, as long as the model listens: ``(samples,)`` float32 in -1..1."""
    rng, at = np.random.default_rng(seed), np.arange(SECONDS * RATE) / RATE
    pitches = rng.uniform(80, 3000, (6, 1))
    loud = np.sin(np.pi * at * rng.uniform(0.5, 4, (6, 1))) ** 2
    return np.asarray(0.1 * (np.sin(2 * np.pi * pitches * at) * loud).sum(axis=0)
                      + 0.01 * rng.standard_normal(len(at))).astype(np.float32)


def made(folder: Path) -> dict[str, Path]:
    """A bundle for each precision in ``folder``, made where it is not there yet."""
    bundles = {precision: folder / f"{precision.replace(' ', '-')}.bundle" for precision in PRECISIONS}
    if all(bundle.exists() for bundle in bundles.values()):
        return bundles
    import calibration
    import compress
    from compress.data import make_data
    from compress.quantize import QuantizeConfig
    from compress.targets import get_target

    model = compress.load(write_folder(folder / "whisper-base"))
    sounds = [{"audio": {"array": speech(seed), "sampling_rate": RATE}} for seed in range(1, CALIBRATION + 1)]
    make_data(sounds, model, folder / "calibration")
    data = calibration.open_set(folder / "calibration", model.inputs)
    target = get_target(TARGET)
    settings = {"int8": {}, "int8 weights": {"int8_weights": OF_ONE_ROW}, "int4 weights": {"int4_weights": OF_ONE_ROW}}
    models = {"fp32": model} | {
        precision: compress.quantize(model, data, scheme=target.scheme, config=QuantizeConfig(**own)).model
        for precision, own in settings.items()
    }  # fmt: skip
    golden = {name: {spec.name: model.example[spec.name] for spec in graph.inputs}
              for name, graph in model.graphs.items()}
    for precision, bundle in bundles.items():
        engines = {graph: {TARGET: compress.export(models[precision], target, folder / precision / graph, graph=graph)}
                   for graph in model.graphs}
        compress.bundle(models[precision], engines, golden, bundle)
    return bundles


def write_folder(folder: Path) -> Path:
    """The base configuration with random weights, and a vocabulary of bytes."""
    import torch
    import transformers
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    words = list(bytes_to_unicode().values())
    tokenizer = transformers.WhisperTokenizer(vocab={word: index for index, word in enumerate(words)}, merges=[])
    end = len(words)
    tokenizer.add_tokens(["<|endoftext|>", "<|startoftranscript|>"], special_tokens=True)
    ids = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": end + 1}
    config = transformers.WhisperConfig(
        d_model=512, encoder_layers=6, decoder_layers=6, encoder_attention_heads=8, decoder_attention_heads=8,
        encoder_ffn_dim=2048, decoder_ffn_dim=2048, suppress_tokens=None, begin_suppress_tokens=None, **ids)
    torch.manual_seed(0)
    model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config = transformers.GenerationConfig(**ids, max_length=STEPS, suppress_tokens=[end])
    for part in (model, tokenizer, transformers.WhisperFeatureExtractor()):
        part.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    sys.exit(main())
