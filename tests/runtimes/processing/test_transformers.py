"""What the processors of the transformers library do, said as records: the results are theirs.

The library is the reference alone; where it is not installed these tests are skipped. Its processors and tokenizers are
built here from their settings, nothing is fetched.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtimes.spec import Dim
from tests.runtimes.processing.describing import processor, spec

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

IMAGENET = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
RESCALE = {"op": "rescale", "scale": 1 / 255}


def normalize(values: tuple[list[float], list[float]]) -> dict[str, Any]:
    return {"op": "normalize", "mean": values[0], "std": values[1]}


def exact(size: int, resample: str, values: tuple[list[float], list[float]]) -> list[dict[str, Any]]:
    return [{"op": "resize", "size": [size, size], "resample": resample}, RESCALE, normalize(values)]


# processor class of the library -> its settings, and the steps that say the same
IMAGES: dict[str, tuple[dict[str, Any], list[dict[str, Any]], int]] = {
    "CLIPImageProcessorPil": ({}, [
        {"op": "resize", "shortest_edge": 224}, {"op": "center_crop", "size": [224, 224]}, RESCALE, normalize(CLIP),
    ], 224),
    "SiglipImageProcessorPil": ({}, exact(224, "bicubic", IMAGENET), 224),
    "BlipImageProcessorPil": ({}, exact(384, "bicubic", CLIP), 384),
    "ViTImageProcessorPil": ({}, exact(224, "bilinear", IMAGENET), 224),
    # TrOCR's processor is a ViT processor of 384 pixels
    "ViTImageProcessorPil 384": ({"size": {"height": 384, "width": 384}}, exact(384, "bilinear", IMAGENET), 384),
}
SIZES = [(480, 640), (640, 480), (300, 301), (37, 53), (225, 224), (224, 224), (1000, 231)]


@pytest.mark.parametrize("name", IMAGES)
def test_image_processors(name: str) -> None:
    keys, steps, side = IMAGES[name]
    reference = getattr(transformers, name.split()[0])(**keys)
    made = processor({"x": {"kind": "image", "from": "x", "steps": steps}}, takes=[spec("x", "float32", 3, side, side)])
    rng = np.random.default_rng(0)
    for height, width in SIZES:
        coarse = rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)      # smooth, as photographs are
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        expected = reference(image, return_tensors="np")["pixel_values"]
        np.testing.assert_allclose(made.feed({"x": image})["x"], expected, atol=1e-5, err_msg=f"{height}x{width}")


def test_vilt_pads_its_batch() -> None:
    reference = transformers.ViltImageProcessorPil()
    steps = [{"op": "resize", "shortest_edge": 384, "longest_edge": 639, "multiple_of": 32, "rounding": "nearest"},
             RESCALE, normalize(IMAGENET)]
    side = Dim("side", 32, 384, 640), Dim("other", 32, 384, 640)
    made = processor(
        {"x": {"kind": "image", "from": "x", "steps": steps, "pad_batch": True}, "m": {"kind": "mask", "of": "x"}},
        takes=[spec("x", "float32", 3, *side), spec("m", "int64", *side)])
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in SIZES]
    expected = reference(images, return_tensors="np")
    feed = made.feed({"x": images})
    np.testing.assert_allclose(feed["x"], expected["pixel_values"], atol=1e-5)
    np.testing.assert_array_equal(feed["m"], expected["pixel_mask"])


def speech(seconds: float, rate: int, seed: int = 0) -> np.ndarray:
    """Tones with noise, rising and falling, in -1..1."""
    rng, time = np.random.default_rng(seed), np.arange(int(seconds * rate)) / rate
    pitches = 2 * np.pi * np.array([[220], [700], [2500]])
    tones = (np.sin(pitches * time) * np.sin(np.pi * time * [[1], [2], [3]]) ** 2).sum(axis=0)
    return np.asarray(0.2 * tones + 0.02 * rng.standard_normal(len(time))).astype(np.float32)


def frames(most: int) -> Dim:
    return Dim("time", 1, 1, most)


WHISPER = [
    {"op": "fit", "length": 480000},
    {"op": "spectrogram", "n_fft": 400, "hop": 160, "log": "log10", "drop_last": True,
     "mel": {"count": 80, "high_hz": 8000}},
    {"op": "floor_below_max", "range": 8}, {"op": "rescale", "scale": 0.25, "offset": 1},
]


@pytest.mark.parametrize("seconds", [0.5, 30, 31])
def test_whisper(seconds: float) -> None:
    reference = transformers.WhisperFeatureExtractor()
    entry = {"kind": "audio", "from": "x", "rate": 16000, "steps": WHISPER}
    made = processor({"x": entry, "m": {"kind": "mask", "of": "x"}},
                     takes=[spec("x", "float32", 80, 3000), spec("m", "int32", 3000)])
    samples = speech(seconds, 16000)
    expected = reference(samples, sampling_rate=16000, return_tensors="np", return_attention_mask=True)
    feed = made.feed({"x": samples})
    np.testing.assert_allclose(feed["x"], expected["input_features"], atol=1e-4)
    np.testing.assert_array_equal(feed["m"], expected["attention_mask"])


def clap(scale: str, norm: str) -> list[dict[str, Any]]:
    return [{"op": "fit", "length": 480000, "fill": "repeat_zero"},
            {"op": "spectrogram", "n_fft": 1024, "hop": 480, "log": "db",
             "mel": {"count": 64, "low_hz": 50, "high_hz": 14000, "scale": scale, "norm": norm}}]


@pytest.mark.parametrize(("truncation", "copies", "steps"), [
    ("rand_trunc", 1, clap("slaney", "slaney")), ("fusion", 4, clap("htk", "none"))])
@pytest.mark.parametrize("seconds", [1.3, 10])
def test_clap(truncation: str, copies: int, steps: Any, seconds: float) -> None:
    """Of at most ten seconds: beyond them the library draws what it keeps at random."""
    reference = transformers.ClapFeatureExtractor(truncation=truncation, frequency_min=50)
    made = processor(
        {"x": {"kind": "audio", "from": "x", "rate": 48000, "steps": steps, "layout": "TF", "copies": copies},
         "l": {"kind": "constant", "value": [False]}},
        takes=[spec("x", "float32", copies, 1001, 64), spec("l", "bool", 1)])
    samples = speech(seconds, 48000)
    expected = reference(samples, sampling_rate=48000, return_tensors="np")
    feed = made.feed({"x": samples})
    np.testing.assert_allclose(feed["x"], expected["input_features"], atol=1e-4)
    if truncation == "rand_trunc":      # in "fusion" the library calls one sample of a batch longer, at random
        np.testing.assert_array_equal(feed["l"], expected["is_longer"])


@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")
@pytest.mark.parametrize("seconds", [1.0, 12.0])
def test_audio_spectrogram_transformer(seconds: float) -> None:
    reference = transformers.ASTFeatureExtractor()
    steps = [
        {"op": "spectrogram", "n_fft": 512, "frame": 400, "hop": 160, "periodic": False, "center": False,
         "preemphasis": 0.97, "remove_offset": True, "log": "ln", "floor": 1.192092955078125e-07,
         "mel": {"count": 128, "low_hz": 20, "high_hz": 8000, "scale": "kaldi", "norm": "none", "in_mel": True}},
        {"op": "fit", "length": 1024}, {"op": "normalize", "mean": -4.2677393, "std": 2 * 4.5689974}]
    made = processor({"x": {"kind": "audio", "from": "x", "rate": 16000, "steps": steps, "layout": "TF"}},
                     takes=[spec("x", "float32", 1024, 128)])
    samples = speech(seconds, 16000)
    expected = reference(samples, sampling_rate=16000, return_tensors="np")["input_values"]
    np.testing.assert_allclose(made.feed({"x": samples})["x"], expected, atol=1e-4)


def test_wav2vec2_pads_its_batch() -> None:
    reference = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    made = processor({"x": {"kind": "audio", "from": "x", "rate": 16000, "steps": [{"op": "standardize"}]},
                      "m": {"kind": "mask", "of": "x"}},
                     takes=[spec("x", "float32", frames(32000)), spec("m", "int32", frames(32000))])
    batch = [speech(seconds, 16000, seed) for seed, seconds in enumerate((1.0, 0.3, 1.7))]
    expected = reference(batch, sampling_rate=16000, return_tensors="np", padding=True)
    feed = made.feed({"x": batch})
    np.testing.assert_allclose(feed["x"], expected["input_values"], atol=1e-4)
    np.testing.assert_array_equal(feed["m"], expected["attention_mask"])


TEXTS = ["a photo of a cat", "Two dogs, playing!", "the quick brown fox jumps over the lazy dog and again", "café?"]


def vocabulary(texts: list[str]) -> list[str]:
    """Characters, with and without the mark that a word goes on, and a few whole words."""
    letters = sorted({c for text in texts for c in text.lower() if not c.isspace()})
    return [*letters, *(f"##{c}" for c in letters), "photo", "dog", "##s", "the"]


@pytest.mark.parametrize("pad_to", ["longest", "max_length"])
@pytest.mark.parametrize("pairs", [False, True])
def test_bert_tokens(pad_to: str, pairs: bool) -> None:
    """BERT's, BLIP's and ViLT's: WordPiece, special tokens, types of a pair, padding, truncation."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(vocabulary(TEXTS))]
    reference = transformers.BertTokenizer(vocab={name: index for index, name in enumerate(names)})
    data = reference.backend_tokenizer.to_str().encode()
    takes = [spec(name, "int64", Dim("length", 1, 1, 24)) for name in ("ids", "mask", "types")]
    entry = {"kind": "text", "from": "text", "tokenizer": "t.json", "pad_id": 0, "truncate": "right", "pad_to": pad_to}
    made = processor(
        {"ids": {**entry, **({"pair": "second"} if pairs else {})}, "mask": {"kind": "mask", "of": "ids"},
         "types": {"kind": "token_types", "of": "ids"}}, takes=takes, files={"t.json": data})
    second = TEXTS[::-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = reference(TEXTS, second if pairs else None, truncation=True, max_length=24, return_tensors="np",
                             padding="max_length" if pad_to == "max_length" else True)
    feed = made.feed({"text": TEXTS, **({"second": second} if pairs else {})})
    np.testing.assert_array_equal(feed["ids"], expected["input_ids"])
    np.testing.assert_array_equal(feed["mask"], expected["attention_mask"])
    np.testing.assert_array_equal(feed["types"], expected["token_type_ids"])


def test_clip_tokens() -> None:
    """CLIP's byte-level BPE: lower case, start and end, padded to the full length with the end's id."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "do", "dog</w>", "<|startoftext|>", "<|endoftext|>"]
    vocab = {word: index for index, word in enumerate(words)}
    reference = transformers.CLIPTokenizer(vocab=vocab, merges=[("d", "o"), ("do", "g</w>")])
    data, end = reference.backend_tokenizer.to_str().encode(), vocab["<|endoftext|>"]
    made = processor(
        {"ids": {"kind": "text", "from": "text", "tokenizer": "t.json", "pad_id": end, "truncate": "right"},
         "mask": {"kind": "mask", "of": "ids"}},
        takes=[spec("ids", "int64", 20), spec("mask", "int64", 20)], files={"t.json": data})
    expected = reference(TEXTS, padding="max_length", truncation=True, max_length=20, return_tensors="np")
    feed = made.feed({"text": TEXTS})
    np.testing.assert_array_equal(feed["ids"], expected["input_ids"])
    np.testing.assert_array_equal(feed["mask"], expected["attention_mask"])
    assert len(set(feed["ids"][1])) > 5


def test_connectionist_decoding_is_wav2vec2s(tmp_path: Any) -> None:
    import json

    words = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdehlorw"]
    (tmp_path / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    reference = transformers.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"))
    ids = np.random.default_rng(0).integers(4, len(words), (5, 40))
    ids[:, ::3] = ids[:, 1::3][:, : ids[:, ::3].shape[1]][:, [*range(13), 12]]
    ids[:, ::5] = 0
    entry = {"kind": "text", "scores": False, "vocabulary": {"words": words, "joiner": ""}, "collapse": True,
             "blank": 0, "replace": [["|", " "]]}
    made = processor(outputs={"y": entry}, gives=[spec("y", "int64", 40)])
    assert made.answer({"y": ids})["y"] == reference.batch_decode(ids, clean_up_tokenization_spaces=False)
