"""The demo: train a network that answers questions about handwritten digits, and write what a user would bring."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.errors import CompressError
from compress.zoo import DEMO, Progress, digits_questions
from compress.zoo.digits_questions import ANSWERS, LENGTH
from compress.zoo.folder import FORMAT, begin, digests, finish, is_whole, read_record, shifted
from runtimes.spec import Dim, TensorSpec

if TYPE_CHECKING:
    from compress.model import Model
    from compress.recipe import Recipe
    from compress.zoo.digits_vqa import DigitsVQA

FACTORY = "compress.zoo.digits_vqa:build"
VALIDATION_SEED = 1000          # the questions asked at validation do not depend on the seed of training


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """What the demo trains; ``asked`` is the number of questions about each image of a data set."""

    network: Mapping[str, Any]              # keyword arguments of the factory
    epochs: float                           # of the network
    baseline_epochs: Mapping[str, float]    # of the same network blind to an input, by the input
    asked: Mapping[str, int]


FULL = DemoConfig(
    network={
        "width": 384, "head_dim": 64, "image_heads": [6, 6], "image_hidden": [1024, 1024], "text_heads": [4],
        "text_hidden": [384], "fusion_heads": [6], "fusion_hidden": [768],
    },
    epochs=9, baseline_epochs={"image": 3, "question": 1}, asked={"train": 3, "calibration": 2, "validation": 6},
)
QUICK = DemoConfig(
    network={
        "width": 32, "head_dim": 16, "image_heads": [2, 2], "image_hidden": [64, 64], "text_heads": [2],
        "text_hidden": [32], "fusion_heads": [2], "fusion_hidden": [64],
    },
    epochs=1, baseline_epochs={"image": 0.2, "question": 0.2}, asked={"train": 2, "calibration": 1, "validation": 1},
)

RECIPE = """\
# What `compress run` does with the demo model.
version: 1
model: model.pt
data: {calibration: calibration/, train: train/, validation: validation/}
metric: accuracy
max_drop: 0.01
target: [openvino-cpu, onnxruntime-cpu, rtx]
stages:
  - prune: {macs: 0.2, structures: [channels, heads, width]}
  - distill: {epochs: 8, learning_rate: 1e-3}     # steeper than by default: much is gone
  - quantize: {}
  - distill: {epochs: 1}          # quantization-aware, because it follows quantize
  - export: {}
  - bench: {preset: quick}
