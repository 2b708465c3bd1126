"""The closed grammar of program files: what an exported model says passes, what runs code is refused unread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import CompressError
from compress.grammar import check_expression, check_program

LENGTH = "Symbol('s27', positive=True, integer=True)"


@pytest.mark.parametrize(
    "text",
    [
        "Integer(4)",
        LENGTH,
        f"Add(Integer(4), Mul(Integer(-1), Mod({LENGTH}, Integer(4))))",
        f"FloorDiv(Mul(Integer(2), {LENGTH}), Integer(2))",
        f"Max(Integer(1), Min(Integer(7), {LENGTH}))",
        f"FloatPow(ToFloat({LENGTH}), Float('0.5', precision=53))",
        f"TruncToInt(Mul(Float('1.5', precision=53), ToFloat({LENGTH})))",
        f"Pow({LENGTH}, Integer(2))",
        f"PowByNatural({LENGTH}, Integer(2))",
        f"IntTrueDiv({LENGTH}, Integer(2))",
        f"Eq(Mod({LENGTH}, Integer(2)), Integer(0))",
        "Float('1.0e-5', precision=53)",
    ],
)
def test_sizes_of_exported_models_pass(text: str) -> None:
    check_expression(text, "a.pt")


HOSTILE = [
    "__import__('os').system('true')",
    "Integer(__import__('os').system('true'))",
    "Symbol('s0').__class__",
    "Symbol('s0', integer=__import__('os'))",
    "Symbol('s0', **{'integer': 1})",
    "Symbol(*[1])",
    "Symbol('a b')",
    "Integer('1')",
    "Add(*[Integer(1)])",
    "(lambda: 1)()",
    "[Integer(1)][0]",
    "Lambda(Symbol('s0'), 1)",
    "sympify('1')",
    "eval('1')",
    "f'{1}'",
    "Integer(1) if Integer(1) else Integer(2)",
    "Integer(1); Integer(2)",
    "Integer(1) # comment",
    "Add(Integer(1),\nInteger(2))",
    "Symbol('s0\\x31')",
    'Symbol("s0")',
    "True",
    "Symbol",
    "Float('nan', precision=53)",
    "Float('1', precision=1000000000)",
    "Pow(Integer(10), Pow(Integer(10), Integer(10)))",
    "Pow(Integer(10), Integer(1000000000))",
    f"Pow(Integer(10), {LENGTH})",
    "Pow(Pow(Integer(10), Integer(9)), Integer(9))",
    "PowByNatural(Integer(10), Integer(99999999))",
    "Pow(Integer(10))",
    "Integer(\u0661)",  # a digit of another script
    "\uff21dd(Integer(1), Integer(2))",  # Python reads wide letters as Add
    "(" * 300 + "1" + ")" * 300,
    "Add(" * 190 + "1" + ")" * 190 + " " * 10_000,
    "Integer(" + "9" * 10_000 + ")",
    "",
    "Integer(",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(CompressError, match=r"a\.pt was refused: it holds a symbolic size .* nothing of it was run"):
        check_expression(text, "a.pt")


def test_a_line_break_cannot_hide_code_from_python(tmp_path: Path) -> None:
    # sympify drops line breaks first: what Python takes for a comment lies outside the string that it is for sympy.
    marker = tmp_path / "marker"
    run = f"__import__('pathlib').Path('{marker}').touch()"
    text = f"Max(Symbol('s1\\\n'), # ').is_Add or {run} or Integer(1),\nInteger(2))"
    sympy.sympify(text)
    assert marker.exists(), "the attack is not real: it shows nothing"
    marker.unlink()
    with pytest.raises(CompressError, match="symbolic size"):
        check_expression(text, "a.pt")
    assert not marker.exists()


@settings(deadline=None, max_examples=50)
@given(st.text(alphabet="Symbol('s0', Integer1)Add\n\\#\"._[]{}*+:;", max_size=60))
def test_what_passes_holds_only_calls_of_arithmetic(text: str) -> None:
    try:
        check_expression(text, "a.pt")
    except CompressError:
        return
    assert not set(text) & set("\n\\#\"[]{}*:;_")


def node(target: str) -> dict[str, Any]:
    return {"nodes": [{"target": target, "inputs": [], "outputs": []}]}


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.linear.default",
        "torch.ops.aten.add.Tensor",
        "torch.ops.quantized_decomposed.quantize_per_tensor.default",
        "torch.ops.compress.lstm.default",
        "torch.ops.higher_order.wrap_with_set_grad_enabled",
        "_operator.floordiv",
        "_operator.getitem",
        "math.ceil",
        "torch.sym_max",
    ],
)
def test_operators_of_exported_models_pass(target: str) -> None:
    check_program(node(target), "a.pt")
    check_program({"arg": {"as_operator": target}}, "a.pt")


@pytest.mark.parametrize(
    "target",
    [
        "torch.hub.load",
        "torch.load",
        "torch.os.system",
        "torch.serialization.load",
        "torch.ops.load_library",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.from_file.out",
        "torch.ops.aten.save.default",
        "torch.ops.aten._sparse_coo_tensor_unsafe.default",
        "torch.ops.aten.linear.default.__call__",
        "torch.ops.aten.linear.__class__",
        "torch.ops.inductor._alloc_from_pool.default",
        "torch.ops.higher_order.triton_kernel_wrapper_mutation",
        "_operator.attrgetter",
        "_operator.methodcaller",
        "_operator.call",
        "_operator.setitem",
        "math.__loader__",
        "#:op",
        "builtins.eval",
        "torch.ops.aten.linear.default\n",
    ],
)
def test_other_functions_are_refused(target: str) -> None:
    with pytest.raises(CompressError, match=r"a\.pt (was refused: it holds a operator|uses the operator)"):
        check_program(node(target), "a.pt")
    with pytest.raises(CompressError, match=r"a\.pt"):
        check_program({"arg": {"as_operator": target}}, "a.pt")


@pytest.mark.parametrize("namespace", ["aten", "compress"])
def test_an_operator_this_torch_lacks_is_named(namespace: str) -> None:
    with pytest.raises(CompressError, match=rf"torch\.ops\.{namespace}\.no_such_operator\.default.*does not have"):
        check_program(node(f"torch.ops.{namespace}.no_such_operator.default"), "a.pt")


@pytest.mark.parametrize("name", ["x=open('m')", "x):\n  pass", "x.y", "x y", "x;y", "x'", 'x"', "\uff58", "x\n", "x#"])
def test_names_are_words(name: str) -> None:
    for data in ({"as_tensor": {"name": name}}, {"forward_arg_names": [name]}, {"tensor_values": {name: {}}}):
        with pytest.raises(CompressError, match=r"a\.pt was refused: it holds a name"):
            check_program(data, "a.pt")


@pytest.mark.parametrize("path", ['a", open("m", "w")) #', "a\n", "__class__", "a.__dict__.b", "a'", "a(b)", "a\\"])
def test_paths_of_tensors_close_no_quote_and_reach_no_internals(path: str) -> None:
    with pytest.raises(CompressError, match=r"a\.pt was refused: it holds a path"):
        check_program({"parameter": {"parameter_name": path}}, "a.pt")


def test_paths_of_tensors_pass() -> None:
    for path in ("layers.0.attention.q.weight", "image-encoder.stem", "two words.bias", "", "_hidden.weight"):
        check_program({"buffer": {"buffer_name": path}}, "a.pt")


def test_numbers_that_are_not_finite_pass_as_numbers_only() -> None:
    check_program({"arg": {"as_float": "-Infinity"}, "more": {"as_floats": ["Infinity", "NaN"]}}, "a.pt")
    with pytest.raises(CompressError, match="-Infinity"):
        check_program({"name": "-Infinity"}, "a.pt")


def tree(kind: str, context: str) -> dict[str, Any]:
    import json

    return {"in_spec": json.dumps([1, {"type": kind, "context": context, "children_spec": []}])}


def test_containers_of_exported_models_pass() -> None:
    check_program(tree("builtins.tuple", "null"), "a.pt")
    check_program(tree("builtins.dict", '["image", "question"]'), "a.pt")
    check_program({"in_spec": "", "out_spec": ""}, "a.pt")


@pytest.mark.parametrize(
    ("kind", "context"),
    [
        ("collections.namedtuple", '"os.system"'),
        ("collections.defaultdict", '{"default_factory_module": "os", "default_factory_name": "abort"}'),
        ("torch.Size", "null"),
        ("builtins.dict", '{"__enum__": true, "fqn": "antigravity:X", "name": "x"}'),
        ("builtins.dict", '[{"__enum__": true, "fqn": "antigravity:X", "name": "x"}]'),
        ("builtins.dict", '["x=open(1)"]'),
        ("builtins.dict", '"x"'),
    ],
)
def test_other_containers_are_refused(kind: str, context: str) -> None:
    with pytest.raises(CompressError, match=r"a\.pt was refused: it holds a container"):
        check_program(tree(kind, context), "a.pt")


@pytest.mark.parametrize("text", ["{", "[1]", "[1, 2]", "[1, {}]", "[" * 5000 + "]" * 5000, '[1, {"type": []}]'])
def test_a_damaged_container_is_said_to_be(text: str) -> None:
    with pytest.raises(CompressError, match=r"a\.pt is damaged: it holds a container description"):
        check_program({"out_spec": text}, "a.pt")


def test_module_paths_are_data() -> None:
    check_program({"nn_module_stack": "L__self__,,net.Net;L__self__a,a.0,torch.nn.modules.linear.Linear"}, "a.pt")
    with pytest.raises(CompressError, match="module path"):
        check_program({"nn_module_stack": "a,b,c\n"}, "a.pt")
