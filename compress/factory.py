"""Factories: the functions that rebuild a module, which of them may be called, and whether they build the same one."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from compress.errors import CompressError
from compress.model import Factory, Graph, Model
from compress.program import named_outputs


def factory_reference(factory: str | Callable[..., nn.Module] | None, kwargs: Mapping[str, Any]) -> Factory | None:
    if factory is None:
        return None
    if callable(factory):
        module, name = factory.__module__, factory.__qualname__
        if module == "__main__" or "<" in name:
            raise CompressError(
                f"factory {name!r} of {module!r} cannot be found again by its name: define it at the top of a module "
                "that can be imported, not in a script, and not as a lambda or closure"
            )
        factory = f"{module}:{name}"
    if factory.count(":") != 1 or factory.startswith("__main__:"):
        raise CompressError(f"factory {factory!r} is not of the form 'package.module:function' (and not of __main__)")
    try:
        plain = json.loads(json.dumps(dict(kwargs), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CompressError(f"factory_kwargs must be JSON: {error}") from error
    return Factory(reference=factory, kwargs=plain)


def check_factory(model: Model, module: nn.Module, graphs: Mapping[str, Graph]) -> None:
    rebuilt = build_module(model, model.factory.reference if model.factory else None)
    rebuilt_keys, keys = set(rebuilt.state_dict()), set(module.state_dict())
    if rebuilt_keys != keys:
        raise CompressError(
            f"the factory builds another network: its weights differ by {sorted(rebuilt_keys ^ keys)[:3]}"
        )
    training = module.training
    module.eval()
    try:
        for key, graph in model.graphs.items():
            feed = {spec.name: model.example[spec.name] for spec in graph.inputs}
            method = graphs[key].method if key in graphs else "forward"
            ours, theirs = named_outputs(module, feed, method), named_outputs(rebuilt, feed, method)
            for name in ours:
                if name not in theirs or not torch.allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5):
                    raise CompressError(
                        f"the factory with these weights does not reproduce output {name!r} of the example"
                    )
    finally:
        module.train(training)


def build_module(model: Model, factory: str | None = None) -> nn.Module:
    """Rebuild the module from its factory, its channel map and its weights, in evaluation mode.

    Args:
        model: what to rebuild.
        factory: ``package.module:function`` that the user names; a factory that only the file names is called when it
            is one of ``compress.zoo``, never otherwise.
    """
    reference = _allowed_factory(model, factory)
    kwargs = model.factory.kwargs if model.factory is not None else {}
    try:
        module = resolve(reference, "factory")(**kwargs)
    except CompressError:
        raise
    except Exception as error:  # it is the user's code
        raise CompressError(
            f"factory {reference!r} failed with {dict(kwargs)}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(module, nn.Module):
        raise CompressError(f"factory {reference!r} returned {type(module).__name__}, not an nn.Module")
    if model.channels:
        from compress.prune.channels import apply_channels

        apply_channels(module, model.channels, model.weights)
    wanted = module.state_dict()
    missing = [key for key in wanted if key not in model.weights]
    if missing:
        raise CompressError(f"factory {reference!r} builds a network with a weight {missing[0]!r} that the model lacks")
    wrong = [key for key in wanted if wanted[key].shape != model.weights[key].shape]
    if wrong:
        raise CompressError(
            f"factory {reference!r} builds {wrong[0]!r} of shape {tuple(wanted[wrong[0]].shape)}, the model has "
            f"{tuple(model.weights[wrong[0]].shape)}: check factory_kwargs"
        )
    module.load_state_dict({key: model.weights[key] for key in wanted})
    return module.eval()


def _allowed_factory(model: Model, factory: str | None) -> str:
    if factory is not None:
        return factory
    if model.factory is None:
        raise CompressError(
            f"model {model.name!r} has no factory, so its module cannot be rebuilt: save it with "
            "compress.save(..., factory='package.module:function'), or name one with --factory"
        )
    if re.fullmatch(r"compress\.zoo\.[a-z_]+:build", model.factory.reference) is None:
        raise CompressError(
            f"the model file asks to call {model.factory.reference!r}: if you trust that function, say so with "
            f"--factory {model.factory.reference} (in a recipe: factory: {model.factory.reference})"
        )
    return model.factory.reference


def resolve(reference: str, what: str) -> Any:
    """The object a ``package.module:name`` that the *user* wrote refers to."""
    module, _, name = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise CompressError(
            f"{what} {reference!r} cannot be imported ({error}): is its package on PYTHONPATH?"
        ) from error
