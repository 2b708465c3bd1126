"""torch's attention of tensors without heads, or without a batch, as ONNX: the exporter knows four axes alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset18
from onnxscript.function_libs.torch_lib.ops.nn import aten_scaled_dot_product_attention as of_heads

op: Any = opset18  # its annotations want tensors where it takes plain lists of numbers as well


def _attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    missing = list(range(4 - len(query.shape)))
    if missing:     # in front: a mask is as many axes from the last as before
        query, key, value = (_widened(one, missing) for one in (query, key, value))
    result = of_heads(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    return op.Squeeze(result, op.Constant(value_ints=missing)) if missing else result


def _widened(value: Any, axes: list[int]) -> Any:
    wide = op.Unsqueeze(value, op.Constant(value_ints=axes))
    wide.shape, wide.dtype = ir.Shape([*[1] * len(axes), *value.shape]), value.dtype
    return wide


TRANSLATIONS: Mapping[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.scaled_dot_product_attention.default: _attention,
}
"""For ``torch.onnx.export``'s ``custom_translation_table``."""
