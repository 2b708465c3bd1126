"""Command-line options made from the fields of a config class: name, type, default and help have one home."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, TypeVar, Union

import click

from compress.errors import CompressError

F = TypeVar("F", bound=Callable[..., Any])


def options_of(config: type, *, leave_out: tuple[str, ...] = ()) -> Callable[[F], F]:
    """A decorator that adds one option per field of ``config``; the command gets them as one argument, ``config``."""
    names = [field.name for field in dataclasses.fields(config) if field.name not in leave_out]

    def decorate(function: F) -> F:
        def command(**arguments: Any) -> Any:
            given = {name: arguments.pop(name) for name in names}
            return function(config=make(config, given), **arguments)

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__click_params__ = list(getattr(function, "__click_params__", []))  # type: ignore[attr-defined]
        hints = typing.get_type_hints(config)
        for field in reversed(dataclasses.fields(config)):
            if field.name in names:
                command = _option(field, hints[field.name])(command)
        return command  # type: ignore[return-value]

    return decorate


def make(config: type, settings: dict[str, Any]) -> Any:
    """The config; what its own checks say is wrong with a flag."""
    try:
        return config(**settings)
    except ValueError as error:
        raise CompressError(str(error)) from error


def _option(field: dataclasses.Field[Any], hint: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    flag = "--" + field.name.replace("_", "-")
    arguments = [item for item in typing.get_args(hint) if item is not type(None)]
    if typing.get_origin(hint) in (Union, types.UnionType):
        hint = arguments[0]
    if hint is bool:
        flag = f"{flag}/--no-{field.name.replace('_', '-')}"
    multiple = typing.get_origin(hint) is tuple
    kind = (
        click.Choice(list(typing.get_args(hint))) if typing.get_origin(hint) is Literal else str if multiple else hint
    )
    default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    return click.option(
        flag, field.name, type=kind, multiple=multiple, default=default, help=field.metadata.get("help", ""),
        show_default=not multiple and default is not None,
    )  # fmt: skip
