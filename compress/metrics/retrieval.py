"""Metrics of dual encoders, from the embeddings of both towers: recall@k in both directions, zero-shot accuracy.

The target of a sample is the id of its picture (or sound, or video): samples with one target are several texts of one
thing. For zero-shot accuracy it is the class, and the sample's text is a prompt of its class. Similarity is the cosine.
What is exactly as similar as the right one counts as ranked before it, so that towers which say the same of everything
find nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np

from compress.errors import CompressError
from compress.metrics.metric import Metric, Outputs

BLOCK = 512  # queries ranked at once: a block of similarities, not all of them, is in memory


def retrieved(outputs: Outputs, target: np.ndarray, k: int) -> np.ndarray:
    """1 where the picture of a sample is among the ``k`` that its text is most similar to, else 0."""
    pictures, texts, ids = _embeddings(outputs, target)
    firsts = _firsts(ids)
    return _hits(texts, ids, pictures[firsts], ids[firsts], k)


def text_retrieved(outputs: Outputs, target: np.ndarray, k: int) -> np.ndarray:
    """``(samples, 2)``, for the first sample of each picture: 1 where one of its texts is among the ``k`` first; 1."""
    pictures, texts, ids = _embeddings(outputs, target)
    firsts = _firsts(ids)
    found = np.zeros((len(ids), 2))
    found[firsts, 0] = _hits(pictures[firsts], ids[firsts], texts, ids, k)
    found[firsts, 1] = 1
    return found


def recognised(outputs: Outputs, target: np.ndarray) -> np.ndarray:
    """1 where the prompts of the sample's class, on average, are the most similar to its picture, else 0.

    Source: prompt ensembling in Radford et al. 2021, arXiv:2103.00020, section 3.1.4.
    """
    pictures, texts, ids = _embeddings(outputs, target)
    classes, index = np.unique(ids, return_inverse=True)
    if len(classes) < 2:
        raise CompressError(f"all samples have the target {classes[0]}: it needs samples of at least two classes")
    prompts = np.zeros((len(classes), texts.shape[1]))
    np.add.at(prompts, index, texts)
    return _hits(pictures, ids, _unit(prompts, "the prompts of a class"), classes, 1)


def _hits(
    queries: np.ndarray, wanted: np.ndarray, gallery: np.ndarray, ids: np.ndarray, k: int
) -> np.ndarray:
    """1 for each query with one of ``wanted``'s id among its ``k`` nearest of the gallery, else 0."""
    hits = []
    for rows in _blocks(len(queries)):
        similar = queries[rows] @ gallery.T
        own = wanted[rows, None] == ids[None]
        best = np.where(own, similar, -np.inf).max(axis=1, keepdims=True)
        before = ((similar >= best) & ~own).sum(axis=1)
        hits.append(before < k)
    return np.concatenate(hits).astype(np.float64)


def _blocks(count: int) -> Iterator[slice]:
    return (slice(start, start + BLOCK) for start in range(0, count, BLOCK))


def _firsts(ids: np.ndarray) -> np.ndarray:
    """The position of the first sample of each id, in order."""
    return np.sort(np.unique(ids, return_index=True)[1])


def _embeddings(outputs: Outputs, target: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings of pictures and of texts, ``(samples, width)``, of length 1, and the ids."""
    names = sorted(outputs)
    texts = [name for name in names if "text" in name.lower()]
    if len(names) != 2 or len(texts) != 1:
        raise CompressError(f"it takes a dual encoder with two outputs, of which one has 'text' in its name (such as "
                            f"image_embeds and text_embeds), and this model has {names}")
    (other,) = set(names) - set(texts)
    if target.ndim != 1 or target.dtype.kind not in "iu":
        raise CompressError(f"the targets are {target.dtype}{list(target.shape)}: give each sample an integer, the "
                            "same for samples whose texts belong to one picture")
    pictures, words = (_unit(outputs[name], f"output {name!r}") for name in (other, texts[0]))
    if pictures.shape != words.shape:
        raise CompressError(f"output {other!r} has shape {pictures.shape} and {texts[0]!r} {words.shape}: both must be "
                            "(samples, width)")
    return pictures, words, target


def _unit(embeddings: np.ndarray, what: str) -> np.ndarray:
    """``embeddings`` ``(n, width)`` in float64, each of length 1."""
    if embeddings.ndim != 2:
        raise CompressError(f"{what} has shape {embeddings.shape}, expected (samples, width)")
    lengths = np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
    if not lengths.all():
        raise CompressError(f"{what} is all zeros for sample {int(np.flatnonzero(lengths == 0)[0])}: it has no "
                            "direction to compare")
    return np.asarray(embeddings / lengths)


def _ratio(sums: np.ndarray) -> np.ndarray:
    """Hits of queries; a part of the samples may have no first sample of a picture, and then nothing was found."""
    return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1))


def recall_at(k: int) -> Metric:
    """recall@k: texts find their pictures."""
    return Metric(name=f"recall@{k}", statistics=functools.partial(retrieved, k=k), whole=True, is_share=True)


def text_recall_at(k: int) -> Metric:
    """text-recall@k: pictures find one of their texts."""
    return Metric(name=f"text-recall@{k}", statistics=functools.partial(text_retrieved, k=k), value=_ratio, whole=True,
                  is_share=True)


ZERO_SHOT = Metric(name="zero-shot-accuracy", statistics=recognised, whole=True, is_share=True)
AT: dict[str, Callable[[int], Metric]] = {"recall": recall_at, "text-recall": text_recall_at}
"""What stands before ``@K`` -> the metric for that ``K``."""
