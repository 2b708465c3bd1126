"""``nn.MultiheadAttention`` with layers of its own for queries, keys and values, so that its heads can go.

Torch's module packs the three weights into one and takes the width inside for that of its input. What stands in its
place here has the same arguments and results, and as many heads as its layers are wide.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.prune.channels import ties

PACKED = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias")


class DividedAttention(nn.Module):
    """What ``nn.MultiheadAttention`` computes: ``softmax(q kᵀ / sqrt(width of a head) + mask) v`` of each head, mixed.

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.2.
    """

    in_proj_bias = None         # these two tell nn.TransformerEncoderLayer that its fast path, which reads packed
    _qkv_same_embed_dim = False     # weights, is not for this one

    def __init__(self, packed: nn.MultiheadAttention) -> None:
        """The same function as ``packed``, whose output layer it takes over."""
        super().__init__()
        self.num_heads = int(packed.num_heads)
        self.dropout, self.batch_first = packed.dropout, packed.batch_first
        weights: Iterable[Tensor | None] = (packed.q_proj_weight, packed.k_proj_weight, packed.v_proj_weight)
        held = packed.in_proj_weight
        if held is not None:
            weights = held.chunk(3)
        bias = packed.in_proj_bias
        biases: Iterable[Tensor | None] = (None,) * 3 if bias is None else bias.chunk(3)
        self.q_proj, self.k_proj, self.v_proj = (_linear(*two) for two in zip(weights, biases, strict=True))
        self.out_proj = packed.out_proj
        self.train(packed.training)

    @property
    def embed_dim(self) -> int:
        return int(self.out_proj.out_features)

    @property
    def head_dim(self) -> int:
        return int(self.q_proj.out_features // self.num_heads)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
        need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Queries ``(batch, length, width)`` to as many, and the weights where they are needed.

        ``(length, batch, width)`` where not ``batch_first``, and without a batch as well. The weights are ``(batch,
        length, keys)``, or of each head with an axis for them behind the batch.

        Raises:
            RuntimeError: if ``is_causal``, which tells what ``attn_mask`` is, comes without it.
        """
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal says what attn_mask is: give attn_mask as well")
        batched = query.dim() == 3
        if not batched:
            query, key, value = query[None], key[None], value[None]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        q, k, v = self._heads(self.q_proj(query)), self._heads(self.k_proj(key)), self._heads(self.v_proj(value))
        causal = is_causal and key_padding_mask is None and not need_weights
        mask = None if causal else self._mask(attn_mask, key_padding_mask, q)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
            weights = functional.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            found = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            found = functional.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
        mixed: Tensor = self.out_proj(found.transpose(1, 2).flatten(2))
        if not batched:
            return mixed[0], None if weights is None else weights[0]
        return mixed if self.batch_first else mixed.transpose(0, 1), weights

    def _heads(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.num_heads, -1).transpose(1, 2)

    def _mask(self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, query: Tensor) -> Tensor | None:
        """Both masks as one that is added to scores ``(batch, heads, length, keys)``."""
        masks = []
        if attn_mask is not None:
            mask = _added(attn_mask, query)
            masks.append(mask if mask.dim() == 2 else mask.reshape(-1, self.num_heads, *mask.shape[1:]))
        if key_padding_mask is not None:
            masks.append(_added(key_padding_mask, query)[:, None, None])
        return None if not masks else masks[0] if len(masks) == 1 else masks[0] + masks[1]


def _added(mask: Tensor, query: Tensor) -> Tensor:
    """What is added to scores: minus infinity where a mask of booleans hides a place."""
    return torch.where(mask, -torch.inf, 0.0).to(query.dtype) if mask.dtype is torch.bool else mask


def _linear(weight: Tensor | None, bias: Tensor | None) -> nn.Linear:
    assert weight is not None
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
    return layer


def find_packed(module: nn.Module) -> tuple[list[str], dict[str, str]]:
    """The paths of the ``nn.MultiheadAttention`` of ``module`` that can be divided, and of others why they cannot."""
    shared = {id(layer) for held in ties(module) for layer, name in held if name in PACKED}
    paths, reasons = [], {}
    for path, layer in module.named_modules():
        if isinstance(layer, nn.MultiheadAttention):
            reason = _whole(path, layer) or ("its weights are another layer's too" if id(layer) in shared else None)
            if reason is None:
                paths.append(path)
            else:
                reasons[path] = f"nn.MultiheadAttention that stays whole: {reason}"
    return paths, reasons


def _whole(path: str, layer: nn.MultiheadAttention) -> str | None:
    if type(layer) is not nn.MultiheadAttention:
        return f"its class is {type(layer).__name__}, which may compute something else"
    if layer.bias_k is not None or layer.add_zero_attn:
        return "it has keys and values beside those it is given (add_bias_kv, add_zero_attn)"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "hooks are registered on it"
    if not path:
        return "it is the model itself, with nothing around it"
    held = {name for name in PACKED if layer._parameters.get(name) is not None}
    if "in_proj_weight" not in held and not held >= {"q_proj_weight", "k_proj_weight", "v_proj_weight"}:
        return "it computes its weights (a parametrization)"
    return None


def leave_fast_path(module: nn.Module) -> None:
    """Let no encoder pack its sequences for layers' fast path, which divided attention has not."""
    for owner in module.modules():
        if isinstance(owner, nn.TransformerEncoder):
            owner.use_nested_tensor = False
