"""Attention heads: our own rule, because Torch-Pruning cuts the projections and leaves the number of heads."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from compress.prune.channels import Role, width_of
from compress.prune.groups import Edit, Group
from compress.prune.multihead import find_packed

PROJECTIONS = (("q", "k", "v"), ("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("to_q", "to_k", "to_v"),
               ("q_lin", "k_lin", "v_lin"), ("wq", "wk", "wv"))
FUSED = ("qkv", "qkv_proj", "in_proj", "c_attn", "Wqkv", "to_qkv")
OUTPUTS = ("out", "out_proj", "o_proj", "o", "proj", "to_out", "to_out.0", "out_lin", "wo", "output.dense", "dense",
           "projection", "projection_layer")
HEADS = ("heads", "num_heads", "n_heads", "num_attention_heads", "n_head", "nhead")
HEAD_SIZES = ("head_dim", "head_size", "attention_head_size", "dim_head", "d_head", "dim_per_head")
INNER = ("all_head_size", "inner_dim", "attn_dim")       # always heads x head size
MAYBE_INNER = ("embed_dim", "hidden_size", "dim", "d_model")  # that, or the width of the input: a trial tells


def find_head_groups(module: nn.Module) -> tuple[list[tuple[Group, ...]], dict[str, str], dict[str, Role]]:
    """Attention modules whose heads can be removed.

    Returns:
        ``(alternatives, skipped, claimed)``: per attention module the groups to try, in order (they differ in which
        attributes are rewritten); the reasons for those that cannot; and the side of each projection that is heads.
    """
    alternatives: list[tuple[Group, ...]] = []
    skipped: dict[str, str] = {}
    claimed: dict[str, Role] = {}
    _, packed = find_packed(module)
    for path, layer in module.named_modules():
        if isinstance(layer, nn.MultiheadAttention):
            skipped[path] = packed.get(path, "nn.MultiheadAttention ties its width to its input's")
            continue
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


def _groups(
    module: nn.Module, path: str, layer: nn.Module, names: Sequence[str], output: str | None,
) -> tuple[Group, ...] | str:
    if output is None:
        return f"attention with no output projection under the names {', '.join(OUTPUTS)}"
    heads_name = next((name for name in HEADS if type(getattr(layer, name, None)) is int), None)
    if heads_name is None:
        return f"attention that does not say how many heads it has ({', '.join(HEADS)})"
    heads = int(getattr(layer, heads_name))
    widths = [width_of(module.get_submodule(name), "out") for name in names]
    inner = width_of(module.get_submodule(output), "in")
    parts = 3 if len(names) == 1 else 1                   # a fused projection holds q, k and v, one after the other
    if any(width != parts * inner for width in widths) or inner % heads:
        return f"its projections are {widths} wide with {heads} heads: grouped or shared heads are not pruned"
    size = inner // heads
    stated = next((getattr(layer, name) for name in HEAD_SIZES if type(getattr(layer, name, None)) is int), size)
    if stated != size:
        return f"it says its heads are {stated} wide, and the projections say {size}"
    if heads < 2:
        return "it has one head"
    index = _rows(heads, size)
    edits = tuple(Edit(path=name, role="out", index=tuple(
        tuple(row + part * inner for part in range(parts) for row in rows) for rows in index)) for name in names)
    edits += (Edit(path=output, role="in", index=index),)
    certain = {heads_name: 1}
    certain |= {name: size for name in INNER if layer.__dict__.get(name) == inner}
    for name in (*HEADS, "num_key_value_heads", "num_kv_heads"):   # the same number under a second name
        if type(layer.__dict__.get(name)) is int and layer.__dict__[name] == heads:
            certain[name] = 1
    maybe = certain | {name: size for name in MAYBE_INNER if layer.__dict__.get(name) == inner}
    variants: list[dict[str, int]] = [certain] + ([maybe] if maybe != certain else [])
    return tuple(Group(name=path, kind="heads", units=heads, edits=edits, attributes={path: v}) for v in variants)


def _rows(heads: int, size: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(range(head * size, (head + 1) * size)) for head in range(heads))


def _projections(layer: nn.Module) -> tuple[str, ...] | None:
    for names in (*PROJECTIONS, *((name,) for name in FUSED)):
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
