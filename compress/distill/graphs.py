"""The graphs that are trained: what components hand to each other as extra outputs, and a model with new weights."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.graph import CodeGen

from compress.distill import DistillConfig
from compress.errors import CompressError
from compress.model import Model
from compress.program import module_path
from runtimes.spec import Dim, TensorSpec


@dataclass(frozen=True, kw_only=True)
class Feature:
    """A tensor that a component computes and something outside of it reads: the program's node, and its component."""

    component: str
    node: str


@dataclass(frozen=True, kw_only=True)
class Matched:
    """The features of student and teacher that are compared, pair by pair, and what could not be matched."""

    student: tuple[Feature, ...] = ()
    teacher: tuple[Feature, ...] = ()
    skipped: tuple[str, ...] = ()

    @property
    def components(self) -> tuple[str, ...]:
        return tuple(feature.component for feature in self.student)


class Bound:
    """A program as a function from feed to a flat list of tensors: the outputs, then the features asked for.

    ``batch_axes`` has the batch axis of each of them, or ``None`` where samples cannot be told apart (a similarity
    matrix of the whole batch, a tensor that does not depend on the inputs).
    """

    def __init__(self, module: GraphModule, inputs: Sequence[TensorSpec], batch_axes: Sequence[int | None]) -> None:
        self.module = module
        self.inputs = [spec.name for spec in inputs]
        self.axes = {spec.name: spec.batch_axis or 0 for spec in inputs}
        self.batch_axes = tuple(batch_axes)
        self.outputs: tuple[str, ...] = ()

    def __call__(self, feed: Mapping[str, Tensor]) -> Sequence[Tensor]:
        values: Sequence[Tensor] = self.module(*[feed[name] for name in self.inputs])
        return values


def bind(model: Model, features: Sequence[Feature] = ()) -> Bound:
    """The graph of ``model`` with parameters of its own; with fake quantizers where the model is quantized."""
    name, graph = next(iter(model.graphs.items()))
    if model.quantization is None:
        module = graph.program.module(check_guards=False)
    else:
        from compress.quantize.prepare import prepare

        module = prepare(model, name)
    _own_parameters(module)
    nodes = {node.name: node for node in module.graph.nodes}
    output = module.graph.output_node()
    values = [*_nodes(output), *(nodes[feature.node] for feature in features)]
    output.args = (tuple(values),)
    module.graph.set_codegen(CodeGen())  # plain arguments in the order of the specs, a plain tuple of results
    by_name = {node.name: node for node in graph.program.graph.nodes}
    results = [*_outputs(model), *(by_name[feature.node] for feature in features)]
    batch = _batch_symbol(model)
    bound = Bound(GraphModule(module, module.graph), graph.inputs, [_batch_axis(node, batch) for node in results])
    bound.outputs = tuple(spec.name for spec in graph.outputs)
    return bound


def check_pair(student: Model, teacher: Model, config: DistillConfig) -> None:
    """Refuse a pair that cannot be compared, naming both models."""
    for model in (student, teacher):
        if len(model.graphs) != 1:
            raise CompressError(
                f"model {model.name!r} has {len(model.graphs)} graphs ({list(model.graphs)}): this release distils "
                "models with one graph"
            )
    pair = f"student {student.name!r} and teacher {teacher.name!r}"
    for what, ours, theirs in (
        ("input", student.inputs, teacher.inputs), ("output", student.outputs, teacher.outputs)
    ):  # fmt: skip
        mine, other = {s.name: s for s in ours}, {s.name: s for s in theirs}
        if set(mine) != set(other):
            raise CompressError(
                f"{pair} have different {what}s, {sorted(mine)} and {sorted(other)}: the names must agree"
            )
        for name, spec in mine.items():
            if _form(spec) != _form(other[name]):
                raise CompressError(
                    f"{pair} differ in {what} {name!r}: {spec.describe()} and {other[name].describe()}; "
                    "a teacher needs the inputs and answers of its student"
                )
    if [s.name for s in student.outputs] != [s.name for s in teacher.outputs]:
        raise CompressError(f"{pair} have their outputs in different orders: save one of them again")
    learnt = [spec for spec in student.outputs if spec.dtype.startswith(("float", "bfloat"))]
    if not learnt and config.logit_weight:
        raise CompressError(f"model {student.name!r} has no output of real numbers: there is nothing to distil")
    single = next((spec for spec in learnt if spec.shape[-1:] == (1,)), None)
    if config.loss == "kl" and config.logit_weight and single is not None:
        raise CompressError(
            f"output {single.name!r} of {student.name!r} is one number, not class scores: use loss 'mse'"
        )


