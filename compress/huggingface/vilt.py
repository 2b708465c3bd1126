"""ViLT: one network of a picture's patches and a text, with a classifier of answers or a score of how they fit."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from compress.errors import CompressError
from compress.huggingface.checkpoint import build
from compress.huggingface.folder import Folder
from compress.huggingface.parts import Parts, Tower, classifier, record
from compress.huggingface.pictures import RESAMPLE, image_processor, levels
from compress.huggingface.tokens import FILE, read_tokens, text_input
from compress.model import Input
from compress.saving import BATCH
from runtimes.spec import Dim

ARCHITECTURES = ("ViltForQuestionAnswering", "ViltForImageAndTextRetrieval", "ViltModel")
PROCESSORS = frozenset({"ViltImageProcessorPil"})
LONGEST = 1333 / 800        # the longer edge at most, of the shorter one: fixed in the library


def read(folder: Folder, architecture: str) -> Parts:
    """One graph: a picture of any size, its mask, and a text with its mask and types to ``logits`` or states."""
    config = folder.built_config("ViltConfig")
    tokens = read_tokens(folder, config)
    pixels, height, width = _pixels(folder, config)
    model: Any = build(folder, architecture, config, attention="eager")
    bare = architecture == "ViltModel"
    body, path = (model, "model") if bare else (model.vilt, "model.vilt")
    body.embeddings.visual_embed = functools.partial(patches, body.embeddings)
    answers, labels, heads = _answers(folder, config, architecture)
    ids = tokens.example(2)
    mask = torch.ones_like(ids)
    mask[1, ids.shape[1] // 2 + 1 :] = 0
    size = (height.opt, min(height.opt + config.patch_size, width.max))
    seen = torch.ones(2, *size, dtype=torch.int64)
    seen[1, :, config.patch_size :] = 0
    inputs = {
        "input_ids": tokens.entry(),
        "attention_mask": {"kind": "mask", "of": "input_ids"},
        "token_type_ids": {"kind": "token_types", "of": "input_ids"},
        "pixel_values": pixels,
        "pixel_mask": {"kind": "mask", "of": "pixel_values"},
    }
    length = Dim("length", 1, min(16, tokens.length), tokens.length)
    generator = torch.Generator().manual_seed(0)
    return Parts(
        module=Tower(model, ["last_hidden_state", "pooler_output"] if bare else ["logits"]),
        example={
            "input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids),
            "pixel_values": torch.randn(2, config.num_channels, *size, generator=generator) * seen[:, None],
            "pixel_mask": seen,
        },
        inputs={
            **{name: text_input(BATCH, length) for name in list(inputs)[:3]},
            "pixel_values": Input(modality="image", dims=(BATCH, None, height, width)),
            "pixel_mask": Input(modality="image", dims=(BATCH, height, width)),
        },
        components={"encoder": path, "text_embeddings": f"{path}.embeddings.text_embeddings",
                    "image_embeddings": f"{path}.embeddings.patch_embeddings", **heads},
        labels=labels,
        processing=record(folder, inputs, answers, {FILE: tokens.data}),
    )  # fmt: skip


def patches(
    embeddings: Any, pixel_values: torch.Tensor, pixel_mask: torch.Tensor, max_image_length: int
) -> tuple[torch.Tensor, torch.Tensor, None]:
    """The library's ``visual_embed`` for every patch of the batch, in their order, rather than for those it picks.

    The library takes each picture's own patches in a random order and, to make their number equal, others at random,
    which the mask then hides; here all are there in theirs, the others hidden. Positions are those of its grid,
    stretched over a picture's own patches (bilinear, corners aligned), which as a product of matrices needs no size of
    each picture.

    Args:
        embeddings: the library's ``ViltEmbeddings``.
        pixel_values: ``(batch, channels, height, width)``.
        pixel_mask: ``(batch, height, width)``, 1 where a picture is; the sides of each are whole patches.
        max_image_length: no more than this many; checked where the folder is read.

    Returns:
        The embeddings ``(batch, 1 + patches, hidden)`` with the class token's, and their mask.
    """
    projection = embeddings.patch_embeddings.projection
    found = projection(pixel_values)
    seen = nn.functional.max_pool2d(pixel_mask[:, None].float(), projection.kernel_size)[:, 0]
    height, width = seen.shape[1:]
    grid = int((embeddings.position_embeddings.shape[1] - 1) ** 0.5)
    own, places = embeddings.position_embeddings[:, :1], embeddings.position_embeddings[0, 1:]
    rows = _stretched(seen[:, :, 0].sum(dim=1), height, grid) @ places.reshape(grid, -1)
    positions = _stretched(seen[:, 0].sum(dim=1), width, grid)[:, None] @ rows.unflatten(2, (grid, -1))
    first = (embeddings.cls_token + own).expand(found.shape[0], -1, -1)
    states = torch.cat([first, found.flatten(2).transpose(1, 2) + positions.flatten(1, 2)], dim=1)
    return states, nn.functional.pad(seen.flatten(1).long(), (1, 0), value=1), None


def _stretched(count: torch.Tensor, size: int, grid: int) -> torch.Tensor:
    """Weights ``(batch, size, grid)`` that interpolate ``grid`` points over the first ``count`` of ``size`` places."""
    at = torch.arange(size) * ((grid - 1) / (count - 1).clamp(min=1))[:, None]
    return nn.functional.relu(1 - (at[:, :, None] - torch.arange(grid)).abs())


def _pixels(folder: Folder, config: Any) -> tuple[dict[str, Any], Dim, Dim]:
    """How pictures become pixels, and the heights and widths that come of it."""
    processor = image_processor(folder, PROCESSORS)
    short, step, patch = processor.size.shortest_edge, processor.size_divisor, config.patch_size
    if not processor.do_resize or short is None or not isinstance(patch, int) or step % patch:
        raise CompressError(
            f"{folder.path}: its image processor does not resize pictures to whole patches of {patch} pixels (size, "
            "size_divisor): give the model a record of your own"
        )
    long = int(LONGEST * short)
    most = (short // patch) * (long // patch)
    if 0 <= config.max_image_length < most:
        raise CompressError(
            f"{folder.path} draws {config.max_image_length} patches of a picture at random (max_image_length), which "
            f"cannot be traced: set -1 in its config.json, for up to {most}"
        )
    resize = {"op": "resize", "shortest_edge": short, "longest_edge": long, "multiple_of": step, "rounding": "nearest",
              "resample": RESAMPLE[int(processor.resample)]}  # fmt: skip
    entry = {"kind": "image", "from": "image", "pad_batch": True, "steps": [resize, *levels(processor)]}
    # Two patches at least, since torch takes a size of 1 for a constant: what is narrower is padded, and masked there.
    least, opt, largest = max(step, 2 * patch), short // step * step, long // step * step
    return entry, Dim("height", least, opt, largest), Dim("width", least, opt, largest)


def _answers(
    folder: Folder, config: Any, architecture: str
) -> tuple[dict[str, Any], dict[str, tuple[str, ...]], dict[str, str]]:
    """How the outputs are read, what ``logits`` mean, and the head as a component."""
    if architecture == "ViltModel":
        return {"pooler_output": {"kind": "values"}}, {}, {}
    if architecture == "ViltForImageAndTextRetrieval":
        return {"logits": {"kind": "values"}}, {}, {"head": "model.rank_output"}
    answers, labels = classifier(folder, config)
    if answers["logits"]["kind"] == "classes":      # each answer was trained by itself, as right or wrong
        answers["logits"]["activation"] = "sigmoid"
    return answers, labels, {"classifier": "model.classifier"}
