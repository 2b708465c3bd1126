"""A small model with processing, and raw samples for it in the forms people have; made in a second."""

from __future__ import annotations

import io
import json
import tarfile
import wave
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import compress
from compress.model import Model

WORDS = ["[]", "what", "is", "it", "red", "?"]
LABELS = ["no", "yes", "unknown"]
PROCESSING: dict[str, Any] = {"inputs": {
    "pixels": {"kind": "image", "from": "image", "mode": "L", "steps": [
        {"op": "resize", "size": [4, 4], "resample": "box"}, {"op": "rescale"}]},
    "words": {"kind": "text", "from": "question", "pad_id": 0, "pad_to": "max_length",
              "vocabulary": {"words": WORDS, "separate": "?"}},
}}  # fmt: skip
SPEECH: dict[str, Any] = {"inputs": {"wave": {"kind": "audio", "from": "speech", "rate": 8000}}}


class Asked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen = nn.Linear(16, 8)
        self.heard = nn.Embedding(len(WORDS), 8)
        self.head = nn.Linear(16, len(LABELS))

    def forward(self, pixels: Tensor, words: Tensor) -> Tensor:
        return self.head(torch.cat([self.seen(pixels.flatten(1)), self.heard(words).mean(1)], dim=1))


class Loudness(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 2)

    def forward(self, wave: Tensor) -> Tensor:
        return self.head(wave.abs().mean(1, keepdim=True))


def write_model(path: Path, processing: dict[str, Any] | None = PROCESSING) -> Model:
    torch.manual_seed(0)
    example = {"pixels": torch.zeros(2, 1, 4, 4), "words": torch.zeros(2, 5, dtype=torch.int64)}
    return compress.save(
        Asked().eval(), path, example=example,
        inputs={"pixels": compress.Input(modality="image"), "words": compress.Input(modality="text")},
        labels={"output": LABELS}, processing=processing,
    )  # fmt: skip


def write_speech_model(path: Path) -> Model:
    inputs = {"wave": compress.Input(modality="audio", dims=("batch", compress.Dim("samples", 2, 100, 8000)))}
    return compress.save(Loudness().eval(), path, example={"wave": torch.zeros(2, 100)}, inputs=inputs,
                         processing=SPEECH)  # fmt: skip


def png(grey: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (8, 8), grey).save(stream, "PNG")
    return stream.getvalue()


def samples(count: int) -> list[tuple[bytes, str, str]]:
    """Picture, question and label."""
    return [(png(index % 256), "is it red ?", LABELS[index % 3]) for index in range(count)]


def write_photos(folder: Path, count: int = 12, header: str = "file,question,label") -> Path:
    folder.mkdir(parents=True)
    lines = [header]
    for index, (picture, question, label) in enumerate(samples(count)):
        (folder / f"{index:03d}.png").write_bytes(picture)
        lines.append(f"{index:03d}.png,{question},{label}")
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    return folder


def write_speech(folder: Path) -> Path:
    folder.mkdir()
    for length in (40, 80):
        with wave.open(str(folder / f"{length}.wav"), "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            file.writeframes(np.arange(length, dtype="<i2").tobytes())
        (folder / f"{length}.txt").write_text("what is it ?")
    return folder


def write_shards(folder: Path) -> Path:
    folder.mkdir()
    for index, (picture, question, label) in enumerate(samples(4)):
        members = {"png": picture, "json": json.dumps({"question": question, "label": label}).encode()}
        with tarfile.open(folder / f"{index:06d}.tar", "w") as archive:
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{index}.{extension}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return folder


def write_tables(parquet: Path, saved: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    pictures, questions, labels = zip(*samples(5), strict=True)
    table = pa.table({"image": [{"bytes": data, "path": None} for data in pictures], "question": questions,
                      "label": labels})  # fmt: skip
    pyarrow.parquet.write_table(table, parquet)
    saved.mkdir(parents=True)
    name = "data-00000-of-00001.arrow"
    with pa.OSFile(str(saved / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
