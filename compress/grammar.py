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

_WORD = re.compile(r"[A-Za-z0-9_]*")  # names of nodes, arguments, tensors; generated code holds them
_PATH = re.compile(r"(?!__)(?:[A-Za-z0-9_ -]|\.(?!__))*")  # names of tensors; generated code holds them between quotes
_PATHS = frozenset({"parameter_name", "buffer_name", "tensor_constant_name", "custom_obj_name", "fqn", "class_fqn"})
_FLOATS = frozenset({"as_float", "as_floats"})  # JSON has no word for what is not finite
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
_FORBIDDEN = re.compile(r"from_file|save|.*sparse.*")  # touch the file system; trust indices they do not check
_EXPRESSIONS = frozenset(
    "Symbol Integer Float Add Mul Pow FloatPow PowByNatural Max Min Mod PythonMod FloorDiv CleanDiv CeilToInt "
    "FloorToInt TruncToInt TruncToFloat RoundToInt FloatTrueDiv IntTrueDiv ToFloat Where Rational Eq Ne Equality "
    "Unequality StrictLessThan LessThan StrictGreaterThan GreaterThan And Or Not".split()
)
_POWERS = frozenset({"Pow", "FloatPow", "PowByNatural"})
# sympy drops line breaks before it reads, which may turn what Python calls a comment or a string into code.
_EXPRESSION = re.compile(r"[A-Za-z0-9_'(),.=+ -]{1,10000}")
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
    elif key in ("as_string", "as_strings", "torch_version") or (
        key in _FLOATS and text in ("Infinity", "-Infinity", "NaN")
    ):
        pass  # only ever quoted, compared or made a number
    elif key in _PATHS:
        if not _PATH.fullmatch(text):
            _refuse(source, "path", text)
    elif not _WORD.fullmatch(text):
        _refuse(source, "name", text)


def _check_operator(text: str, source: str) -> None:
    if text in _FUNCTIONS or (_WORD.fullmatch(text) and not text.startswith(("torch", "_operator", "math", "#"))):
        return  # a plain word is an attribute's name, never resolved
    match = _OPERATOR.fullmatch(text)
    if match is None or _FORBIDDEN.fullmatch(match[2]):
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
    elif namespace == "compress":
        import compress.recurrent  # noqa: F401


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
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise CompressError(
            f"{source} is damaged: it holds a container description that is not one ({error!r})"
        ) from error


def check_expression(text: str, source: str) -> None:
    """Refuse a symbolic size outside the closed grammar: sympy *evaluates* the string it is given.

    Allowed: ``Symbol('name', integer=True, ...)``, numbers, and calls of the arithmetic in ``_EXPRESSIONS``; powers
    only of what holds none, to a small number, as a tower of them would not end.
    """
    try:
        tree = ast.parse(text, mode="eval") if _EXPRESSION.fullmatch(text) else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    if tree is None or not _is_expression(tree.body):
        _refuse(source, "symbolic size", text)


def _is_expression(node: ast.expr, inside: str = "") -> bool:
    match node:
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=keywords) if name in _EXPRESSIONS:
            if name in _POWERS and not _is_small_power(arguments):
                return False
            return all(_is_flag(keyword) for keyword in keywords) and all(_is_expression(a, name) for a in arguments)
        case ast.Constant(value=bool()):
            return False
        case ast.Constant(value=int()):
            return True
        case ast.Constant(value=str() as word):
            pattern = {"Symbol": r"[a-z]+\d+", "Float": r"-?\d+\.?\d*(e[+-]?\d{1,3})?"}.get(inside)
            return pattern is not None and re.fullmatch(pattern, word) is not None
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int())):
            return True
    return False


def _is_flag(keyword: ast.keyword) -> bool:
    """Whether it is an assumption of a symbol, or the precision of a double."""
    match keyword:
        case ast.keyword(arg=str(), value=ast.Constant(value=bool())):
            return True
        case ast.keyword(arg="precision", value=ast.Constant(value=53)):
            return True
    return False


def _is_small_power(arguments: list[ast.expr]) -> bool:
    match arguments:
        case [base, ast.Call(func=ast.Name(id="Integer" | "Float" | "Rational"), args=exponent)]:
            names = {node.id for node in ast.walk(base) if isinstance(node, ast.Name)}
            try:
                return not names & _POWERS and all(abs(float(ast.literal_eval(number))) <= 16 for number in exponent)
            except (ValueError, TypeError):
                return False
    return False


def _refuse(source: str, what: str, text: str) -> None:
    raise CompressError(
        f"{source} was refused: it holds a {what} that no exported model has ({text[:80]!r}); nothing of it was run"
    )
