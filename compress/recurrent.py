"""Recurrent layers that stay whole in a program: one operator for an LSTM, a GRU or an RNN, of any length and batch.

``torch.export`` writes the sequence length it saw into the program of an ``nn.LSTM``, one cell after the other. While
a module is traced under :func:`opaque` its recurrent layers call these operators instead, whose shapes are known
without running them; the module itself stays as it was. The operators compute, differentiate and count as the layers
do, and :mod:`compress.export.recurrent` writes them as ONNX ``LSTM``, ``GRU`` and ``RNN``.

All take ``(input, state, weights, biases, layers, bidirectional, batch_first)``: ``input`` of shape ``(length, batch,
features)``, or ``(batch, length, features)`` where ``batch_first``; ``state`` the initial state, each tensor of shape
``(layers * directions, batch, hidden)``, or nothing for zeros; ``weights`` as ``nn.RNNBase`` orders them, by layer and
direction ``weight_ih, weight_hh`` and, where there are ``biases``, ``bias_ih, bias_hh``. They return the outputs of
every step and the final state. There is no dropout: a program is one of the evaluation mode.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import CompressError

PADDED = (
    "a packed sequence has shapes that depend on the lengths' values, which no engine takes: run the recurrent layer "
    "on the padded batch, and read its outputs at each sequence's own last step (torch.gather at length - 1) or mask "
    "them; sequences of one length need no packing"
)


_ARGUMENTS = (
    "(Tensor input, Tensor[] state, Tensor[] weights, bool biases, int layers, bool bidirectional, bool batch_first)"
)


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """A kind of layer: torch's own function of it, the tensors in its state, and the gates in each weight."""

    torchs: Callable[..., Any]
    states: int
    gates: int


_KINDS = {
    "lstm": _Kind(torchs=torch.lstm, states=2, gates=4),
    "gru": _Kind(torchs=torch.gru, states=1, gates=3),
    "rnn_tanh": _Kind(torchs=torch.rnn_tanh, states=1, gates=1),
    "rnn_relu": _Kind(torchs=torch.rnn_relu, states=1, gates=1),
}


@contextlib.contextmanager
def opaque(module: nn.Module) -> Iterator[None]:
    """Let the recurrent layers inside ``module`` call the operators of this file; after, they are as they were.

    A layer stays as it is whose class has a forward() of its own, that projects its outputs (``proj_size``, which ONNX
    lacks), or that drops values out, being in training mode: its length is then fixed by the export, as ever.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, nn.RNNBase) and _is_plain(layer)]
    for layer in layers:
        layer.forward = _Forward(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _is_plain(layer: nn.RNNBase) -> bool:
    own = "forward" in vars(layer) or type(layer).forward not in (nn.LSTM.forward, nn.GRU.forward, nn.RNN.forward)
    return not (own or layer.proj_size or (layer.training and layer.dropout))


class _Forward:
    """``forward`` of a recurrent layer through its operator: the inputs and results that ``nn.LSTM`` has."""

    def __init__(self, layer: nn.RNNBase) -> None:
        self.layer = layer

    def __call__(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        layer = self.layer
        if not isinstance(input, Tensor):
            raise CompressError(f"an nn.{type(layer).__name__} cannot be exported as it is called: {PADDED}")
        operator, states = OPERATORS[layer.mode.lower()], _KINDS[layer.mode.lower()].states
        state = [] if hx is None else [hx] if states == 1 else list(hx)
        single = input.dim() == 2  # one sequence, without a batch axis
        if single:
            input = input.unsqueeze(0 if layer.batch_first else 1)
            state = [value.unsqueeze(1) for value in state]
        weights = [getattr(layer, name) for name in layer._flat_weights_names]
        y, *final = operator(
            input, state, weights, layer.bias, layer.num_layers, layer.bidirectional, layer.batch_first
        )
        if single:
            y, final = y.squeeze(0 if layer.batch_first else 1), [value.squeeze(1) for value in final]
        return y, tuple(final) if states == 2 else final[0]


def packs(error: BaseException) -> bool:
    """Whether ``error`` came out of packing a padded batch."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_name in ("pack_padded_sequence", "pad_packed_sequence"):
            return True
        trace = trace.tb_next
    return False


