"""The model noun: an exported program per graph, its weights, specs, components, and how to rebuild its module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.errors import CompressError
from runtimes.errors import RuntimesError
from runtimes.processing import Processing
from runtimes.spec import Dim, Modality, TensorSpec
from runtimes.wiring import Wiring, independent, parse_chain

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram


@dataclass(frozen=True, kw_only=True)
class Input:
    """What :func:`compress.save` cannot infer of an input: its modality and its dynamic dimensions.

    ``dims`` has one entry per axis, counted from the first; axes not listed are fixed. A string is a :class:`Dim` with
    default sizes; ``None`` leaves the axis fixed.
    """

    modality: Modality | None = None
    dims: tuple[str | Dim | None, ...] | None = None


@dataclass(frozen=True)
class Graph:
    """A method of the module that is exported as one engine, with the names of its inputs and outputs."""

    method: str = "forward"
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Factory:
    """How to rebuild the module: ``package.module:function`` and its JSON keyword arguments."""

    reference: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)


GROUPS = (16, 32, 64, 128, 256)     # that ONNX Runtime's kernels have; OpenVINO's and TensorRT's have them too


@dataclass(frozen=True, kw_only=True)
class WeightOnly:
    """The modules whose weights alone are quantized, as globs over their paths; what these layers read stays float."""

    int8: tuple[str, ...] = ()
    int4: tuple[str, ...] = ()      # goes before, where both name a module
    group: int = 64                 # neighbouring inputs that share a step in int4, at most

    def __post_init__(self) -> None:
        if self.group not in GROUPS:
            raise CompressError(f"group_size is {self.group}: expected one of {', '.join(map(str, GROUPS))}")

    def __bool__(self) -> bool:
        return bool(self.int8 or self.int4)


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """What makes the float program an int8 one: the scheme's name, the range of each tensor, and what stays float.

    ``ranges`` maps the name of a node of the exported program to the ``(low, high)`` its values are clipped to;
    preparing a program from it is deterministic.
    """

    scheme: str
    ranges: Mapping[str, Mapping[str, tuple[float, float]]]  # graph -> node -> (low, high)
    settings: Mapping[str, Any]
    keep_float: tuple[str, ...] = ()  # globs over the module paths left in float
    weight_only: WeightOnly = WeightOnly()


@dataclass(frozen=True, kw_only=True)
class ModelProcessing:
    """How raw inputs become a feed and outputs answers: the manifest's section, and the files that it names."""

    section: Processing
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ProgramGraph:
    """One exported graph: a program whose inputs and outputs are the specs', in their order."""

    program: ExportedProgram
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    method: str | None = None  # of the module that it was traced from, which prune runs; None where that is not known


@dataclass(frozen=True, kw_only=True)
class Model:
    """A trained multimodal model. Values only: a stage returns a new one and leaves its input as it found it."""

    name: str
    graphs: Mapping[str, ProgramGraph]
    chain: Mapping[str, Any] | None = None  # how they feed each other, as :mod:`runtimes.wiring` has it
    weights: Mapping[str, torch.Tensor]  # the module's state dict, shared by all graphs
    components: Mapping[str, str]  # component name -> module path
    example: Mapping[str, np.ndarray]
    labels: Mapping[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # output -> what each index of its last axis means
    processing: ModelProcessing | None = None
    factory: Factory | None = None
    channels: Mapping[str, Any] = field(default_factory=dict)  # what pruning changed, to re-apply to a factory's module
    quantization: Quantization | None = None
    module: torch.nn.Module | None = None  # the live module, when this process has one

    @property
    def wiring(self) -> Wiring | None:
        """How the graphs feed each other: as :attr:`chain` says, or not at all.

        ``None`` where that is not known: one graph takes what another gives, and there is no chain.

        Raises:
            RuntimesError: if the chain does not fit the graphs.
        """
        entries: Any = self.graphs      # what a chain is parsed with are inputs and outputs, which these have too
        if self.chain is not None:
            return parse_chain(self.chain, entries, f"model {self.name!r}")
        try:
            return independent(entries, f"model {self.name!r}")
        except RuntimesError:
            return None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the caller gives, each once: the inputs of the chain, or of all graphs."""
        if self.chain is not None and (wiring := self.wiring) is not None:
            return wiring.inputs
        return tuple({spec.name: spec for graph in self.graphs.values() for spec in graph.inputs}.values())

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What the caller gets: the outputs of the chain, or of all graphs; one that several have is ``graph.name``."""
        if (wiring := self.wiring) is not None:
            return wiring.outputs
        return tuple(
            replace(spec, name=f"{name}.{spec.name}") for name, graph in self.graphs.items() for spec in graph.outputs
        )

    @property
    def graph(self) -> ProgramGraph:
        """The only graph of a single-graph model."""
        if len(self.graphs) != 1:
            raise CompressError(f"model {self.name!r} has {len(self.graphs)} graphs ({list(self.graphs)}): name one")
        return next(iter(self.graphs.values()))

    def component_of(self, module_path: str) -> str:
        """Name of the component a module path belongs to, the longest match; ``"other"`` where there is none."""
        owners = [
            (len(path), name)
            for name, path in self.components.items()
            if path == "" or module_path == path or module_path.startswith(path + ".")
        ]
        return max(owners)[1] if owners else "other"
