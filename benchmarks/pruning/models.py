"""The models that are pruned: the demo's, and reference models of ``compress.zoo`` built wide enough to have work.

    python -m benchmarks.pruning.models NAME FOLDER TRAINED

As they ship, the other reference models answer within a third of a millisecond, which is what it costs to call their
operators at all: a network of half the multiply-accumulates takes 7 to 25 % less of it. So the same networks are built
wider, by their own factories' arguments, and trained on the same data, for a number of epochs that a CPU can afford.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.zoo import DEMO


@dataclass(frozen=True, kw_only=True)
class Wide:
    """A reference model with other arguments of its factory, and how it is trained in place of its own way."""

    kwargs: Mapping[str, int]
    epochs: int
    rate: float


WIDE: Mapping[str, Wide] = {
    "video": Wide(kwargs={"channels": 64, "width": 256, "hidden": 256}, epochs=5, rate=1e-3),
    "attention-vqa": Wide(kwargs={"channels": 128, "width": 128, "text": 128, "hidden": 256}, epochs=8, rate=2e-3),
    "spoken-command": Wide(kwargs={"channels": 256, "width": 64, "hidden": 256}, epochs=4, rate=2e-3),
}
CASES = (DEMO, *WIDE)


def prepare(name: str, folder: Path, trained: Path) -> None:
    """Write ``case.json`` and the model it names into ``folder``, where they are not there yet.

    Args:
        trained: where the reference models and their data are, or are made if they are not: a folder of ``compress
            demo`` each.
    """
    import yaml

    from compress.zoo import make

    if (folder / "case.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    made = make(name, trained / name)
    source = (trained / name).resolve()
    model, kwargs = source / "model.pt", dict(made.settings.get("network", {}))
    if name in WIDE:
        model, kwargs = folder / "model.pt", dict(WIDE[name].kwargs)
        _train(name, WIDE[name], model)
    recipe = yaml.safe_load((source / "recipe.yaml").read_text(encoding="utf-8"))
    case: dict[str, Any] = {
        "name": name, "model": str(model.resolve()), "metric": recipe["metric"], "network": kwargs,
        **{key: str(source / key) for key in ("train", "calibration", "validation")},
    }  # fmt: skip
    (folder / "case.json").write_text(json.dumps(case, indent=1), encoding="utf-8")


def _train(name: str, wide: Wide, path: Path) -> None:
    import torch

    import compress
    from compress.factory import resolve
    from compress.zoo import get_reference
    from compress.zoo.fitting import fit
    from compress.zoo.tasks import encoded, loss_of

    reference = get_reference(name)
    config = dataclasses.replace(reference.fit, epochs=wide.epochs, rate=wide.rate)
    splits, tasks = reference.samples(), reference.tasks
    torch.manual_seed(config.seed)
    network = resolve(reference.factory, "factory")(**wide.kwargs)
    learnt = [(rows, encoded(answers, tasks)) for rows, answers in splits["train"]]
    fit(network, learnt, functools.partial(loss_of, tasks=tasks), config, _told)
    labels = {output: task.labels for output, task in tasks.items() if task.loss == "cross-entropy"}
    example = {key: array[:2] for key, array in splits["train"][0][0].items()}
    compress.save(network, path, example=example, inputs=reference.inputs, labels=labels, factory=reference.factory,
                  factory_kwargs=wide.kwargs, processing=reference.processing, name=name)


def _told(done: int, steps: int, text: str) -> None:
    if done % 25 == 0 or done == steps:
        print(f"step {done} of {steps}, {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    prepare(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
