"""One way to a smaller network, and what it answers right before and after it was trained for a while.

    python -m benchmarks.pruning.recovery CASE METHOD SEED GOAL SECONDS

CASE is the ``case.json`` of a model. Prints the row on standard output, and leaves engines for OpenVINO beside the
case, in ``built-GOAL/METHOD/GRAPH`` those of the first seed, which are timed. Scores are those of the engines on the
whole validation set. The pruned network learns from the original's answers (``compress.distill`` as it is by default)
on some of the training set, one of the same shape from scratch from the labels of the same samples, as its own kind of
network is trained in ``compress.zoo``, for SECONDS of the processor's time, which is what ours took. The demo's has all
images of the training set for that, and asks its own questions about them.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.peers.engines import Result, found, whole
from benchmarks.pruning.methods import TARGET, exported, pruned, untrained
from benchmarks.pruning.models import WIDE
from compress.zoo.samples import count_of

if TYPE_CHECKING:
    from torch import nn

    from calibration import CalibrationSet
    from compress.model import Model
    from compress.zoo.samples import Parts
    from compress.zoo.tasks import Tasks

BATCH = 64
TRIED = 8               # steps that tell how long one takes
SHAPE_OF = "ours"       # whose shape the network from scratch has
INT8 = ("ours",)
SCORES = "scores.npy"   # beside the engines: those of each sample


def row(case: Mapping[str, Any], method: str, seed: int, goal: str, seconds: float) -> dict[str, Any]:
    """What is kept of ``case``'s network, its scores, and how long it trained."""
    import compress
    from calibration import open_set
    from compress.complexity import count_model

    model = compress.load(case["model"])
    data = open_set(case["calibration"], model.inputs)
    train = some(open_set(case["train"], model.inputs), case["samples"])
    small = _pruned(case, method, model, data, goal)
    whole_cost, cost = count_model(model).total, count_model(small).total
    into = built(case, goal) / (method if seed == 0 else f"{method}-{seed}")
    made: dict[str, Any] = {"macs_kept": cost.macs / whole_cost.macs, "params_kept": cost.params / whole_cost.params}
    if seed == 0 and method != "scratch":
        made["before"] = score(case, small, into)
    started = time.process_time()
    if method == "scratch":
        learnt = from_scratch(case, untrained(small, seed), train, seed, seconds)
    else:
        config = compress.DistillConfig(
            epochs=case["epochs"], batch_size=BATCH, learning_rate=case.get("learning_rate"), seed=seed)
        learnt = compress.distill(small, model, train, config=config).model
    made |= {"processor_s": round(time.process_time() - started, 1), "after": score(case, learnt, into)}
    if method in INT8:
        from compress.targets import get_target

        quantized = compress.quantize(learnt, data, scheme=get_target(TARGET).scheme).model
        made["int8"] = score(case, quantized, into.with_name(f"{into.name}-int8"))
    return made


def built(case: Mapping[str, Any], goal: str) -> Path:
    """The folder of the engines of networks of this size."""
    return Path(case["folder"]) / f"built-{goal}"


def some(data: CalibrationSet, count: int) -> CalibrationSet:
    """The same ``count`` samples of ``data`` for all, of all its parts alike."""
    places = np.random.default_rng(0).permutation(len(data))[:count]
    return data.pick(sorted(places.tolist()))


def _pruned(case: Mapping[str, Any], method: str, model: Model, data: CalibrationSet, goal: str) -> Model:
    """As it was pruned before, if it was: every seed trains the same network."""
    from compress import load
    from compress.modelfile import write_model

    file = Path(case["folder"]) / f"{SHAPE_OF if method == 'scratch' else method}-{goal}.pt"
    if not file.exists():
        write_model(pruned(SHAPE_OF if method == "scratch" else method, model, data, goal), file)
    return load(file)