def _compute(
    kind: _Kind, input: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor],
    biases: bool, layers: int, bidirectional: bool, batch_first: bool, *, train: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """What torch's own function of the layer returns, each result contiguous in memory of its own."""
    _check(kind, input, state, weights, biases, layers, bidirectional)
    if not state:
        state = [torch.zeros(_state_shape(input, weights, layers, bidirectional, batch_first), dtype=input.dtype)
                 for _ in range(kind.states)]  # fmt: skip
    first = list(state) if kind.states == 2 else state[0]
    found = kind.torchs(input, first, list(weights), biases, layers, 0.0, train, bidirectional, batch_first)
    return tuple(value.contiguous() for value in found)


def _check(
    kind: _Kind, input: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor],
    biases: bool, layers: int, bidirectional: bool,
) -> None:  # fmt: skip
    """Refuse what does not fit together, as a file may hold it: torch's own functions end the process on some of it."""
    directions = 2 if bidirectional else 1
    wanted = layers * directions * (4 if biases else 2)
    if layers < 1 or len(weights) != wanted:
        raise RuntimeError(f"recurrent operator: {wanted} weights expected, {len(weights)} given")
    if len(state) not in (0, kind.states):
        raise RuntimeError(f"recurrent operator: {kind.states} initial states expected, {len(state)} given")
    if input.dim() != 3 or weights[1].dim() != 2:
        raise RuntimeError("recurrent operator: an input of 3 axes and weights of 2 expected")
    if any(value.dtype != input.dtype for value in (*state, *weights)) or not input.is_floating_point():
        raise RuntimeError("recurrent operator: one type of real numbers expected for all tensors")
    hidden, features = int(weights[1].shape[1]), int(input.shape[2])
    shapes = []
    for layer in range(layers):
        read = features if layer == 0 else directions * hidden
        rows = kind.gates * hidden
        shapes += directions * [(rows, read), (rows, hidden), *([(rows,), (rows,)] if biases else [])]
    for index, (weight, shape) in enumerate(zip(weights, shapes, strict=True)):
        if tuple(weight.shape) != shape or 0 in shape:
            raise RuntimeError(f"recurrent operator: weight {index} of shape {shape} expected, {tuple(weight.shape)} "
                               "given; none may be empty")  # fmt: skip
    for value in state:
        if value.dim() != 3 or (value.shape[0], value.shape[2]) != (layers * directions, hidden):
            raise RuntimeError(f"recurrent operator: a state of {layers * directions} x batch x {hidden} expected, "
                               f"{tuple(value.shape)} given")  # fmt: skip


def _state_shape(
    input: Tensor, weights: Sequence[Tensor], layers: int, bidirectional: bool, batch_first: bool
) -> tuple[int, int, int]:
    batch = input.shape[0 if batch_first else 1]
    return layers * (2 if bidirectional else 1), batch, weights[1].shape[1]


def _register(name: str, kind: _Kind) -> Any:
    def eager(
        input: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor],
        biases: bool, layers: int, bidirectional: bool, batch_first: bool,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        settings = (biases, layers, bidirectional, batch_first)
        return _compute(kind, input, state, weights, *settings, train=False)

    def fake(
        input: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor],
        biases: bool, layers: int, bidirectional: bool, batch_first: bool,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        _check(kind, input, state, weights, biases, layers, bidirectional)
        shape = _state_shape(input, weights, layers, bidirectional, batch_first)
        y = input.new_empty(*input.shape[:2], shape[2] * (2 if bidirectional else 1))
        return y, *(input.new_empty(shape) for _ in range(kind.states))

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        input, state, weights, *ctx.settings = inputs
        ctx.states = len(state)
        ctx.save_for_backward(input, *state, *weights)

    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        """Computed once more with torch's own function, whose results remember how they came to be."""
        with torch.enable_grad():
            values = [value.detach().requires_grad_() for value in ctx.saved_tensors]
            input, state, weights = values[0], values[1 : 1 + ctx.states], values[1 + ctx.states :]
            results = _compute(kind, input, state, weights, *ctx.settings, train=True)
        found = torch.autograd.grad(results, values, gradients)
        return found[0], list(found[1 : 1 + ctx.states]), list(found[1 + ctx.states :]), None, None, None, None

    schema = f"{_ARGUMENTS} -> ({', '.join(['Tensor'] * (1 + kind.states))})"
    operator = torch.library.custom_op(f"compress::{name}", eager, mutates_args=(), schema=schema)
    operator.register_fake(fake)
    operator.register_autograd(backward, setup_context=setup_context)
    operator.register_autocast("cpu", torch.float32)        # its products are inside, where autocast does not look
    return operator


OPERATORS: dict[str, Any] = {name: _register(name, kind) for name, kind in _KINDS.items()}
"""``nn.RNNBase.mode`` in lower case -> its operator, which is ``torch.ops.compress.<the same name>`` as well."""
