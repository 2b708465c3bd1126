"""What reads each channel of a layer: found by changing the channel and looking at who is given something else.

Every layer with weights is frozen: it answers what it answered before, whatever it is given. A change then goes no
further than to the layers that read it directly, through concatenation, addition, reshaping, gates and attention alike,
and shows there in the columns that hold the channel. No list of operators is needed, and none can be forgotten.

Channels are told apart by their binary code: a run changes all channels that have a bit of it (or have it not), so
``2 log2 n`` runs of a network without its layers give the readers of ``n`` channels, of all layers at once where they
are read side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from compress.errors import CompressError
from compress.prune.channels import (
    BATCH_NORMS,
    CONVOLUTIONS,
    RNNS,
    TRANSPOSED,
    Place,
    is_norm,
    parameter_axis,
    weight_of,
    width_of,
)
from compress.prune.forward import Calls, Tensors, call

LAYERS = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED, *BATCH_NORMS, nn.Embedding, *RNNS, nn.MultiheadAttention)
BESIDE = "#"                                     # between a layer's path and the number of a further input of it
MANY = 512                                       # channels that are looked at one by one where they are mixed


class TracingError(Exception):
    """A module that computes in another way when its values change; says where."""


@dataclass(frozen=True)
class Readers:
    """``read[channel]`` are the columns that hold it, by the path of the layer that reads them."""

    read: tuple[Mapping[str, tuple[int, ...]], ...]
    reaches_output: bool
    mixed: bool                                  # some columns hold several channels, and it is not known which


class Tracer:
    """A module whose layers are frozen; ask :meth:`readers` of any of them."""

    def __init__(self, module: nn.Module, calls: Calls, feed: Tensors) -> None:
        """Runs ``module`` once on ``feed``, which has to reach every branch.

        Raises:
            CompressError: if it does not run.
        """
        self._module, self._feed = module, feed
        self._graphs = {name: {name: graph} for name, graph in calls.items()}
        self.layers = {path: layer for path, layer in module.named_modules()
                       if isinstance(layer, LAYERS) or is_norm(layer)}
        self._answers: dict[str, dict[str, list[object]]] = {}      # graph -> path -> in the order of the calls
        self._base: dict[str, dict[str, list[torch.Tensor]]] = {}
        self._outputs: dict[str, dict[str, torch.Tensor]] = {}
        self._given: dict[str, list[torch.Tensor]] = {}
        self._generator = torch.Generator().manual_seed(0)
        for name, graph in self._graphs.items():
            self._given, answers = {}, dict[str, list[object]]()
            with torch.no_grad(), self._forwards(self._recording(answers)):
                try:
                    self._outputs[name] = call(module, graph, feed)
                except Exception as error:  # it is the user's forward
                    raise CompressError(f"graph {name!r} fails on the samples, so that what ties its channels cannot "
                                        f"be traced: {type(error).__name__}: {error}") from error
            self._answers[name], self._base[name] = answers, self._given

    def called(self, path: str) -> bool:
        """Whether the layer ran at all."""
        return any(path in answers for answers in self._answers.values())

    def trace(self, sources: Mapping[Place, int]) -> dict[Place, Readers]:
        """Who reads each channel of these outputs of layers and parameters, which have so many.

        All are changed at once, channel by channel of the same number, as a residual stream is read; each alone only as
        a whole, which tells whose they are. Only those that this leaves unclear are looked at by themselves.
        """
        touched = {source: self._changed({source: np.arange(width)}) for source, width in sources.items()}
        marks = self._marks(dict(sources))
        found = {}
        for source, width in sources.items():
            columns, reaches = touched[source]
            read = _read({path: marks[path][:, :, seen] for path, seen in columns.items()}, width,
                         {path: np.flatnonzero(seen) for path, seen in columns.items()})
            found[source] = self.readers(source, width) if read is None else Readers(read, reaches, mixed=False)
        return found

    def readers(self, source: Place, width: int) -> Readers:
        """Who reads each of the ``width`` channels of a layer's output, or of a parameter, that are changed alone."""
        marks = self._marks({source: width})
        _, reaches = self._changed({source: np.arange(width)})
        read = _read(marks, width, {path: np.arange(own.shape[-1]) for path, own in marks.items()})
        if read is None and width <= MANY:
            own = []
            for number in range(width):
                changed, _ = self._changed({source: np.array([number])})
                own.append({path: tuple(np.flatnonzero(columns).tolist()) for path, columns in changed.items()})
            read = tuple(own)
        return Readers(read or ({},) * width, reaches, mixed=read is None)

    def moved(self, sources: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        """The outputs of the graphs in which these layers run, and where they are others once these channels are."""
        for name, graph in self._graphs.items():
            if sources.keys().isdisjoint(self._answers[name]):
                continue
            self._given = {}
            with torch.no_grad(), self._forwards(self._answering(name, sources, 1)):
                outputs = self._called(graph)
            for key, value in self._outputs[name].items():
                same = value.shape == outputs[key].shape
                yield key, np.asarray((value != outputs[key]).numpy()) if same else np.ones(tuple(value.shape), bool)

    def _marks(self, sources: Mapping[Place, int]) -> dict[str, np.ndarray]:
        """By path ``(bits, 2, columns)``: which columns are others once all channels change that have a bit, or not."""
        bits = _bits(max(sources.values(), default=1))
        marks: dict[str, np.ndarray] = {}
        for bit in range(bits):
            for value in (0, 1):
                chosen = {source: np.flatnonzero((np.arange(width) >> bit) & 1 == value)
                          for source, width in sources.items()}
                changed, _ = self._changed({source: own for source, own in chosen.items() if len(own)})
                for path, columns in changed.items():
                    marks.setdefault(path, np.zeros((bits, 2, len(columns)), bool))[bit, value] |= columns
        return marks

    def _changed(self, moved: Mapping[Place, np.ndarray]) -> tuple[dict[str, np.ndarray], bool]:
        """The columns of each layer's input, by its path, that are others once these channels are; and the outputs.

        Much more and much less of them are tried: a ReLU or a maximum shows one of the two.
        """
        columns: dict[str, np.ndarray] = {}
        reaches = False
        parameters = {source: channels for source, channels in moved.items() if source.tensor}
        layers = {source.path: channels for source, channels in moved.items() if not source.tensor}
        for name, graph in self._graphs.items():
            if not parameters and layers.keys().isdisjoint(self._answers[name]):
                continue
            for sign in (1, -1):
                self._given = {}
                with torch.no_grad(), self._forwards(self._answering(name, layers, sign)), ExitStack() as stack:
                    for source, channels in parameters.items():
                        stack.enter_context(self._parameter(source, channels, sign))
                    outputs = self._called(graph)
                for path, given in self._given.items():
                    for before, after in zip(self._base[name][path], given, strict=False):
                        found = _other(before, after, channel_axis(self.layers[path.partition(BESIDE)[0]], after))
                        if found.any():
                            columns[path] = columns.get(path, np.zeros(len(found), bool)) | found
                reaches |= any(not _same(value, outputs[key]) for key, value in self._outputs[name].items())
        return columns, reaches

    def _called(self, graph: Calls) -> dict[str, torch.Tensor]:
        try:
            return call(self._module, graph, self._feed)
        except TracingError:
            raise
        except Exception as error:  # the user's forward, on values it was not written for
            raise TracingError(f"the model does not run on changed values: {type(error).__name__}: {error}") from error

    @contextmanager
    def _forwards(self, make: Callable[[str, nn.Module], Callable[..., object]]) -> Iterator[None]:
        for path, layer in self.layers.items():
            layer.__dict__["forward"] = make(path, layer)
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.__dict__.pop("forward", None)

    def _recording(self, answers: dict[str, list[object]]) -> Callable[[str, nn.Module], Callable[..., object]]:
        def make(path: str, layer: nn.Module) -> Callable[..., object]:
            own = layer.forward

            def forward(*args: object, **kwargs: object) -> object:
                self._note(path, args, kwargs)
                answer = own(*args, **kwargs)
                answers.setdefault(path, []).append(_copied(answer))
                return answer

            return forward

        return make

    def _answering(
        self, graph: str, sources: Mapping[str, np.ndarray], sign: int,
    ) -> Callable[[str, nn.Module], Callable[..., object]]:
        def make(path: str, layer: nn.Module) -> Callable[..., object]:
            turn = iter(self._answers[graph].get(path, ()))
            channels = sources.get(path)

            def forward(*args: object, **kwargs: object) -> object:
                self._note(path, args, kwargs)
                answer = next(turn, None)
                if answer is None:
                    raise TracingError(f"layer {path!r} runs more often when what it is given is changed")
                return _copied(answer) if channels is None else self._moved(layer, answer, channels, sign)

            return forward

        return make

    def _note(self, path: str, args: Sequence[object], kwargs: Mapping[str, object]) -> None:
        """What a layer is given; beside its first tensor (a state, keys and values) by the path and a number.

        Copies are kept: the model may go on to add to it in place.
        """
        tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        for number, tensor in enumerate(tensors):
            self._given.setdefault(f"{path}{BESIDE}{number}" if number else path, []).append(tensor.clone())

    def _moved(self, layer: nn.Module, answer: object, channels: np.ndarray, sign: int) -> object:
        """The layer's answer with ``channels`` changed; of a recurrent layer in every direction and in its states."""
        def move(tensor: object) -> object:
            if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
                return tensor
            axis = channel_axis(layer, tensor)
            chosen = channels
            if isinstance(layer, nn.MultiheadAttention) and tensor.shape[axis] != layer.embed_dim:
                chosen = np.arange(tensor.shape[axis])               # its attention weights
            elif isinstance(layer, RNNS) and layer.proj_size:
                chosen = np.arange(tensor.shape[axis])               # each is made of all hidden units
            elif isinstance(layer, RNNS):
                times = tensor.shape[axis] // layer.hidden_size
                chosen = np.concatenate([channels + layer.hidden_size * at for at in range(times)])
            return self._noisy(tensor, axis, chosen, sign)

        return pytree.tree_map(move, answer)

    @contextmanager
    def _parameter(self, source: Place, channels: np.ndarray, sign: int) -> Iterator[None]:
        owner = self._module.get_submodule(source.path)
        before = weight_of(owner, source.tensor)
        held: dict[str, Any] = owner._parameters if source.tensor in owner._parameters else owner._buffers
        moved = self._noisy(before.detach(), parameter_axis(before), channels, sign)
        held[source.tensor] = nn.Parameter(moved, requires_grad=False)
        try:
            yield
        finally:
            held[source.tensor] = before

    def _noisy(self, tensor: torch.Tensor, axis: int, channels: np.ndarray, sign: int) -> torch.Tensor:
        """More by an amount that is another everywhere: a softmax over places does not see what is the same in all."""
        moved = tensor.detach().clone()
        index = torch.from_numpy(channels)
        part = moved.index_select(axis, index)
        scale = float(tensor.abs().max()) + 1.0
        noise = (torch.rand(part.shape, generator=self._generator) + 1.0) * scale
        return moved.index_copy_(axis, index, (part + sign * noise).to(moved.dtype))


def _read(
    marks: Mapping[str, np.ndarray], width: int, columns: Mapping[str, np.ndarray],
) -> tuple[Mapping[str, tuple[int, ...]], ...] | None:
    """The columns that hold each channel, from the bits of its number; None where one holds several, or none of these.

    ``marks`` are, by path, ``(bits, 2, number of columns)``.
    """
    read: list[dict[str, list[int]]] = [{} for _ in range(width)]
    for path, seen in marks.items():
        if not (seen.sum(1) <= 1).all():
            return None
        bits = np.arange(len(seen))[:, None]
        channels = (seen[:, 1] << bits).sum(0)
        whole = seen.any(1).all(0)
        if (channels[whole] >= width).any() or (seen.any((0, 1)) & ~whole).any():
            return None
        for column, channel in zip(columns[path][whole], channels[whole], strict=True):
            read[channel].setdefault(path, []).append(int(column))
    return tuple({path: tuple(own) for path, own in each.items()} for each in read)


def _bits(width: int) -> int:
    return max(1, math.ceil(math.log2(width)))


def _copied(answer: object) -> object:
    return pytree.tree_map(lambda held: held.clone() if isinstance(held, torch.Tensor) else held, answer)


def channel_axis(layer: nn.Module, tensor: torch.Tensor) -> int:
    """Where the channels of what a layer takes and gives are."""
    if isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED)):
        return tensor.dim() - 1 - len(layer.kernel_size)
    if isinstance(layer, BATCH_NORMS):
        return 1
    return _norm_axis(layer, tensor) if is_norm(layer) else tensor.dim() - 1


def _norm_axis(norm: nn.Module, tensor: torch.Tensor) -> int:
    """The axis that a norm works along: of those of its width the one on which alone it can be that wide."""
    width = width_of(norm, "out")
    axes = [axis for axis in range(tensor.dim() - 1, 0, -1) if tensor.shape[axis] == width]
    for axis in axes if len(axes) > 1 else ():
        sizes = [width if a == axis else 1 for a in range(tensor.dim())]
        try:
            answer = type(norm).forward(norm, tensor.new_zeros(sizes))
        except Exception:  # the user's forward, on a shape that it is not for
            continue
        if list(answer.shape) == sizes:
            return axis
    return axes[0] if axes else tensor.dim() - 1


def _other(before: torch.Tensor, after: torch.Tensor, axis: int) -> np.ndarray:
    """The columns along ``axis`` in which two tensors differ; NaN is equal to NaN."""
    if before.shape != after.shape:
        return np.ones(after.shape[axis], bool)
    differs = (before != after) & ~((before != before) & (after != after))
    others = [a for a in range(after.dim()) if a != axis]
    found = differs.sum(dim=others) if others else differs
    return np.asarray((found > 0).numpy())


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
