"""The image processor of a folder as the steps of a record."""

from __future__ import annotations

from typing import Any

import torch

from compress.errors import CompressError
from compress.huggingface.folder import Folder
from compress.huggingface.library import LOCAL, first_line, library

FILES = ("preprocessor_config.json", "processor_config.json")
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}     # Pillow's numbers
PLAIN = frozenset({
    "BlipImageProcessorPil", "CLIPImageProcessorPil", "DeiTImageProcessorPil", "SiglipImageProcessorPil",
    "ViTImageProcessorPil",
})
"""Processors that do nothing but resize, crop, rescale and normalize."""


def image_entry(folder: Folder) -> dict[str, Any]:
    """Of pixel values, from the raw input ``image``.

    Raises:
        CompressError: if the folder has no image processor, or one that records do not know.
    """
    processor = image_processor(folder, PLAIN)
    if getattr(processor, "do_pad", None):
        raise CompressError(f"{folder.path}: its image processor pads (do_pad): give the model a record of your own")
    return {"kind": "image", "from": "image", "steps": [*_sizing(processor, folder), *levels(processor)]}


def image_processor(folder: Folder, known: frozenset[str]) -> Any:
    """The library's image processor object, of one of the classes ``known``."""
    if not any((folder.path / name).is_file() for name in FILES):
        raise CompressError(f"{folder.path} has no image processor: expected {FILES[0]} beside config.json")
    try:
        processor = library().AutoImageProcessor.from_pretrained(str(folder.path), backend="pil", **LOCAL)
    except Exception as error:  # settings that do not fit each other fail anywhere in the library's classes
        raise CompressError(f"{folder.path}: its image processor cannot be read: {first_line(error)}") from error
    if type(processor).__name__ not in known:
        raise CompressError(
            f"{folder.path}: the image processor {type(processor).__name__} is not known: known are "
            f"{', '.join(sorted(name.removesuffix('Pil') for name in known))}; give the model a record of your own "
            "(docs/processing.md)"
        )
    return processor


def levels(processor: Any) -> list[dict[str, Any]]:
    """The steps that make numbers of grey levels."""
    steps: list[dict[str, Any]] = []
    if processor.do_rescale:
        steps.append({"op": "rescale", "scale": processor.rescale_factor})
    if processor.do_normalize:
        steps.append({"op": "normalize", "mean": _plain(processor.image_mean), "std": _plain(processor.image_std)})
    return steps


def _sizing(processor: Any, folder: Folder) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    if processor.do_resize:
        steps.append({"op": "resize", **_size(processor.size, folder), "resample": RESAMPLE[int(processor.resample)]})
    if processor.do_center_crop:
        steps.append({"op": "center_crop", "size": [processor.crop_size["height"], processor.crop_size["width"]]})
    return steps


def _size(size: Any, folder: Folder) -> dict[str, Any]:
    given = {key: value for key, value in dict(size).items() if value is not None}
    if given.keys() == {"height", "width"}:
        return {"size": [given["height"], given["width"]]}
    if given.keys() == {"shortest_edge"}:
        return {"shortest_edge": given["shortest_edge"]}
    raise CompressError(
        f"{folder.path}: its image processor resizes to {given}: expected height and width, or shortest_edge"
    )


def _plain(value: Any) -> Any:
    return [float(item) for item in value] if isinstance(value, list | tuple) else float(value)


def image_example(config: Any) -> torch.Tensor:
    """Two pictures of noise as the network of ``config`` takes them, ``(batch, channels, height, width)``."""
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    channels = getattr(config, "num_channels", 3)       # BLIP's has three and does not say so
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))
