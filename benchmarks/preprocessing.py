"""The runtime's pre-processing beside the transformers library's, interleaved in one process: JSON on standard output.

    python benchmarks/preprocessing.py [--seconds 2] [--only NAME]... > benchmarks/results/preprocessing.json

Each of the library's processors has its own default settings and is saved; the record that the runtime works from is
the one ``compress`` reads from that folder. Raw inputs are a photograph of 1024x768 (gradients and noise; as JPEG
bytes, decoding inside the clock, and as an array), texts of 5 to 30 words for a WordPiece tokenizer of 5000 entries,
and sounds of tones and noise. Both give numpy arrays of one batch, and are first compared: tokens equal, numbers within
1e-4. The library's image processors are those on Pillow and numpy (``backend="pil"``), which it falls back to by itself
where torchvision is not installed; its Whisper features are made by torch.

``ratio`` is the median of the library's times over that of ours: above 1 we are faster. ``processor_ratio`` is the same
of the processor's time (of all threads), which other work on the machine disturbs less. Every row is measured with one
thread and with as many as each side takes by default, in a process of its own. Exit code 1 where, with one thread, a
``processor_ratio`` is below 1.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), "1")
IMAGES = ("CLIP", "ViT", "Siglip", "Blip")
WARMUP = 2


@dataclass(frozen=True, kw_only=True)
class Case:
    """The same work on both sides; each returns the arrays of a batch by name."""

    name: str
    raw: str
    library: Callable[[], Mapping[str, Any]]
    ours: Callable[[], Mapping[str, np.ndarray]]
    same: Mapping[str, str]     # our name -> the library's


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="how long to measure each row")
    parser.add_argument("--only", action="append", help="a processor to measure; may be given several times")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        with tempfile.TemporaryDirectory() as folder:
            found = (case for case in cases(Path(folder)) if not options.only or case.name in options.only)
            print(json.dumps([compare(case, options.seconds) for case in found]))
        return 0
    rows = []
    for threads, environment in (("1", ONE_THREAD), ("default", {})):
        command = [sys.executable, __file__, "--here", f"--seconds={options.seconds}"]
        command += [f"--only={name}" for name in options.only or ()]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, check=True, stdout=subprocess.PIPE)
        rows += [{"threads": threads, **row} for row in json.loads(done.stdout)]
    from runtimes.machine import machine_facts

    within = all(row["processor_ratio"] >= 1 for row in rows if row["threads"] == "1")
    names = ("transformers", "tokenizers", "numpy", "pillow", "torch")
    print(json.dumps({"rows": rows, "limit": 1.0, "within": within, "versions": {name: version(name) for name in names},
                      "machine": machine_facts()}, indent=1))  # fmt: skip
    return 0 if within else 1


def compare(case: Case, seconds: float) -> dict[str, Any]:
    """Both sides in turning order; the medians of their times."""
    expected, made = case.library(), case.ours()
    for ours, theirs in case.same.items():
        np.testing.assert_allclose(made[ours], np.asarray(expected[theirs]), atol=1e-4, rtol=0, err_msg=case.name)
    sides = [case.library, case.ours]
    times: list[list[tuple[int, int]]] = [[], []]
    order, until = [0, 1], time.perf_counter() + seconds
    while time.perf_counter() < until or len(times[0]) < WARMUP + 10:
        for index in order:
            start, used = time.perf_counter_ns(), time.process_time_ns()
            sides[index]()
            times[index].append((time.perf_counter_ns() - start, time.process_time_ns() - used))
        order.reverse()
    (library_ms, library_used_ms), (ours_ms, ours_used_ms) = np.median(np.array(times)[:, WARMUP:] / 1e6, axis=1)
    return {
        "processor": case.name, "raw": case.raw, "rounds": len(times[0]) - WARMUP, "ours_ms": round(ours_ms, 3),
        "library_ms": round(library_ms, 3), "ratio": round(library_ms / ours_ms, 2),
        "processor_ratio": round(library_used_ms / ours_used_ms, 2),
    }  # fmt: skip


def cases(folder: Path) -> Iterator[Case]:
    import transformers

    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    yield from image_cases(folder, transformers)
    yield from text_cases(transformers)
    yield from sound_cases(folder, transformers)


def image_cases(folder: Path, transformers: Any) -> Iterator[Case]:
    from PIL import Image

    from compress.huggingface.folder import Folder
    from compress.huggingface.pictures import image_entry

    pixels = photograph()
    jpeg = io.BytesIO()
    Image.fromarray(pixels).save(jpeg, "JPEG", quality=90)
    data = jpeg.getvalue()
    for name in IMAGES:
        library = getattr(transformers, f"{name}ImageProcessorPil")()
        library.save_pretrained(folder / name)
        entry = image_entry(Folder(path=folder / name, model_type=name.lower(), config={}))
        size = library.crop_size if getattr(library, "do_center_crop", None) else library.size
        ours = processor({"x": entry}, {"x": ("float32", 3, size["height"], size["width"])})
        yield Case(
            name=name, raw="JPEG", same={"x": "pixel_values"}, ours=lambda ours=ours: ours.feed({"image": data}),
            library=lambda library=library: library(Image.open(io.BytesIO(data)), return_tensors="np"),
        )  # fmt: skip
        yield Case(
            name=name, raw="array", same={"x": "pixel_values"}, ours=lambda ours=ours: ours.feed({"image": pixels}),
            library=lambda library=library: library(pixels, return_tensors="np"),
        )  # fmt: skip


def photograph() -> np.ndarray:
    """Gradients with noise, (768, 1024, 3)."""
    rng = np.random.default_rng(0)
    down, right = np.mgrid[0:768, 0:1024]
    smooth = np.stack([down / 3, right / 4, (down + right) / 7], axis=2)
    return np.clip(smooth + rng.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)


def text_cases(transformers: Any) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    words = list(dict.fromkeys("".join(rng.choice(syllables, rng.integers(1, 5))) for _ in range(8000)))[:4800]
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", *letters, *(f"##{x}" for x in letters),
                  *(f"##{x}" for x in syllables), *words]  # fmt: skip
    names = list(dict.fromkeys(vocabulary))
    library = transformers.BertTokenizer(vocab={name: index for index, name in enumerate(names)})
    entry = {"kind": "text", "from": "text", "tokenizer": "t.json", "pad_id": 0, "truncate": "right"}
    ids = ("int64", (1, 64))
    ours = processor(
        {"ids": entry, "mask": {"kind": "mask", "of": "ids"}, "types": {"kind": "token_types", "of": "ids"}},
        {"ids": ids, "mask": ids, "types": ids}, {"t.json": library.backend_tokenizer.to_str().encode()},
    )  # fmt: skip
    same = {"ids": "input_ids", "mask": "attention_mask", "types": "token_type_ids"}
    for batch in (1, 16):
        texts = [" ".join(rng.choice([*words, "unheard", "Of,", "it."], rng.integers(5, 31))) for _ in range(batch)]
        yield Case(
            name="WordPiece", raw=f"{batch} texts", same=same, ours=lambda texts=texts: ours.feed({"text": texts}),
            library=lambda texts=texts: library(
                texts, padding=True, truncation=True, max_length=64, return_tensors="np"),
        )  # fmt: skip


def sound_cases(folder: Path, transformers: Any) -> Iterator[Case]:
    from compress.huggingface.folder import Folder
    from compress.huggingface.sounds import read_log_mel, read_spectrogram, read_waveform

    def described(name: str, library: Any) -> Folder:
        library.save_pretrained(folder / name)
        return Folder(path=folder / name, model_type=name.lower(), config={})

    clap = transformers.ClapFeatureExtractor(truncation="rand_trunc")
    entry, shape = read_spectrogram(described("CLAP", clap))
    yield sound_case("CLAP", clap, entry, ("float32", *shape), 10, "input_features")
    waves = transformers.Wav2Vec2FeatureExtractor()
    wave = read_waveform(described("Wav2Vec2", waves))
    yield sound_case("Wav2Vec2", waves, wave.entry, ("float32", (1, 1_000_000)), 10, "input_values")
    whisper = transformers.WhisperFeatureExtractor()
    entry, frames = read_log_mel(described("Whisper", whisper))
    yield sound_case("Whisper", whisper, entry, ("float32", *frames), 30, "input_features")


def sound_case(name: str, library: Any, entry: Any, takes: tuple[Any, ...], seconds: int, key: str) -> Case:
    rate = library.sampling_rate
    at = np.arange(seconds * rate) / rate
    noise = np.random.default_rng(0).standard_normal(len(at))
    samples = (0.3 * np.sin(2 * np.pi * 440 * at) * np.sin(np.pi * at) + 0.02 * noise).astype(np.float32)
    ours = processor({"x": entry}, {"x": takes})
    return Case(
        name=name, raw=f"{seconds} s", same={"x": key}, ours=lambda: ours.feed({"audio": samples}),
        library=lambda: library(samples, sampling_rate=rate, return_tensors="np"),
    )  # fmt: skip


def processor(inputs: Mapping[str, Any], takes: Mapping[str, Any], files: Mapping[str, bytes] | None = None) -> Any:
    """The runtime's, of a model that takes these inputs: name -> (dtype, size, ...), a pair for a dynamic size."""
    from runtimes.processing import Processor, parse_processing
    from runtimes.spec import Dim, TensorSpec

    specs = []
    for name, (dtype, *sizes) in takes.items():
        shape = [Dim(f"{name}_{axis}", s[0], s[0], s[1]) if isinstance(s, tuple) else s for axis, s in enumerate(sizes)]
        specs.append(TensorSpec(name=name, dtype=dtype, shape=(Dim("batch", 1, 1, 64), *shape), batch_axis=0))
    held = {f"processing/{name}": data for name, data in (files or {}).items()}
    return Processor(SimpleNamespace(
        processing=parse_processing({"inputs": dict(inputs), "outputs": {}}, "the benchmark"), chain=None,
        graphs={"main": SimpleNamespace(inputs=tuple(specs), outputs=())}, read_file=held.__getitem__,
    ))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
