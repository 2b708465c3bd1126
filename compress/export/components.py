"""Which component an ONNX node belongs to, kept in its name: ``image_encoder::node_linear_1``.

Every backend reports its layers by the names of the nodes it made them of, so the name is what survives into an engine,
a profile and another machine. It says no more than the components' own names, which the model's author gave.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from runtimes.backends import COMPONENT_MARK

if TYPE_CHECKING:
    import onnx_ir as ir

SHARED = "shared"  # what several components read or write
_SCOPES = "pkg.torch.onnx.name_scopes"  # the exporter's: the modules around a node, outermost first, then its own name
_NO_MODULE = "_empty_nn_module_stack_from_metadata_hook"
_QUANTIZING = frozenset({"QuantizeLinear", "DequantizeLinear"})


def component_prefix(component: str) -> str:
    """What a node's name begins with; a character that is no letter, digit, ``_``, ``-`` or ``.`` becomes ``_``."""
    return re.sub(r"[^\w.-]", "_", component) + COMPONENT_MARK


def components_in(text: str) -> tuple[str, ...]:
    """The components of the nodes that ``text`` names, each once, in its order; empty where none has one."""
    return tuple(dict.fromkeys(re.findall(rf"(?<![\w.-])([\w.-]+?){COMPONENT_MARK}", text)))


def component_of_nodes(model: ir.Model, component_of: Callable[[str], str]) -> dict[ir.Node, str]:
    """Node -> component, of a model that still has the metadata of torch's exporter.

    A node that quantizes or dequantizes belongs to what reads it, and one that has no module (this project's own, a
    size read once) as well, or to what it reads; where those are several it is ``shared``.

    Args:
        model: as the exporter wrote it; nothing is changed.
        component_of: module path -> component.
    """
    found: dict[ir.Node, str] = {}
    waiting: list[ir.Node] = []
    for node in model.graph:
        path = None if node.op_type in _QUANTIZING else _module_path(node)
        if path is None:
            waiting.append(node)
        else:
            found[node] = component_of(path)
    for neighbours, nodes in ((_readers, waiting[::-1]), (_sources, waiting)):
        for node in nodes:
            owners = {found[other] for other in neighbours(node) if other in found}
            if node not in found and owners:
                found[node] = owners.pop() if len(owners) == 1 else SHARED
    return {node: found.get(node, SHARED) for node in model.graph}


def _module_path(node: ir.Node) -> str | None:
    scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    if len(scopes) < 2 or _NO_MODULE in scopes:
        return None
    return re.sub(r"@\d+", "", str(scopes[-2]))  # a module called twice is "path@1" the second time


def _readers(node: ir.Node) -> Iterator[ir.Node]:
    for value in node.outputs:
        yield from (reader for reader, _ in value.uses())


def _sources(node: ir.Node) -> Iterator[ir.Node]:
    for value in node.inputs:
        if value is not None and (producer := value.producer()) is not None:
            yield producer
