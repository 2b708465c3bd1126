"""What products are computed in while a student trains."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from compress.distill.placement import CPU
from compress.errors import CompressError
from compress.model import Model


def computing(precision: str, device: torch.device = CPU) -> AbstractContextManager[None]:
    """Run what is inside in ``fp32`` or ``bf16``: then torch chooses for each operator, and weights stay in fp32.

    Source: Micikevicius et al. 2018, arXiv:1710.03740, with bfloat16, which needs no scaling of the loss.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def check_precision(precision: str, student: Model) -> None:
    """Refuse to train an int8 student in bf16: its steps are wider than int8's, so that it would not see them."""
    if precision == "bf16" and student.quantization is not None:
        raise CompressError(
            f"precision is 'bf16', and student {student.name!r} is quantized: bfloat16 has 8 bits of a number, too few "
            "to see what int8 rounds; use 'fp32'"
        )
