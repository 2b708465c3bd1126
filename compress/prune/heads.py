"""Attention heads: our own rule, because Torch-Pruning cuts the projections and leaves the number of heads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from compress.prune.channels import Role, width_of
from compress.prune.groups import Edit, Group

PROJECTIONS = (("q", "k", "v"), ("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("to_q", "to_k", "to_v"),
               ("q_lin", "k_lin", "v_lin"), ("wq", "wk", "wv"), ("query_proj", "key_proj", "value_proj"))
PAIRED = (("q", "kv"), ("q_proj", "kv_proj"), ("query", "key_value"), ("to_q", "to_kv"), ("wq", "wkv"), ("Wq", "Wkv"),
          ("q_attn", "c_attn"))         # keys and values in one
FUSED = ("qkv", "qkv_proj", "in_proj", "c_attn", "Wqkv", "to_qkv")
OUTPUTS = ("out", "out_proj", "o_proj", "o", "proj", "to_out", "to_out.0", "out_lin", "wo", "output.dense", "dense",
           "projection", "projection_layer", "c_proj", "Wo")
HEADS = ("heads", "num_heads", "n_heads", "num_attention_heads", "n_head", "nhead")
HEAD_SIZES = ("head_dim", "head_size", "attention_head_size", "dim_head", "d_head", "dim_per_head")
INNER = ("all_head_size", "inner_dim", "attn_dim", "q_size", "split_size")     # always heads x head size
SHARED = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "kv_heads", "n_kv_head")  # that several heads share
SHARED_INNER = ("kv_dim", "kv_size", "kv_width")         # those x head size
MAYBE_INNER = ("embed_dim", "hidden_size", "dim", "d_model", "n_embd")  # that, or the width of the input: a trial tells


def find_head_groups(module: nn.Module) -> tuple[list[tuple[Group, ...]], dict[str, str], dict[str, Role]]:
    """Attention modules whose heads can be removed.

    Returns:
        ``(alternatives, skipped, claimed)``: per attention module the groups to try, in order (they differ in which
        attributes are rewritten); the reasons for those that cannot; and the side of each projection that is heads.
    """
    alternatives: list[tuple[Group, ...]] = []
    skipped: dict[str, str] = {}
    claimed: dict[str, Role] = {}
    for path, layer in module.named_modules():
        inputs = _projections(layer)
        if inputs is None:
            continue
        output = _output(module, path, layer)
        where = f"{path}." if path else ""
        names = [where + name for name in inputs]
        claimed |= dict.fromkeys(names, "out")
        if output is not None:
            claimed[output] = "in"
        made = _groups(module, path, layer, names, output)
        if isinstance(made, str):
            skipped[path] = made
        else:
            alternatives.append(made)
    return alternatives, skipped, claimed


@dataclass(frozen=True)
class _Heads:
    """``queries`` heads, which share the keys and values of ``units``; each is ``size`` wide."""

    queries: int
    units: int
    size: int

    @property
    def shared(self) -> int:
        """How many heads of queries have one key and value in common: all of them go with it."""
        return self.queries // self.units

    def rows(self, start: int = 0, shared: int = 1) -> tuple[tuple[int, ...], ...]:
        """The channels of each unit, in a row of such with so many heads of each, that begins at ``start``."""
        width = shared * self.size
        return tuple(tuple(range(start + unit * width, start + (unit + 1) * width)) for unit in range(self.units))


def _groups(
    module: nn.Module, path: str, layer: nn.Module, names: Sequence[str], output: str | None,
) -> tuple[Group, ...] | str:
    if output is None:
        return f"attention with no output projection under the names {', '.join(OUTPUTS)}"
    widths = [width_of(module.get_submodule(name), "out") for name in names]
    inner = width_of(module.get_submodule(output), "in")
    heads = _count(layer, widths, inner)
    if isinstance(heads, str):
        return heads
    queries = heads.rows(shared=heads.shared)
    if len(names) == 1:                          # a fused projection holds q, k and v, one after the other
        own = heads.units * heads.size
        parts = zip(queries, heads.rows(inner), heads.rows(inner + own), strict=True)
        edits = [Edit(path=names[0], role="out", index=tuple(q + k + v for q, k, v in parts))]
    elif len(names) == 2:
        both = zip(heads.rows(), heads.rows(heads.units * heads.size), strict=True)
        edits = [Edit(path=names[0], role="out", index=queries),
                 Edit(path=names[1], role="out", index=tuple(k + v for k, v in both))]
    else:
        edits = [Edit(path=name, role="out", index=index)
                 for name, index in zip(names, (queries, heads.rows(), heads.rows()), strict=True)]
    edits.append(Edit(path=output, role="in", index=queries))
    variants = _attributes(layer, heads)
    return tuple(Group(name=path, kind="heads", units=heads.units, edits=tuple(edits), attributes={path: variant})
                 for variant in variants)


def _count(layer: nn.Module, widths: Sequence[int], inner: int) -> _Heads | str:
    """The heads of attention whose projections are so wide, and ``inner`` what its output layer reads; or why none."""
    stated = _stated(layer, HEAD_SIZES)
    queries = _stated(layer, HEADS) or (inner // stated if stated else None)
    if queries is None:
        return f"attention that does not say how many heads it has, or how wide they are ({', '.join(HEADS)})"
    queried, *others = {1: (inner, (widths[0] - inner) // 2), 2: (widths[0], widths[-1] // 2), 3: widths}[len(widths)]
    size = max(1, inner // queries)
    own = others[0]                              # of the keys, and of the values
    units = own // size
    if (queried != inner or any(other != own for other in others) or inner != queries * size or units < 1
            or own != units * size or queries % units or (len(widths) < 3 and sum(widths) != queried + 2 * own)):
        return f"its projections are {list(widths)} wide, which {queries} heads do not share evenly"
    if stated is not None and stated != size:
        return f"it says its heads are {stated} wide, and the projections say {size}"
    if units < 2:
        return "it has one head" if queries < 2 else "its heads have one key and value in common"
    return _Heads(queries, units, size)


def _stated(layer: nn.Module, names: Iterable[str]) -> int | None:
    return next((held for name in names if type(held := getattr(layer, name, None)) is int), None)


def _attributes(layer: nn.Module, heads: _Heads) -> list[dict[str, int]]:
    """What each unit counts for in the numbers that ``layer`` keeps: those that are certain, and with those that are
    maybe."""
    held = {name: value for name, value in layer.__dict__.items() if type(value) is int}
    inner, own = heads.queries * heads.size, heads.units * heads.size
    certain: dict[str, int] = {}
    for names, value, unit in ((HEADS, heads.queries, heads.shared), (INNER, inner, heads.shared * heads.size),
                               (SHARED, heads.units, 1), (SHARED_INNER, own, heads.size)):
        certain |= {name: unit for name in names if held.get(name) == value}
    maybe = certain | {name: heads.shared * heads.size for name in MAYBE_INNER if held.get(name) == inner}
    return [certain] + ([maybe] if maybe != certain else [])


def _projections(layer: nn.Module) -> tuple[str, ...] | None:
    for names in (*PROJECTIONS, *PAIRED, *((name,) for name in FUSED)):
        parts = [getattr(layer, name, None) for name in names]
        if all(isinstance(part, nn.Linear) and "weight" in part._parameters for part in parts):
            return names
    return None


def _output(module: nn.Module, path: str, layer: nn.Module) -> str | None:
    """The output projection, in the module itself or, as in BERT's and ViT's classes, in the one around it."""
    for owner in (path, path.rpartition(".")[0]) if path else (path,):
        for name in OUTPUTS:
            full = f"{owner}.{name}" if owner else name
            try:
                if isinstance(module.get_submodule(full), nn.Linear):
                    return full
            except AttributeError:
                continue
    return None