def match_features(student: Model, teacher: Model, config: DistillConfig) -> Matched:
    """Pair the features of the two models by component and order; what differs in number or shape is skipped."""
    if not config.feature_weight:
        return Matched()
    mine, theirs = find_features(student), find_features(teacher)
    pairs, skipped = [], []
    for component in dict.fromkeys(feature.component for feature in (*mine, *theirs)):
        ours = [feature for feature in mine if feature.component == component]
        other = [feature for feature in theirs if feature.component == component]
        if len(ours) != len(other):
            skipped.append(f"{component}: the student hands on {len(ours)} tensors, the teacher {len(other)}")
        else:
            pairs += list(zip(ours, other, strict=True))
    kept = []
    shapes = zip(
        pairs, _shapes(student, [pair[0] for pair in pairs]), _shapes(teacher, [pair[1] for pair in pairs]), strict=True
    )
    for pair, shape, wanted in shapes:
        if shape == wanted:
            kept.append(pair)
        else:
            skipped.append(f"{pair[0].component}: shape {shape} in the student, {wanted} in the teacher")
    if not kept and not config.logit_weight and not config.label_weight:
        raise CompressError(
            f"student {student.name!r} and teacher {teacher.name!r} have no component output in common "
            f"({'; '.join(skipped) or 'no components'}): give logit_weight"
        )
    return Matched(student=tuple(p[0] for p in kept), teacher=tuple(p[1] for p in kept), skipped=tuple(skipped))


def find_features(model: Model) -> list[Feature]:
    """What the components of ``model`` hand to each other, in the order they compute it; outputs are not features."""
    outputs = _outputs(model)
    features = []
    for node in model.graph.program.graph.nodes:
        component = _component(model, node)
        value = node.meta.get("val")
        if component is None or node in outputs or not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        if any(_component(model, user) != component for user in node.users):
            features.append(Feature(component=component, node=node.name))
    return features


def with_weights(model: Model, trained: Mapping[str, Tensor]) -> Model:
    """``model`` with the tensors of ``trained`` in place of its own; tied weights stay tied, ``model`` as it was."""
    owners = {_storage(model.weights[name]): value for name, value in trained.items()}
    weights = {name: owners.get(_storage(value), value) for name, value in model.weights.items()}
    graphs = {}
    for name, graph in model.graphs.items():
        program = copy.copy(graph.program)
        parameters: dict[int, nn.Parameter] = {}
        state = {}
        for key, old in program.state_dict.items():
            new = weights.get(key, old)
            if new is not old and isinstance(old, nn.Parameter):
                new = parameters.setdefault(id(new), nn.Parameter(new, requires_grad=old.requires_grad))
            state[key] = new
        program._state_dict = state  # an ExportedProgram has no public way to new weights of the same shapes
        graphs[name] = dataclasses.replace(graph, program=program)
    return dataclasses.replace(model, graphs=graphs, weights=weights, module=None)


def parameters_of(module: nn.Module) -> dict[str, Tensor]:
    """A copy of what trains, by the model's names."""
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def _own_parameters(module: GraphModule) -> None:
    """Put copies in place of the parameters, which are the model's own; one copy for all names of a tied weight."""
    copies: dict[Any, nn.Parameter] = {}
    for name, value in list(module.named_parameters(remove_duplicate=False)):
        if _storage(value) not in copies:
            copies[_storage(value)] = nn.Parameter(value.detach().clone(), requires_grad=value.is_floating_point())
        path, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(path), attribute, copies[_storage(value)])


def _storage(value: Tensor) -> tuple[Any, ...]:
    return value.data_ptr(), tuple(value.shape), value.stride()


def _form(spec: TensorSpec) -> tuple[Any, ...]:
    return spec.dtype, tuple(None if isinstance(size, Dim) else size for size in spec.shape)


def _outputs(model: Model) -> list[Node]:
    return _nodes(model.graph.program.graph.output_node())[-len(model.outputs) :]


def _nodes(output: Node) -> list[Node]:
    return list(output.args[0])  # type: ignore[arg-type]


def _component(model: Model, node: Node) -> str | None:
    if node.op != "call_function":
        return None
    component = model.component_of(module_path(node))
    return None if component == "other" else component


def _shapes(model: Model, features: Sequence[Feature]) -> list[tuple[int, ...]]:
    feed = {spec.name: torch.from_numpy(model.example[spec.name]) for spec in model.inputs}
    with torch.no_grad():
        values = bind(model, features)(feed)
    return [tuple(value.shape) for value in values[len(model.outputs) :]]


def _batch_symbol(model: Model) -> Any:
    nodes = {node.name: node for node in model.graph.program.graph.nodes}
    for spec, name in zip(model.inputs, model.graph.program.graph_signature.user_inputs, strict=True):
        if spec.batch_axis is not None:
            return nodes[str(name)].meta["val"].shape[spec.batch_axis]
    return None


def _batch_axis(node: Node, batch: Any) -> int | None:
    """The one axis of ``node``'s value that is the batch; ``None`` where there is none, or more than one."""
    if not isinstance(batch, torch.SymInt):
        return None
    symbol = batch.node.expr
    axes = [
        axis for axis, size in enumerate(node.meta["val"].shape)
        if isinstance(size, torch.SymInt) and symbol in size.node.expr.free_symbols
    ]  # fmt: skip
    if len(axes) == 1 and node.meta["val"].shape[axes[0]].node.expr == symbol:
        return axes[0]
    return None
