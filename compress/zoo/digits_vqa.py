"""The demo's network: a small vision transformer, a text encoder, cross-attention of words onto the image, a head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own name
from torch import Tensor, nn

from compress.errors import CompressError

PADDING = 0             # the question's token id that means "no word here"
IMAGE_SIZE = 8          # pixels a side; every pixel is a token
SHORTEST, LONGEST = 4, 12   # words in a question
WORDS = 40              # rows of the embedding table; the vocabulary of digits_questions fits
ANSWERS = 12            # yes, no, zero .. nine
STEM = 32               # channels between the image encoder's two convolutions


def build(
    *,
    width: int = 384,
    image_width: int | None = None,
    head_dim: int = 64,
    image_heads: Sequence[int] = (6, 6),
    image_hidden: Sequence[int] = (1024, 1024),
    text_heads: Sequence[int] = (4,),
    text_hidden: Sequence[int] = (384,),
    fusion_heads: Sequence[int] = (6,),
    fusion_hidden: Sequence[int] = (768,),
    words: int = WORDS,
    answers: int = ANSWERS,
) -> DigitsVQA:
    """Return the network with fresh weights; the factory ``compress.zoo.digits_vqa:build``.

    Args:
        width: channels of the residual stream. image_width: of the image encoder's, where it is another.
        head_dim: channels of one attention head.
        image_heads, image_hidden: attention heads and feed-forward channels of each block of the image encoder, one
            entry a block: a pruned network's shape is built by giving the pruned numbers.
        text_heads, text_hidden: the same of the text encoder's blocks.
        fusion_heads, fusion_hidden: the same of the cross-attention blocks.
        words: rows of the embedding table. answers: size of the output.

    Raises:
        CompressError: if a component's two lists differ in length, are empty or hold a number below one.
    """
    for name, heads, hidden in (
        ("image", image_heads, image_hidden), ("text", text_heads, text_hidden), ("fusion", fusion_heads, fusion_hidden)
    ):
        if len(heads) != len(hidden) or not heads or min(*heads, *hidden) < 1:
            raise CompressError(
                f"{name}_heads {list(heads)} and {name}_hidden {list(hidden)} must have one entry of at least 1 a block"
            )
    seen = width if image_width is None else image_width
    return DigitsVQA(
        ImageEncoder(seen, _blocks(seen, head_dim, image_heads, image_hidden)),
        TextEncoder(words, width, _blocks(width, head_dim, text_heads, text_hidden)),
        Fusion(_blocks(width, head_dim, fusion_heads, fusion_hidden, seen)),
        Head(width, answers),
    )


class DigitsVQA(nn.Module):
    """Answers a question about a picture of a digit."""

    def __init__(self, image_encoder: ImageEncoder, text_encoder: TextEncoder, fusion: Fusion, head: Head) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.fusion = fusion
        self.head = head
        for module in self.modules():
            if isinstance(module, nn.Linear):   # PyTorch's own start is too small to learn from in minutes
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, image: Tensor, question: Tensor) -> Tensor:
        """Logits ``(batch, answers)``: images f32 ``(batch, 1, 8, 8)`` in [0, 1] words i64 ``(batch, length)``."""
        words = question != PADDING
        text = self.text_encoder(question, words)
        logits: Tensor = self.head(self.fusion(text, self.image_encoder(image)), words)
        return logits

    def ask(self, seen: Tensor, questions: Tensor) -> Tensor:
        """Logits ``(batch, asked, answers)`` of several ``questions`` ``(batch, asked, length)`` about each image.

        ``seen`` is what the image encoder made of the images. Equal to :meth:`forward` on every pair.
        """
        question = questions.flatten(0, 1)
        words = question != PADDING
        return self.answer(seen, self.text_encoder(question, words), words)

    def answer(self, seen: Tensor, text: Tensor, words: Tensor) -> Tensor:
        """Logits ``(batch, asked, answers)`` of encoded images ``seen`` and encoded questions ``text``.

        A word attends to the image alone here, so all the questions of an image, ``(batch * asked, length, width)``,
        are one long query.
        """
        batch, (rows, length, width) = len(seen), text.shape
        fused = self.fusion(text.reshape(batch, -1, width), seen).reshape(rows, length, width)
        logits: Tensor = self.head(fused, words)
        return logits.reshape(batch, rows // batch, -1)


class ImageEncoder(nn.Module):
    """Two convolutions to one token a pixel, learned positions, transformer blocks: ``(batch, 64, width)``."""

    def __init__(self, width: int, blocks: nn.ModuleList) -> None:
        super().__init__()
        first, second = nn.Conv2d(1, STEM, 3, padding=1), nn.Conv2d(STEM, width, 3, padding=1)
        self.stem = nn.Sequential(first, nn.GELU(), second)
        for convolution in (first, second):     # PyTorch's own start drowns the pixels in the positions
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        self.position = nn.Parameter(torch.randn(1, IMAGE_SIZE**2, width) * 0.5)
        self.blocks = blocks
        self.norm = nn.LayerNorm(width)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.stem(image).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            tokens = block(tokens)
        normed: Tensor = self.norm(tokens)
        return normed


class TextEncoder(nn.Module):
    """Word embeddings, learned positions, transformer blocks blind to the padding: ``(batch, length, width)``."""

    def __init__(self, words: int, width: int, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        nn.init.normal_(self.embedding.weight, std=0.3)     # or the words drown what the image says in the fusion
        self.position = nn.Parameter(torch.randn(1, LONGEST, width) * 0.15)
        self.blocks = blocks

    def forward(self, question: Tensor, words: Tensor) -> Tensor:
        """``words`` is True ``(batch, length)`` where ``question`` is no padding."""
        text: Tensor = self.embedding(question) + self.position[:, : question.shape[1]]
        mask = words[:, None, None, :]
        for block in self.blocks:
            text = block(text, mask=mask)
        return text


class Fusion(nn.Module):
    """The words look at the image: cross-attention blocks, text as query, image tokens as keys and values."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        for block in self.blocks:
            text = block(text, context=image)
        return text


