"""A quantized model in torch whose operators are switched between int8 and float one by one, without a new export."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import FakeQuantizeBase

from compress.distill.bound import Bound, bind
from compress.distill.forcing import loops_of
from compress.model import Model
from compress.program import chain_of, told_as
from compress.quantize.parts import Layer
from runtimes.spec import Feed


class Switches:
    """``model`` prepared once with fake quantizers; :meth:`only` says which layers compute in int8.

    An activation that several operators read gets a fake quantizer for each, so that one of them can read it in float.

    Attributes:
        outputs: names of what :meth:`outputs_of` gives, of a decoder its scores.
    """

    def __init__(self, model: Model, layers: Sequence[Layer]) -> None:
        self._bound: Bound = bind(model)
        self._quantizers: dict[str, list[FakeQuantizeBase]] = {layer.path: [] for layer in layers}
        for layer in layers:
            for graph, node in layer.nodes:
                module = self._bound.graphs[graph].module
                self._quantizers[layer.path].extend(_own_quantizers(module, node))
        read = {id(quantizer) for quantizers in self._quantizers.values() for quantizer in quantizers}
        for layer in layers:
            for graph, node in layer.results:
                self._quantizers[layer.path].append(_quantizer_behind(self._bound.graphs[graph].module, node, read))
        for traced in self._bound.graphs.values():
            traced.module.recompile()
        self.outputs = tuple(spec.name for spec in self._bound.compared)
        self.paths = tuple(self._quantizers)
        self._loops = bool(loops_of(model))
        self._chain = chain_of(model, self._bound.runs())
        self._seen = False

    def only(self, paths: Collection[str]) -> None:
        """Compute the layers at ``paths`` in int8 and all others in float."""
        on = {id(quantizer) for path in paths for quantizer in self._quantizers[path]}
        for quantizers in self._quantizers.values():
            for quantizer in quantizers:
                (quantizer.enable_fake_quant if id(quantizer) in on else quantizer.disable_fake_quant)()

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        """What the chain answers; a decoder picks its own tokens."""
        with self._running():
            return self._chain.run(feed)

    def outputs_of(self, feed: Feed) -> dict[str, np.ndarray]:
        """What is compared, by output: of a decoder the scores after tokens that the feed has.

        See :func:`compress.distill.forcing.tokens_key`.
        """
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in feed.items()}
        with self._running():
            return {name: value.numpy() for name, value in zip(self.outputs, self._bound(tensors), strict=True)}

    @property
    def loops(self) -> bool:
        """Whether :meth:`run` picks tokens, which are not what :meth:`outputs_of` gives."""
        return self._loops

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """The weights' ranges are seen by the first run, and fixed from then on."""
        with torch.no_grad(), told_as("the model fails on a feed"):
            yield
        if not self._seen:
            self._seen = True
            for quantizers in self._quantizers.values():
                for quantizer in quantizers:
                    quantizer.disable_observer()


def _own_quantizers(module: GraphModule, name: str) -> list[FakeQuantizeBase]:
    """The fake quantizers of what an operator reads, each read by that operator alone: a shared one is copied."""
    node = next(node for node in module.graph.nodes if node.name == name)
    found = []
    for source in [source for source in node.all_input_nodes if _is_quantizer(module, source)]:
        own = source
        if len(source.users) > 1:
            target = _added(module, str(source.target))
            with module.graph.inserting_after(source):
                own = module.graph.call_module(target, source.args, dict(source.kwargs))
            node.replace_input_with(source, own)
        found.append(module.get_submodule(str(own.target)))
    return found


def _quantizer_behind(module: GraphModule, name: str, read: Collection[int]) -> FakeQuantizeBase:
    """The fake quantizer through which all read a node but those that have their own, whose ids are in ``read``.

    Where all of them have, it is a copy of one, put before them: quantizing twice is quantizing once.
    """
    node = next(node for node in module.graph.nodes if node.name == name)
    found = [(user, module.get_submodule(str(user.target))) for user in node.users if _is_quantizer(module, user)]
    for _, quantizer in found:
        if id(quantizer) not in read:
            return quantizer
    first, quantizer = found[0]
    target = _added(module, str(first.target))
    with module.graph.inserting_after(node):
        own = module.graph.call_module(target, (node,), dict(first.kwargs))
    node.replace_all_uses_with(own, delete_user_cb=lambda user: user is not own)
    return module.get_submodule(target)


def _added(module: GraphModule, target: str) -> str:
    """The name of a copy of the quantizer ``target``."""
    name = f"{target}_{sum(1 for _ in module.named_children())}"
    module.add_submodule(name, copy.deepcopy(module.get_submodule(target)))
    return name


def _is_quantizer(module: GraphModule, node: Node) -> bool:
    return node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), FakeQuantizeBase)
