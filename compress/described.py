"""A model as the processing code of a device sees it, before there is a bundle."""

from __future__ import annotations

from types import SimpleNamespace

from compress.model import Model, ModelProcessing
from runtimes.processing.processor import Described
from runtimes.processing.record import FOLDER, Processing


def described(model: Model, processing: ModelProcessing | None = None) -> Described:
    """What :class:`runtimes.processing.Processor` takes, of ``model`` with its own or another ``processing``."""
    own = processing or model.processing or ModelProcessing(section=Processing(inputs={}, outputs={}))
    return SimpleNamespace(
        graphs=model.graphs, chain=None if model.chain is None else model.wiring, processing=own.section,
        read_file=lambda name: own.files[name.removeprefix(f"{FOLDER}/")])  # fmt: skip
