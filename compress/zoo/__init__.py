"""Models that come with the project, each with its task, its data and its training: what `compress demo` writes."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from compress.errors import CompressError

if TYPE_CHECKING:
    from compress.zoo.demo import DemoRecord
    from compress.zoo.reference import Reference, ReferenceRecord

Progress = Callable[[int, int, str], None]
"""Called with the steps done, the steps in all and a few words."""

DEMO = "digits-vqa"
"""The one that `make demo` shows, written by :mod:`compress.zoo.demo`; the others are values of one class."""

REFERENCES: Mapping[str, str] = {
    "dense": "compress.zoo.dense_classifier:DENSE",
    "features-concat": "compress.zoo.fused_features:CONCAT",
    "features-sum": "compress.zoo.fused_features:WEIGHTED_SUM",
    "features-gated": "compress.zoo.fused_features:GATED_SUM",
    "patient": "compress.zoo.patient:PATIENT",
    "dual-encoder": "compress.zoo.dual_encoder:DUAL_ENCODER",
    "captioning": "compress.zoo.captioning:CAPTIONING",
    "video-caption": "compress.zoo.video_caption:VIDEO_CAPTION",
    "image-text": "compress.zoo.image_text:IMAGE_TEXT",
    "attention-vqa": "compress.zoo.attention_vqa:ATTENTION_VQA",
    "driving": "compress.zoo.driving:DRIVING",
    "video": "compress.zoo.video:VIDEO",
    "spoken-command": "compress.zoo.commands:COMMANDS",
}
"""Name -> where its :class:`compress.zoo.reference.Reference` is."""

MODELS = (DEMO, *REFERENCES)


def get_reference(name: str) -> Reference:
    """The reference model called ``name``.

    Raises:
        CompressError: if there is none of that name; names the nearest.
    """
    if name not in REFERENCES:
        near = difflib.get_close_matches(name, REFERENCES, n=1, cutoff=0.3) or list(REFERENCES)
        raise CompressError(f"there is no model {name!r}: did you mean {near[0]!r}? There are {', '.join(MODELS)}")
    module, _, attribute = REFERENCES[name].partition(":")
    found: Reference = getattr(importlib.import_module(module), attribute)
    return found


def make(
    name: str, folder: Path, *, seed: int = 0, quick: bool = False, progress: Progress | None = None
) -> DemoRecord | ReferenceRecord:
    """Train the model called ``name``; write it, its data and a recipe into ``folder``, unless it is all there.

    Raises:
        CompressError: if there is no such model, ``folder`` holds another, or the disk is full.
    """
    if name == DEMO:
        from compress.zoo.demo import make_demo

        return make_demo(folder, seed=seed, quick=quick, progress=progress)
    reference = get_reference(name)
    from compress.zoo.reference import make_reference

    return make_reference(reference, folder, seed=seed, quick=quick, progress=progress)
