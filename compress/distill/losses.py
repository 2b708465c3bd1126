"""The losses between a student's tensors and its teacher's. Each is a scalar, and 0 where the two are equal."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import huber_loss, log_softmax, mse_loss, normalize

SMALLEST = 1e-7     # a share below counts as this: what float32 rounds a sigmoid's 1 - p to
ANGLES = 2.0        # of the angles' loss beside the distances', as in the experiments of Park et al.


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T² · KL(softmax(teacher / T) || softmax(student / T))`` over the last axis, the mean over all others.

    In float64, so that equal answers have no gradient, instead of rounding that AdamW would blow up to full steps.

    Source: Hinton et al. 2015, arXiv:1503.02531, section 2; T² keeps the gradient's size independent of T.
    """
    wanted = log_softmax(teacher.double() / temperature, dim=-1)
    given = log_softmax(student.double() / temperature, dim=-1)
    share = wanted.exp()
    terms = (share * (wanted - given)).masked_fill(share == 0, 0.0)  # a class masked with -inf adds nothing
    return terms.sum(-1).mean() * temperature**2


def share_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """:func:`divergence` of what a softmax made already: shares that sum to 1 over the last axis."""
    return divergence(_log(student), _log(teacher), temperature)


def binary_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """``q · ln(q / p) + (1 - q) · ln((1 - q) / (1 - p))`` of probabilities, the mean over all: p's are the student's.

    Source: the Kullback-Leibler divergence of Bernoulli variables; Hinton et al. 2015 for answers of two classes.
    """
    p, q = (value.double().clamp(SMALLEST, 1 - SMALLEST) for value in (student, teacher))
    return (q * (q.log() - p.log()) + (1 - q) * ((1 - q).log() - (1 - p).log())).mean()


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """``‖student - teacher‖² / ‖teacher‖²``: the squared error as a share of the signal, whatever its scale.

    Source: the hint of Romero et al. 2015, arXiv:1412.6550, equation 3, without its half and with features of
    different sizes made comparable.
    """
    power = teacher.square().mean()
    return mse_loss(student, teacher) / (power + (power == 0))


def attention_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """``KL(teacher || student)`` of attention maps ``(batch, heads, queries, keys)``, the mean over rows.

    Where the numbers of heads differ, as they do behind pruning, the means over the heads are compared.

    Source: Wang et al. 2020, arXiv:2002.10957 (MiniLM), equation 7.
    """
    if student.shape != teacher.shape:
        student, teacher = student.mean(1), teacher.mean(1)
    return divergence(_log(student), _log(teacher), 1.0)


def relation(student: Tensor, teacher: Tensor) -> Tensor:
    """How differently the samples of a batch lie to each other: distances of pairs, angles of triplets.

    With x the samples as vectors, ``ψ_D(i, j) = ‖x_i - x_j‖ / μ``, μ the mean over all pairs, and ``ψ_A(i, j, k)`` the
    cosine of the angle at x_j between x_i and x_k. The loss is the mean Huber loss between the student's ψ_D and the
    teacher's, plus :data:`ANGLES` times that of ψ_A. The two may have different widths.

    Args:
        student, teacher: ``(batch, ...)``; with fewer than two samples there is nothing to compare.

    Source: Park et al. 2019, arXiv:1904.05068 (RKD), equations 5 to 10.
    """
    (near, turned), (near_there, turned_there) = _layout(student), _layout(teacher)
    count = len(student)
    # What is of a point and itself is 0 in both and adds nothing: the means are over distinct points.
    distances = huber_loss(near, near_there, reduction="sum") / max(1, count * (count - 1))
    angles = huber_loss(turned, turned_there, reduction="sum") / max(1, count * (count - 1) * (count - 2))
    return distances + ANGLES * angles


def similarity(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], sharpness: float
) -> Tensor:
    """How differently the two sides of a batch are alike: of pictures and texts, say.

    With ``A = sharpness · cos(left_i, right_j)``, the mean of the divergences between the teacher's A and the student's
    along its rows (which text is this picture's?) and along its columns (which picture is this text's?).

    Args:
        student, teacher: two embeddings each, ``(batch, width)``; the widths of student and teacher may differ.

    Source: affinity mimicking, Wu et al. 2023, arXiv:2309.12314 (TinyCLIP).
    """
    given, wanted = (affinity(*pair, sharpness) for pair in (student, teacher))
    return (divergence(given, wanted, 1.0) + divergence(given.T, wanted.T, 1.0)) / 2


def affinity(left: Tensor, right: Tensor, sharpness: float) -> Tensor:
    """``sharpness · cos(left_i, right_j)``, ``(batch, batch)``, of two embeddings ``(batch, width)``."""
    return sharpness * normalize(left, dim=-1) @ normalize(right, dim=-1).T


def _layout(samples: Tensor) -> tuple[Tensor, Tensor]:
    """ψ_D ``(batch, batch)`` and ψ_A ``(batch, batch, batch)``, which is at its middle index; from inner products."""
    points = samples.flatten(1).double()
    products = points @ points.T
    lengths = products.diagonal()
    squares = lengths[:, None] + lengths[None, :] - 2 * products
    apart = squares > 1e-12 * lengths.max()     # else rounding, whose root has a gradient without bound
    distances = torch.where(apart, torch.where(apart, squares, 1.0).sqrt(), 0.0)
    mean = distances.sum() / max(1, len(points) * (len(points) - 1))
    # <x_i - x_j, x_k - x_j>, over the lengths of both
    turned = products[:, None, :] - (products - lengths / 2)[:, :, None] - (products - lengths[:, None] / 2)[None]
    inverse = torch.where(apart, 1 / torch.where(apart, distances, 1.0), 0.0)
    others = 1 - torch.eye(len(points), dtype=points.dtype, device=points.device)
    cosines = turned * inverse[:, :, None] * inverse[None] * others[:, None, :]
    return distances / torch.where(mean > 0, mean, 1.0), cosines


def _log(shares: Tensor) -> Tensor:
    return shares.double().clamp(min=SMALLEST).log()