def score(case: Mapping[str, Any], model: Model, into: Path) -> dict[str, Any]:
    """The metric of the model's engines, which are built in ``into``, and how far below the original's it is.

    ``drop`` is of the same samples, with its 95 % interval.
    """
    import compress
    from calibration import open_set
    from compress.described import described
    from compress.evaluate import evaluate, groups_of
    from compress.intervals import paired_drop
    from compress.metrics import get_metric
    from compress.targets import get_target

    shutil.rmtree(into, ignore_errors=True)
    for graph in model.graphs:
        compress.export(model, get_target(TARGET), into / graph, graph=graph)
    engines: Result = found(into, "openvino")
    run = whole(model, {graph: engines.open(graph, 1) for graph in engines.files})
    data = open_set(case["validation"], model.inputs)
    seen = evaluate(run, data, get_metric(case["metric"], described(model)))
    np.save(into / SCORES, seen.per_sample)
    told = {name: value for name, value in seen.to_json().items() if name in ("value", "n", "interval")}
    if (original := Path(case["folder"]) / "original" / SCORES).exists():
        drop = paired_drop(np.load(original), seen.per_sample, groups_of(data))
        told["drop"] = [drop.value, drop.low, drop.high]
    return told


def from_scratch(case: Mapping[str, Any], model: Model, data: CalibrationSet, seed: int, seconds: float) -> Model:
    """``model`` trained on the labels as ``compress.zoo`` trains its kind, for so long of the processor's time.

    A few steps of a copy tell how many that is: both ways end with the learning rate at zero.
    """
    from compress.factory import build_module

    train = _fit if case["name"] in WIDE else _train_demo
    network = build_module(model).train().requires_grad_(True)
    started = time.process_time()
    tried = train(case, copy.deepcopy(network), data, seed, None)
    train(case, network, data, seed, tried * seconds / (time.process_time() - started))
    return exported(model, network.eval())


def _train_demo(
    case: Mapping[str, Any], network: nn.Module, data: CalibrationSet, seed: int, epochs: float | None
) -> float:  # fmt: skip
    """As the demo's network: several new questions about each image at every step, deformed. Returns the epochs."""
    from compress.zoo import digits_questions
    from compress.zoo.training import TrainConfig, train

    images, digits = digits_questions.splits()["train"]
    few = TRIED * TrainConfig().batch / len(images)
    config = TrainConfig(seed=seed, epochs=few if epochs is None else epochs)
    train(network, images, digits, config)  # type: ignore[arg-type]
    return config.epochs


def _fit(case: Mapping[str, Any], network: nn.Module, data: CalibrationSet, seed: int, epochs: float | None) -> float:
    """As the other reference models: whole epochs. Returns how many."""
    from compress.zoo import get_reference
    from compress.zoo.fitting import fit
    from compress.zoo.tasks import loss_of

    reference = get_reference(case["name"])
    learnt = parts(data, reference.tasks)
    config = dataclasses.replace(reference.fit, rate=WIDE[case["name"]].rate, seed=seed,
                                 epochs=1 if epochs is None else max(1, round(epochs)))
    if epochs is None:
        sizes = np.cumsum([count_of(target) for _, target in learnt])
        learnt = learnt[:int(np.searchsorted(sizes, reference.fit.batch * TRIED)) + 1]
    fit(network, learnt, functools.partial(loss_of, tasks=reference.tasks), config)
    return config.epochs if epochs is not None else sum(count_of(target) for _, target in learnt) / len(data)


def parts(data: CalibrationSet, tasks: Tasks) -> Parts:
    """The samples of ``data`` and the targets of ``tasks``, those of one shape together."""
    from compress.zoo.tasks import encoded

    only = next(iter(tasks))
    return [(shard.feed, encoded({name: shard.targets[f"target.{name}"] for name in tasks} if len(tasks) > 1
                                 else shard.targets.get("target", shard.targets.get(f"target.{only}")), tasks))
            for shard in data.read()]  # fmt: skip


def main() -> None:
    file, method, seed, goal, seconds = sys.argv[1:]
    case = json.loads(Path(file).read_text(encoding="utf-8"))
    print(json.dumps(row(case, method, int(seed), goal, float(seconds))))


if __name__ == "__main__":
    main()
