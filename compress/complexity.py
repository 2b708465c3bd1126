"""How much a model computes and stores: multiply-accumulates and parameters per operation, module and component."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from compress.errors import CompressError
from compress.model import Model

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram
    from torch.fx import Node


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One node of the program: its multiply-accumulates, and the parameters it is the first to read."""

    name: str
    module: str                                  # module path, "" for the root
    op: str                                      # "aten.linear.default"
    macs: int
    params: int


@dataclass(frozen=True, kw_only=True)
class Cost:
    """MACs of one sample, number of parameters and their size in the program's own dtypes."""

    macs: int
    params: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Complexity:
    """The cost of a graph or a model: ``operations`` as they run, ``components`` summing to ``total``."""

    operations: tuple[Operation, ...]
    components: Mapping[str, Cost]               # component name -> cost; "other" is what belongs to none
    total: Cost

    @property
    def modules(self) -> dict[str, int]:
        """Module path -> MACs of the operations that module itself runs (its children's are theirs)."""
        macs: dict[str, int] = {}
        for operation in self.operations:
            macs[operation.module] = macs.get(operation.module, 0) + operation.macs
        return macs


def count(program: ExportedProgram, model: Model, sizes: Mapping[str, int] | None = None) -> Complexity:
    """Count ``program``, one of ``model``'s graphs, at the given sizes of its dynamic dimensions.

    Matrix products, convolutions, attention and recurrent layers are counted; element-wise work is not, as is usual.
    Nothing is computed: the program is run on tensors that have a shape and no data.

    Args:
        program: the exported program of one of ``model.graphs``.
        model: names the components and the inputs.
        sizes: dimension name -> size; the others are at their ``opt`` size, and a dynamic batch at 1.

    Raises:
        CompressError: if ``program`` is not one of ``model``'s graphs, or its shapes depend on the input's values.
    """
    graph = next((graph for graph in model.graphs.values() if graph.program is program), None)
    if graph is None:
        raise CompressError(f"the program to count is not a graph of model {model.name!r}: it has {list(model.graphs)}")
    shapes = []
    for spec in graph.inputs:
        batch = None if spec.batch_axis is None else spec.shape[spec.batch_axis]
        at = {} if batch is None or isinstance(batch, int) else {batch.name: max(1, batch.min)}
        shapes.append(spec.sized(**{**at, **(sizes or {})}))
    return _summed(count_operations(program, shapes), [program], model)


def count_model(model: Model) -> Complexity:
    """All graphs of ``model``, each run once: their operations one after the other, a shared parameter counted once."""
    operations = [o for graph in model.graphs.values() for o in count(graph.program, model).operations]
    return _summed(operations, [graph.program for graph in model.graphs.values()], model)


def _summed(operations: Sequence[Operation], programs: Sequence[ExportedProgram], model: Model) -> Complexity:
    macs: dict[str, int] = {}
    for operation in operations:
        owner = model.component_of(operation.module)
        macs[owner] = macs.get(owner, 0) + operation.macs
    params: dict[str, int] = {}
    size: dict[str, int] = {}
    for name, parameter in {name: held for program in programs for name, held in program.named_parameters()}.items():
        owner = model.component_of(name.rpartition(".")[0])
        params[owner] = params.get(owner, 0) + parameter.numel()
        size[owner] = size.get(owner, 0) + parameter.numel() * parameter.element_size()
    names = [name for name in model.components if name in macs or name in params]
    names += sorted(name for name in {*macs, *params} - set(names) if macs.get(name) or params.get(name))
    components = {n: Cost(macs=macs.get(n, 0), params=params.get(n, 0), size_bytes=size.get(n, 0)) for n in names}
    total = Cost(macs=sum(macs.values()), params=sum(params.values()), size_bytes=sum(size.values()))
    return Complexity(operations=tuple(operations), components=components, total=total)


def count_operations(program: ExportedProgram, shapes: Sequence[tuple[int, ...]]) -> tuple[Operation, ...]:
    """The operations of ``program`` for user inputs of these ``shapes``, in its order, with their cost."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.export.graph_signature import InputKind
    from torch.fx import Interpreter
    from torch.utils.flop_counter import FlopCounterMode

    state: dict[str, torch.Tensor] = {**program.state_dict, **program.constants}
    parameters = {spec.arg.name: spec.target for spec in program.graph_signature.input_specs
                  if spec.kind is InputKind.PARAMETER}
    unread = {target: state[target].numel() for target in parameters.values() if target is not None}
    found: list[Operation] = []

    class Counter(Interpreter):
        def run_node(self, n: Node) -> Any:
            before = flops.get_total_flops()
            result = super().run_node(n)
            if n.op == "call_function" and isinstance(result, torch.Tensor | tuple | list):
                inputs: Any = self.map_nodes_to_values(n.args, n)
                macs = _own_rule(str(n.target), inputs)
                if macs is None:
                    macs = (flops.get_total_flops() - before) // 2
                read = sum(unread.pop(parameters[i.name] or "", 0) for i in n.all_input_nodes if i.name in parameters)
                found.append(Operation(name=n.name, module=_module(n), op=str(n.target), macs=macs, params=read))
            return result

    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        feed: list[Any] = []
        sized = iter(shapes)
        placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
        for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
            if spec.kind is InputKind.USER_INPUT:
                value = node.meta.get("val")
                if not isinstance(value, torch.Tensor):
                    raise CompressError(f"input {node.name!r} of the program is not a tensor: it cannot be counted")
                feed.append(torch.empty(next(sized), dtype=value.dtype))
            else:
                held = state[spec.target or ""]
                feed.append(mode.from_tensor(held) if isinstance(held, torch.Tensor) else held)
        with FlopCounterMode(display=False) as flops:
            try:
                Counter(program.graph_module, garbage_collect_values=True).run(*feed, enable_io_processing=False)
            except (RuntimeError, NotImplementedError) as error:
                raise CompressError(f"the program cannot be counted for inputs of shapes {list(shapes)}: {error}"
                                    ) from error
    return tuple(found)


def _module(node: Node) -> str:
    from compress.program import module_path

    return re.sub(r"@\d+", "", module_path(node))         # a module called twice is "path@1" the second time


def _own_rule(op: str, inputs: tuple[Any, ...]) -> int | None:
    """MACs of the operations torch's own counter misses on the CPU: attention, and recurrent layers kept whole."""
    if "scaled_dot_product_attention" in op:
        query, key, value = inputs[:3]
        *batch, queries, width = query.shape
        return int(prod(batch) * queries * key.shape[-2] * (width + value.shape[-1]))
    kind = re.search(r"\b(lstm|gru|rnn)", op.lower())
    if kind is not None:
        tensors = [i for i in inputs if hasattr(i, "shape")]
        weights = [w for i in inputs if isinstance(i, list | tuple) for w in i if hasattr(w, "shape")] or tensors[1:]
        steps = prod(tensors[0].shape[:-1])               # batch x length
        return int(steps * sum(prod(w.shape) for w in weights if len(w.shape) == 2))
    return None
