"""The closed set of what a program file may say: every string in it is checked before torch or sympy reads one.

torch.export's reader hands symbolic sizes to sympy, which evaluates them; resolves operators by ``getattr`` from
``torch``; and writes names into generated Python code. An edited file could run anything through each of the three.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any

import torch

from compress.errors import CompressError

_WORD = re.compile(r"[A-Za-z0-9_.]*")  # names of nodes, arguments, tensors; generated code holds them
_STACK = re.compile(r"[A-Za-z0-9_.,;:$@<>\[\]()'= -]*")  # nn_module_stack: data only
_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|quantized_decomposed|torchao|compress)\.([A-Za-z0-9_]+)\.([A-Za-z0-9_]+)"
)
_FUNCTIONS = frozenset(
    [
        f"_operator.{n}"
        for n in "add sub mul floordiv truediv mod neg pow eq ne lt le gt ge getitem and_ or_ not_ pos".split()
    ]
    + [f"torch.{n}" for n in "sym_float sym_int sym_max sym_min sym_not sym_ite sym_sum _sym_sqrt".split()]
    + [f"math.{n}" for n in "ceil floor trunc".split()]
    + [f"torch.ops.higher_order.{n}" for n in "cond while_loop wrap_with_set_grad_enabled wrap_with_autocast".split()]
)
_FORBIDDEN = frozenset({"from_file", "save"})  # operators that touch the file system
_EXPRESSIONS = frozenset(
    "Symbol Integer Add Mul Pow Max Min Mod PythonMod FloorDiv CleanDiv CeilToInt TruncToInt "
    "IntTrueDiv ToFloat Rational Eq Ne Equality Unequality StrictLessThan LessThan "
    "StrictGreaterThan GreaterThan And Or Not".split()
)
_TREES = frozenset({None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"})


def check_program(data: Any, source: str, key: str = "") -> None:
    """Check a program in torch's JSON schema, string by string.

    Raises:
        CompressError: naming ``source`` and the first operator, expression or name outside the closed set.
    """
    if isinstance(data, dict):
        for name, value in data.items():
            if not _WORD.fullmatch(name):
                _refuse(source, "name", name)
            check_program(value, source, name)
    elif isinstance(data, list):
        for value in data:
            check_program(value, source, key)
    elif isinstance(data, str):
        _check_string(data, source, key)


def _check_string(text: str, source: str, key: str) -> None:
    if key == "expr_str":
        check_expression(text, source)
    elif key in ("target", "as_operator"):
        _check_operator(text, source)
    elif key in ("in_spec", "out_spec"):
        _check_tree(text, source)
    elif key == "nn_module_stack":
        if not _STACK.fullmatch(text):
            _refuse(source, "module path", text)
    elif key in ("as_string", "torch_version"):
        pass  # only ever quoted or compared
    elif key == "as_strings":
        pass
    elif not _WORD.fullmatch(text):
        _refuse(source, "name", text)


def _check_operator(text: str, source: str) -> None:
    if text in _FUNCTIONS or (_WORD.fullmatch(text) and not text.startswith(("torch", "_operator", "math", "#"))):
        return  # a plain word is an attribute's name, never resolved
    match = _OPERATOR.fullmatch(text)
    if match is None or match[2] in _FORBIDDEN:
        _refuse(source, "operator", text)
    else:
        _import_operators(match[1])
        overload = "" if match[3] == "default" else match[3]
        try:
            torch._C._get_schema(f"{match[1]}::{match[2]}", overload)
        except RuntimeError:
            raise CompressError(
                f"{source} uses the operator {text!r}, which this installation of torch does not have"
            ) from None


def _import_operators(namespace: str) -> None:
    if namespace in ("quantized_decomposed", "torchao"):  # registered when this module is imported
        import torchao.quantization.pt2e  # noqa: F401


def _check_tree(text: str, source: str) -> None:
    def walk(node: Any) -> None:
        if node["type"] not in _TREES:
            _refuse(source, "container type", str(node["type"]))
        context = json.loads(node["context"]) if node["context"] else None
        if not (
            context is None
            or (isinstance(context, list) and all(isinstance(n, str) and n.isidentifier() for n in context))
        ):
            _refuse(source, "container context", str(node["context"]))
        for child in node["children_spec"]:
            walk(child)

    if text == "":
        return
    try:
        walk(json.loads(text)[1])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise CompressError(
            f"{source} is damaged: it holds a container description that is not one ({error!r})"
        ) from error


def check_expression(text: str, source: str) -> None:
    """Refuse a symbolic size outside the closed grammar: sympy *evaluates* the string it is given.

    Allowed: ``Symbol('name', integer=True, ...)``, integers, and calls of the arithmetic in ``_EXPRESSIONS``.
    """

    def walk(node: ast.expr, inside: str) -> bool:
        match node:
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=keywords) if name in _EXPRESSIONS:
                flags = all(
                    k.arg is not None and isinstance(k.value, ast.Constant) and isinstance(k.value.value, bool)
                    for k in keywords
                )
                return flags and all(walk(argument, name) for argument in arguments)
            case ast.Constant(value=bool()):
                return False
            case ast.Constant(value=int()):
                return True
            case ast.Constant(value=str() as name):
                return inside == "Symbol" and re.fullmatch(r"[a-z]+\d+", name) is not None
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int())):
                return True
        return False

    try:
        tree = ast.parse(text, mode="eval") if len(text) < 10_000 else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    if tree is None or not walk(tree.body, ""):
        _refuse(source, "symbolic size", text)


def _refuse(source: str, what: str, text: str) -> None:
    raise CompressError(
        f"{source} was refused: it holds a {what} that no exported model has ({text[:80]!r}); nothing of it was run"
    )
