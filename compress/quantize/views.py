"""Operators that hand on what they read."""

from __future__ import annotations

import torch

_aten = torch.ops.aten
SAME_VALUES = frozenset({       # the result has the values of the first argument, each as often
    _aten.view.default, _aten.reshape.default, _aten._unsafe_view.default, _aten.transpose.int, _aten.permute.default,
    _aten.unsqueeze.default, _aten.squeeze.dim, _aten.squeeze.dims, _aten.flatten.using_ints, _aten.unflatten.int,
    _aten.contiguous.default, _aten.clone.default, _aten.detach.default, _aten.t.default,
    _aten.mT.default, _aten.numpy_T.default, _aten.swapaxes.default, _aten.movedim.int, _aten.movedim.intlist,
})  # fmt: skip
