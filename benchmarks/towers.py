"""The two towers of a dual encoder side by side, against one after the other: JSON on standard output.

    python benchmarks/towers.py [--seconds 10] > benchmarks/results/towers.json

The model is a CLIP of transformers with random weights, six layers of width 512 in each tower (38 million parameters in
the layers), pictures of 224x224 in patches of 32 and 77 tokens, one graph a tower. Each graph is a session of one
thread; the chain of both runs them at once, as it does where they do not wait for each other. In turning order: the
chain, the same chain told to run its steps one after the other (``together=False``), and each session alone. ``ratio``
is the median of one after the other over that of side by side: 2 would be two towers that take as long as each other,
on two cores that nobody else uses. ``possible`` is what the towers' own times allow: their sum over the longer of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

BACKENDS = {"openvino-cpu": "openvino", "onnxruntime-cpu": "onnxruntime"}
WARMUP = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to measure each backend")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = dual_encoder()
        rows = [measured(model, target, Path(folder), options.seconds) for target in BACKENDS]
    from runtimes.machine import machine_facts

    print(json.dumps({"rows": rows, "threads": 1, "machine": machine_facts()}, indent=1))
    return 0


def dual_encoder() -> Any:
    import torch
    from transformers import CLIPConfig, CLIPModel

    from compress.model import Graph
    from compress.saving import export_model

    tower = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 8}
    config = CLIPConfig(text_config=tower, vision_config={**tower, "patch_size": 32, "image_size": 224})

    class Towers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.clip = CLIPModel(config)

        def see(self, image: torch.Tensor) -> torch.Tensor:
            return self.clip.visual_projection(self.clip.vision_model(pixel_values=image).pooler_output)

        def read(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.clip.text_projection(self.clip.text_model(input_ids=tokens).pooler_output)

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    example = {
        "image": rng.standard_normal((2, 3, 224, 224), dtype=np.float32), "tokens": rng.integers(3, 49000, (2, 77))
    }  # fmt: skip
    graphs = {"image": Graph("see", inputs=("image",)), "text": Graph("read", inputs=("tokens",))}
    return export_model(Towers().eval(), name="towers", example=example, graphs=graphs)


def measured(model: Any, target: str, folder: Path, seconds: float) -> dict[str, Any]:
    import compress
    from compress.targets import targets
    from runtimes.backends import open_engine
    from runtimes.chain import Chain
    from runtimes.session import Session

    feed = {name: array[:1] for name, array in model.example.items()}
    sessions = {}
    for graph in model.graphs:
        engine = compress.export(model, targets()[target], folder / target / graph, graph=graph)
        sessions[graph] = Session(engine, open_engine(engine, threads=1), "here")
    together = Chain(model.wiring, sessions, "here")
    in_turn = Chain(model.wiring, sessions, "here", together=False)
    calls = [lambda: together.run(feed), lambda: in_turn.run(feed)]
    for session in sessions.values():
        calls.append(lambda s=session: s.run({spec.name: feed[spec.name] for spec in s.inputs}))
    assert all(np.array_equal(value, in_turn.run(feed)[name]) for name, value in together.run(feed).items())
    times: list[list[int]] = [[] for _ in calls]
    order, until = list(range(len(calls))), time.perf_counter() + seconds
    while time.perf_counter() < until:
        for index in order:
            start = time.perf_counter_ns()
            calls[index]()
            times[index].append(time.perf_counter_ns() - start)
        order = [*order[1:], order[0]]
    together_ms, in_turn_ms, *alone_ms = np.median(np.array(times)[:, WARMUP:] / 1e6, axis=1).tolist()
    together.close()
    return {
        "target": target, "version": version(BACKENDS[target]), "rounds": len(times[0]) - WARMUP,
        "together_ms": round(together_ms, 2), "in_turn_ms": round(in_turn_ms, 2),
        "alone_ms": {name: round(ms, 2) for name, ms in zip(sessions, alone_ms, strict=True)},
        "ratio": round(in_turn_ms / together_ms, 2), "possible": round(sum(alone_ms) / max(alone_ms), 2),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