class Head(nn.Module):
    """Mean over the words, then one linear layer: ``(batch, answers)``."""

    def __init__(self, width: int, answers: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.answer = nn.Linear(width, answers)

    def forward(self, text: Tensor, words: Tensor) -> Tensor:
        weight = words.to(text.dtype)[:, :, None]
        pooled = (text * weight).sum(1) / weight.sum(1)
        logits: Tensor = self.answer(self.norm(pooled))
        return logits


class Block(nn.Module):
    """Pre-norm transformer block; with ``context`` its attention is cross-attention onto tokens ``context_width`` wide,
    where not as wide as its own.
    """

    def __init__(
        self, width: int, heads: int, head_dim: int, hidden: int, context_width: int | None = None
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, head_dim, context_width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        normed = self.norm1(tokens)
        tokens = tokens + self.attention(normed, normed if context is None else context, mask)
        changed: Tensor = tokens + self.down(F.gelu(self.up(self.norm2(tokens))))
        return changed


class Attention(nn.Module):
    """Multi-head attention of ``query`` onto ``context``.

    ``heads`` and ``head_dim`` are read at run time: pruning rewrites them with the weights. The scale stays the one
    the weights were trained with, so that removing channels that are zero changes nothing.
    """

    def __init__(self, width: int, heads: int, head_dim: int, context_width: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = head_dim
        self.scale = head_dim**-0.5
        self.q = nn.Linear(width, heads * head_dim)
        self.k = nn.Linear(context_width or width, heads * head_dim)
        self.v = nn.Linear(context_width or width, heads * head_dim)
        self.out = nn.Linear(heads * head_dim, width)

    def forward(self, query: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """As wide as ``query``; ``mask`` is True where a context token may be seen, broadcast to the scores."""
        q, k, v = self._split(self.q(query)), self._split(self.k(context)), self._split(self.v(context))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
        merged: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return merged

    def _split(self, channels: Tensor) -> Tensor:
        batch, tokens, _ = channels.shape
        return channels.view(batch, tokens, self.heads, self.head_dim).transpose(1, 2)


def _blocks(
    width: int, head_dim: int, heads: Sequence[int], hidden: Sequence[int], context_width: int | None = None
) -> nn.ModuleList:
    return nn.ModuleList(Block(width, h, head_dim, channels, context_width)
                         for h, channels in zip(heads, hidden, strict=True))