comparisons: compress.zoo.demo:compare              # what the report holds the result against
"""


@dataclass(frozen=True, kw_only=True)
class DemoRecord:
    """demo.json: what was trained, how well it does beside its baselines, and the digest of what was written."""

    seed: int
    settings: Mapping[str, Any]
    accuracy: float                         # float32, on validation/
    baselines: Mapping[str, float]          # "image-blind", "question-blind", "majority answer" -> accuracy
    pairs: Mapping[str, int]                # data set -> (image, question) pairs
    images: Mapping[str, int]               # data set -> images; none is in two sets
    parameters: int
    macs: int                               # of one image and a question of 8 words
    seconds: Mapping[str, float]            # of training, by network
    threads: int
    versions: Mapping[str, str]
    files: Mapping[str, str]                # path -> SHA-256; recipe.yaml is the user's to edit, and not among them

    def to_json(self) -> dict[str, Any]:
        return {**FORMAT, "model": DEMO, **dataclasses.asdict(self)}

    def describe(self) -> str:
        beside = ", ".join(f"{name} {value:.1%}" for name, value in self.baselines.items())
        return (
            f"demo model: accuracy {self.accuracy:.2%} on {self.pairs['validation']} questions about "
            f"{self.images['validation']} images it has not seen ({beside}); {self.parameters / 1e6:.1f} M parameters, "
            f"{self.macs / 1e6:.0f} M multiply-accumulates, trained in {sum(self.seconds.values()):.0f} s"
        )


def make_demo(folder: Path, *, seed: int = 0, quick: bool = False, progress: Progress | None = None) -> DemoRecord:
    """Train the demo; write its model, ``train/``, ``calibration/``, ``validation/``, a recipe and ``demo.json``.

    A folder that holds the same demo, whole, is left as it is. ``demo.json`` is marked unfinished until all is written.

    Args:
        seed: of the weights, the order and the questions of training. quick: a tiny network, for tests.
        progress: called after every step of training.

    Raises:
        CompressError: if ``folder`` holds a model that is not the demo's, or the disk is full.
    """
    config = QUICK if quick else FULL
    settings = {**dataclasses.asdict(config), "seed": seed}
    if (found := read_record(folder)) is not None and is_whole(folder, found, settings):
        return DemoRecord(**{field.name: found[field.name] for field in dataclasses.fields(DemoRecord)})
    begin(folder, DEMO, RECIPE)
    _write_data(folder, config, seed)
    record = _train(folder, config, settings, progress)
    finish(folder, record.to_json())
    return record


def train_from_scratch(
    kwargs: Mapping[str, Any], *, seconds: float, seed: int = 0, progress: Progress | None = None
) -> DigitsVQA:
    """Train a network of the shape ``kwargs`` (as :func:`compress.zoo.digits_vqa.build` takes them) for ``seconds``.

    It is trained just as the demo's is, on the same images, and so with the images' digits to guide it.
    """
    import torch

    from compress.zoo.digits_vqa import build
    from compress.zoo.training import TrainConfig, train

    torch.manual_seed(seed)
    network = build(**kwargs)
    train(network, *digits_questions.splits()["train"], TrainConfig(seconds=seconds, seed=seed), progress)
    return network


def compare(shipped: Model, recipe: Recipe, progress: Progress | None = None) -> list[dict[str, Any]]:
    """The demo's baselines for the report, and a network of ``shipped``'s size trained from scratch; see recipe.yaml.

    Raises:
        CompressError: if the recipe does not lie in a folder of the demo, or ``shipped`` is not the demo's network.
    """
    found = read_record(recipe.path.parent)
    if found is None or "accuracy" not in found:
        raise CompressError(f"{recipe.path.parent} holds no finished demo: `compress demo` writes one")
    seconds = float(found["seconds"]["network"])
    kwargs = shape_of(shipped)
    network = train_from_scratch(kwargs, seconds=seconds, seed=int(found["settings"]["seed"]), progress=progress)
    scratch = evaluate_network(network, recipe.validation)
    blind = [
        {"name": f"{name} network" if "blind" in name else name, "accuracy": value, "note": _NOTES[name]}
        for name, value in found["baselines"].items()
    ]
    note = f"the shipped model's shape, trained for the {seconds:.0f} s that the original was"
    return [{"name": "trained small from scratch", "accuracy": scratch, "note": note}, *blind]


def shape_of(model: Model) -> dict[str, Any]:
    """Keyword arguments of the factory that build a network of ``model``'s shape, pruned or not.

    Raises:
        CompressError: if ``model`` is not the demo's network, or its heads differ in size.
    """
    from compress.factory import build_module

    if model.factory is None or model.factory.reference != FACTORY:
        raise CompressError(f"model {model.name!r} is not the demo's: its factory is {model.factory}")
    network: Any = build_module(model)
    shape: dict[str, Any] = dict(model.factory.kwargs)
    sizes = set()
    for part, component in (("image", "image_encoder"), ("text", "text_encoder"), ("fusion", "fusion")):
        blocks = network.get_submodule(component).blocks
        shape[f"{part}_heads"] = [int(block.attention.heads) for block in blocks]
        shape[f"{part}_hidden"] = [int(block.up.out_features) for block in blocks]
        sizes |= {int(block.attention.head_dim) for block in blocks}
    shape["width"], seen = network.text_encoder.embedding.embedding_dim, network.image_encoder.norm.normalized_shape[0]
    if seen != shape["width"]:
        shape["image_width"] = seen
    if len(sizes) > 1:
        raise CompressError(f"model {model.name!r} has attention heads of several sizes, {sorted(sizes)}")
    return {**shape, "head_dim": sizes.pop()}


def evaluate_network(network: DigitsVQA, validation: Path) -> float:
    """Share of the data set ``validation`` that ``network`` answers right."""
    import torch

    from calibration import open_set
    from compress.evaluate import evaluate
    from compress.metrics import get_metric

    def run(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.no_grad():
            return {"output": network(*(torch.from_numpy(feed[name]) for name in ("image", "question"))).numpy()}

    return evaluate(run, open_set(validation, _specs()), get_metric("accuracy")).value


_NOTES = {
    "image-blind": "the original's shape, trained on a blank image",
    "question-blind": "the original's shape, trained on one meaningless question",
    "majority answer": "always the most frequent answer",
}


def _train(folder: Path, config: DemoConfig, settings: Mapping[str, Any], progress: Progress | None) -> DemoRecord:
    """Train the network and its two blind baselines, and write model.pt."""
    import torch

    from compress.complexity import count
    from compress.versions import versions
    from compress.zoo.digits_vqa import build
    from compress.zoo.training import TrainConfig, accuracy, steps_of, train

    images, digits = digits_questions.splits()["train"]
    seed = int(settings["seed"])
    plans = {"network": TrainConfig(epochs=config.epochs, seed=seed)}
    for blind in ("image", "question"):
        plans[f"{blind}-blind"] = TrainConfig(epochs=config.baseline_epochs[blind], seed=seed, blind=blind)
    total = sum(steps_of(plan, len(images)) for plan in plans.values())
    asked = _validation(config)
    scores, seconds, before = {}, {}, 0
    for name, plan in plans.items():
        torch.manual_seed(seed)
        network = build(**config.network)
        started = time.monotonic()
        train(network, images, digits, plan, shifted(progress, before, total, name))
        seconds[name] = round(time.monotonic() - started, 1)
        scores[name] = accuracy(network, *asked, blind=plan.blind)
        before += steps_of(plan, len(images))
        if name == "network":
            model = _save(folder, config, network)
    program = model.graph.program
    return DemoRecord(
        seed=seed, settings=settings, accuracy=scores.pop("network"),
        baselines={**scores, "majority answer": float(np.bincount(asked[2].ravel()).max() / asked[2].size)},
        pairs={name: count * config.asked[name] for name, count in digits_questions.SPLIT.items()},
        images=digits_questions.SPLIT, parameters=sum(weight.numel() for weight in model.weights.values()),
        macs=count(program, model).total.macs, seconds=seconds, threads=torch.get_num_threads(), versions=versions(),
        files=digests(folder),
    )  # fmt: skip


def _save(folder: Path, config: DemoConfig, network: DigitsVQA) -> Model:
    from compress.model import Input
    from compress.saving import save

    images, questions, _ = _validation(config)
    return save(
        network, folder / "model.pt", name="digits-vqa", factory=FACTORY, factory_kwargs=config.network,
        example={"image": images[:2], "question": questions[:2, 0, :8]},
        inputs={"image": Input(modality="image", dims=("batch",)),
                "question": Input(modality="text", dims=("batch", Dim("length", 4, 8, LENGTH)))},
        labels={"output": ANSWERS}, processing=digits_questions.PROCESSING,
    )  # fmt: skip


def _write_data(folder: Path, config: DemoConfig, seed: int) -> None:
    """Write the three data sets, every image with its first question before any with its second."""
    import torch

    from calibration import write
    from compress.zoo.training import deform

    for name, (images, digits) in digits_questions.splits().items():
        asked = config.asked[name]
        if name == "validation":
            _, questions, answers = _validation(config)
        else:
            questions, answers = digits_questions.ask(digits, asked, np.random.default_rng([seed, len(name)]))
        pictures = np.tile(images, (asked, 1, 1, 1))
        if name == "train":     # as the network sees them in training: plain at first, then a little deformed
            torch.manual_seed(seed)
            pictures[len(images) :] = deform(torch.from_numpy(pictures[len(images) :])).numpy()
        rows = {"image": pictures, "question": questions.swapaxes(0, 1).reshape(-1, LENGTH)}
        write(folder / name, rows, answers.T.reshape(-1))


def _validation(config: DemoConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, questions ``(images, asked, length)`` and answers ``(images, asked)``; the same for every seed."""
    images, digits = digits_questions.splits()["validation"]
    rng = np.random.default_rng(VALIDATION_SEED)
    return images, *digits_questions.ask(digits, config.asked["validation"], rng)


def _specs() -> tuple[TensorSpec, ...]:
    batch = Dim("batch", 1, 1, 64)
    size = 8
    return (TensorSpec(name="image", dtype="float32", shape=(batch, 1, size, size), modality="image"),
            TensorSpec(name="question", dtype="int64", shape=(batch, Dim("length", 4, 8, LENGTH)), modality="text"))
