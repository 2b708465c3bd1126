"""A short video described in a sentence: convolutions see each frame, a GRU reads them, a decoder writes.

The videos are those of :mod:`compress.zoo.video`: a handwritten digit that moves, turns, grows, fades or stays for 6 to
16 frames. The decoder is the captioner's, and attends to the frames, as many as there are, in place of the places of a
picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
from torch import Tensor, nn

from compress.model import Input
from compress.zoo.captioning import Captioner, Decoder, read, writing, written
from compress.zoo.coloured_digits import BEGIN, END, PADDING
from compress.zoo.digits_questions import DIGITS, splits
from compress.zoo.fitting import FitConfig
from compress.zoo.reference import Reference
from compress.zoo.samples import Rows, Splits, by_shape
from compress.zoo.video import LABELS, SHOWN, SIZE, filmed
from runtimes.spec import Dim

VOCABULARY = ("[padding]", "[begin]", "[end]", "a", "there", "is", "that",
              *dict.fromkeys(word for label in LABELS for word in label.split()), *DIGITS)  # fmt: skip
STEPS = 8                       # the longest sentence, "there is a three that moves left", and its end
assert (PADDING, BEGIN, END) == (0, 1, 2)       # as the decoder's loop has them


def build(
    *, channels: int = 16, width: int = 64, heads: int = 4, blocks: int = 2, hidden: int = 192
) -> VideoCaptioner:
    """Return the network with fresh weights.

    Args:
        channels: of the first convolution; twice and four times as many of the others. width: of what is seen in a
            frame, of the GRU and of the decoder. heads, blocks, hidden: of the decoder.
    """
    return VideoCaptioner(VideoEncoder(channels, width), Decoder(width, heads, blocks, hidden, len(VOCABULARY), STEPS))


class VideoCaptioner(Captioner):
    """A captioner whose encoder reads frames."""

    def encode(self, video: Tensor) -> dict[str, Tensor]:
        """Grey levels f32 ``(batch, frames, 24, 24)`` in [0, 1] to ``(batch, blocks, heads, frames, width)``."""
        return self.decoder.look(self.image_encoder(video))

    def forward(self, video: Tensor, words: Tensor) -> Tensor:
        """As the captioner's."""
        return super().forward(video, words)


class VideoEncoder(nn.Module):
    """An encoder of frames and a GRU over them: ``(batch, frames, width)``."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.frame_encoder = FrameEncoder(channels, width)
        self.time_encoder = nn.GRU(width, width, batch_first=True)

    def forward(self, video: Tensor) -> Tensor:
        seen = self.frame_encoder(video.reshape(-1, 1, SIZE, SIZE))
        states: Tensor = self.time_encoder(seen.reshape(video.shape[0], video.shape[1], seen.shape[1]))[0]
        return states


class FrameEncoder(nn.Module):
    """Three convolutions with a stride of 2 and a layer over all places: ``(frames, width)``."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(*(
            layer for given, made in ((1, channels), (channels, 2 * channels), (2 * channels, 4 * channels))
            for layer in (nn.Conv2d(given, made, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(made), nn.ReLU())
        ))  # fmt: skip
        self.out = nn.Linear(4 * channels * 9, width)

    def forward(self, frame: Tensor) -> Tensor:
        seen: Tensor = self.out(self.convolutions(frame).flatten(1)).relu()
        return seen


@cache
def samples() -> Splits:
    """Videos of three splits and both of their sentences, the same on every call; no digit is in two."""
    rng = np.random.default_rng(0)
    return {name: by_shape(_videos(np.repeat(images, SHOWN[name], axis=0), np.repeat(digits, SHOWN[name]), rng))
            for name, (images, digits) in splits().items()}  # fmt: skip


def _videos(images: np.ndarray, digits: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[Rows, np.ndarray]]:
    for image, digit in zip(images[:, 0], digits, strict=True):
        length, happens = int(rng.integers(6, 17)), LABELS[rng.integers(len(LABELS))]
        sentences = (f"a {DIGITS[digit]} {happens}", f"there is a {DIGITS[digit]} that {happens}")
        yield {"video": filmed(image, happens, length, rng)}, np.array(sentences)


def unseen(rows: Rows) -> Rows:
    """Black videos: what is left is a model of the language."""
    return {**rows, "video": np.zeros_like(rows["video"])}


def first_frame_alone(rows: Rows) -> Rows:
    """Videos that show their first frame all the time."""
    video = rows["video"]
    return {**rows, "video": np.repeat(video[:, :1], video.shape[1], axis=1)}


SEEN = Input(dims=("batch", None, None, Dim("seen", 1, 12, 32)))      # frames, too
VIDEO_CAPTION = Reference(
    name="video-caption", factory="compress.zoo.video_caption:build", samples=samples, metric="bleu",
    composed=writing("video", 6, VOCABULARY, STEPS),
    fit=FitConfig(epochs=24, batch=32, rate=3e-3), macs=0.7,
    blinded={"first frame alone": first_frame_alone, "video unseen": unseen},
    inputs={"video": Input(modality="video", dims=("batch", Dim("frames", 1, 12, 32))), "seen_key": SEEN,
            "seen_value": SEEN, **written(STEPS)},
    processing={"inputs": {"video": {"kind": "features", "from": "video", "std": 255}}, "outputs": read(VOCABULARY)},
)  # fmt: skip
