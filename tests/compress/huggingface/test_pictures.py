"""Image processors of the library as records: each of those that are known, and the files of old releases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import compress
from compress.huggingface.folder import Folder
from compress.huggingface.pictures import PLAIN, image_entry
from tests.compress.huggingface.folders import picture, transformers
from tests.runtimes.processing.describing import processor, spec

SIZES = [(480, 640), (300, 301), (37, 53)]
OLD_CLIP = {
    "feature_extractor_type": "CLIPFeatureExtractor", "do_resize": True, "size": 224, "resample": 3, "crop_size": 224,
    "do_center_crop": True, "do_normalize": True, "image_mean": [0.48, 0.45, 0.4], "image_std": [0.26, 0.26, 0.27],
}  # fmt: skip


def check(folder: Path, reference: Any) -> None:
    entry = image_entry(Folder(path=folder, model_type="any", config={}))
    size = dict(reference.crop_size or reference.size)
    made = processor({"x": entry}, takes=[spec("x", "float32", 3, size["height"], size["width"])])
    for seed, (height, width) in enumerate(SIZES):
        image = picture(height, width, seed)
        expected = reference(image, return_tensors="np")["pixel_values"]
        np.testing.assert_allclose(made.feed({"image": image})["x"], expected, atol=1e-5)


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_each_is_the_librarys(tmp_path: Path, name: str) -> None:
    reference = getattr(transformers, name)()
    reference.save_pretrained(tmp_path)
    check(tmp_path, reference)


@pytest.mark.parametrize("values", [
    {"do_resize": True, "size": {"height": 40, "width": 24}, "resample": Image.Resampling.LANCZOS},
    {"do_normalize": False, "rescale_factor": 1 / 127.5}, {"image_mean": [0.1, 0.2, 0.3], "image_std": 0.4},
])  # fmt: skip
def test_settings_are_taken(tmp_path: Path, values: dict[str, Any]) -> None:
    reference = transformers.ViTImageProcessorPil(**values)
    reference.save_pretrained(tmp_path)
    check(tmp_path, reference)


def test_the_file_of_an_old_release(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(OLD_CLIP))
    check(tmp_path, transformers.CLIPImageProcessorPil.from_pretrained(tmp_path))


def test_a_file_that_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(compress.CompressError, match="its image processor cannot be read"):
        image_entry(Folder(path=tmp_path, model_type="any", config={}))
