"""A recipe: stages, data, target, metric and budget of a run, as a YAML file; its values are the commands' flags."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from compress.bench import BenchConfig
from compress.distill.config import DistillStage
from compress.errors import CompressError
from compress.prune.config import GOALS, PruneStage
from compress.quantize import QuantizeConfig
from compress.quantize.budget import BudgetConfig
from compress.quantize.sensitivity import SensitivityConfig

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Nothing to set yet: a target's row says how its engines are built."""


STAGES: Mapping[str, type] = {
    "prune": PruneStage,
    "distill": DistillStage,
    "quantize": QuantizeConfig,
    "sensitivity": SensitivityConfig,
    "budget": BudgetConfig,
    "export": ExportConfig,
    "bench": BenchConfig,
}
"""Stage -> the class of its settings."""

_ORDER = {
    name: rank for rank, name in enumerate(("prune", "quantize", "sensitivity", "budget", "export", "bench"))
}


@dataclass(frozen=True, kw_only=True)
class Stage:
    name: str
    config: Any


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a run may lose, and what it should gain: the recipe's own keys, and flags of ``compress run``.

    Without ``speedup`` the stages run once, as they stand. With it they run in rounds (:mod:`compress.stages.search`),
    which prune further and further.
    """

    max_drop: float = 0.01                           # the most that may be lost, in the metric's own unit
    speedup: float | Literal["most"] | None = None   # against the original's fp32 engine; most: what max_drop allows
    rounds: int = 6                                  # of pruning, at most

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop < math.inf:
            raise CompressError(f"max_drop must be a number of at least 0, got {self.max_drop}")
        if self.speedup is not None and self.speedup != "most" and not 1 < self.speedup < math.inf:
            raise CompressError(f"speedup must be above 1, or 'most', got {self.speedup}")
        if self.rounds < 1:
            raise CompressError(f"rounds must be at least 1, got {self.rounds}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe as read: paths are absolute, stages carry their configs."""

    path: Path
    model: Path
    calibration: Path
    validation: Path
    train: Path | None
    metric: str
    budget: Budget
    targets: tuple[str, ...]
    stages: tuple[Stage, ...]
    factory: str | None
    comparisons: str | None  # package.module:function of extra rows for the report
    raw: Mapping[str, Any] = field(repr=False)

    def has(self, name: str) -> bool:
        return any(stage.name == name for stage in self.stages)

    def config(self, name: str) -> Any:
        """The settings of a stage; None where the recipe has no such stage."""
        return next((stage.config for stage in self.stages if stage.name == name), None)

    @property
    def max_drop(self) -> float:
        return self.budget.max_drop

    @property
    def on_float(self) -> tuple[Stage, ...]:
        """The stages from model to model before quantize; all of them where there is none."""
        return self._models[: self._quantize]

    @property
    def on_int8(self) -> tuple[Stage, ...]:
        """Those from quantize on, which are done for each scheme."""
        return self._models[self._quantize :]

    @property
    def _models(self) -> tuple[Stage, ...]:
        return tuple(stage for stage in self.stages if stage.name in ("prune", "distill", "quantize"))

    @property
    def _quantize(self) -> int:
        names = [stage.name for stage in self._models]
        return names.index("quantize") if "quantize" in names else len(names)


_BUDGET = tuple(f.name for f in dataclasses.fields(Budget))
_KEYS = {"version", "model", "data", "metric", *_BUDGET, "target", "stages", "factory", "comparisons"}
_DATA = {"calibration", "train", "validation"}


def _loader() -> Any:
    """YAML's safe loader, to which ``1e-3`` is a number, as in YAML 1.2; in YAML 1.1 it is a word without a point."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"),
                                 list("-+0123456789"))  # fmt: skip
    return Loader


def read_recipe(path: Path, instead: Mapping[str, Any] | None = None) -> Recipe:
    """Read and check a recipe; relative paths in it are relative to its folder.

    Args:
        path: the file.
        instead: keys that stand in place of its own.

    Raises:
        CompressError: naming the file, the key and what was expected.
    """
    import yaml

    if not path.is_file():
        raise CompressError(f"recipe {path} does not exist")
    try:
        text = path.read_text(encoding="utf-8")
        loader = _loader()
        _refuse_double_keys(yaml.compose(text, loader), str(path))
        raw = yaml.load(text, loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise CompressError(f"{path} is not YAML: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(raw, dict):
        raise CompressError(f"{path} is not a recipe: expected a mapping with version, model, data, target and stages")
    where = str(path)
    raw = {**raw, **(instead or {})}
    _refuse_unknown(raw, _KEYS, where)
    for key in ("version", "model", "data", "target", "stages"):
        if key not in raw:
            raise CompressError(f"{where} lacks {key!r}")
    if raw["version"] != VERSION or raw["version"] is True:
        raise CompressError(f"{where} has version {raw['version']!r}, this release reads version {VERSION}")
    data = _mapping(raw["data"], f"{where}: data")
    _refuse_unknown(data, _DATA, f"{where}: data")
    stages = _stages(raw["stages"], where)
    for key in ("calibration", "validation"):
        if key not in data:
            raise CompressError(f"{where}: data lacks {key!r}")
    if "train" not in data and any(stage.name == "distill" for stage in stages):
        raise CompressError(f"{where}: a distill stage needs data: train")
    targets = raw["target"] if isinstance(raw["target"], list) else [raw["target"]]
    if not targets or not all(isinstance(target, str) for target in targets):
        raise CompressError(f"{where}: target must be a target's name or a list of names, got {raw['target']!r}")
    budget = _budget(raw, stages, where)
    for key in ("model", "metric", "factory", "comparisons"):
        if not isinstance(raw.get(key, ""), str):
            raise CompressError(f"{where}: {key} must be a string, got {raw[key]!r}")
    for key, folder in data.items():
        if not isinstance(folder, str):
            raise CompressError(f"{where}: data: {key} must be a folder's name, got {folder!r}")
    here = path.resolve().parent
    return Recipe(
        path=path.resolve(), model=here / raw["model"], calibration=here / data["calibration"],
        validation=here / data["validation"], train=here / data["train"] if "train" in data else None,
        metric=raw.get("metric", "accuracy"), budget=budget, targets=tuple(dict.fromkeys(targets)),
        stages=stages, factory=raw.get("factory"), comparisons=raw.get("comparisons"), raw=raw,
    )  # fmt: skip


def _budget(raw: Mapping[str, Any], stages: tuple[Stage, ...], where: str) -> Budget:
    asked = {name: raw[name] for name in _BUDGET if name in raw}
    for name, value in asked.items():       # nan and infinity are told with their key, and True is no number
        kinds = {"max_drop": "a number of at least 0", "speedup": "a number above 1, or most", "rounds": "a number"}
        right = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not right and not (name == "speedup" and value == "most"):
            raise CompressError(f"{where}: {name} must be {kinds[name]}, got {value!r}")
    budget: Budget = to_config(Budget, asked, where)
    prune = next((stage.config for stage in stages if stage.name == "prune"), None)
    if budget.speedup is not None and prune is None:
        raise CompressError(f"{where}: speedup is what pruning is driven by: give the recipe a prune stage")
    goals = [name for name in GOALS if budget.speedup is not None and getattr(prune, name) is not None]
    if goals:
        raise CompressError(f"{where}: speedup says how much is pruned: leave {' and '.join(goals)} out of the prune "
                            "stage")
    if budget.speedup is not None and prune is not None and prune.merge_tokens is not None:
        raise CompressError(f"{where}: speedup prunes in rounds, and a model whose tokens are merged is not pruned "
                            "again: leave merge_tokens out of the prune stage, or speedup out of the recipe")
    return budget


def _stages(raw: Any, where: str) -> tuple[Stage, ...]:
    if not isinstance(raw, list) or not raw:
        raise CompressError(f"{where}: stages must be a list such as [prune: {{macs: 0.5}}, quantize: {{}}]")
    stages = []
    for index, entry in enumerate(raw, 1):
        if isinstance(entry, str):
            entry = {entry: {}}
        if not isinstance(entry, dict) or len(entry) != 1:
            raise CompressError(f"{where}: stage {index} must be one name with its settings, got {entry!r}")
        ((name, settings),) = entry.items()
        if name not in STAGES:
            raise CompressError(f"{where}: stage {index} is {name!r}: expected one of {', '.join(STAGES)}")
        place = f"{where}: stage {index} ({name})"
        config = to_config(STAGES[name], {} if settings is None else settings, place)
        if name in ("bench", "budget") and "max_drop" in (settings or {}):
            raise CompressError(f"{place}: max_drop is a key of the recipe itself: move it there")
        stages.append(Stage(name=name, config=config))
    _check_order(stages, where)
    return tuple(stages)


def _check_order(stages: list[Stage], where: str) -> None:
    ranked = [stage.name for stage in stages if stage.name in _ORDER]
    if ranked != sorted(set(ranked), key=_ORDER.__getitem__):
        raise CompressError(
            f"{where}: {', '.join(_ORDER)} come in this order, each at most once; got {ranked}"
        )
    names = [stage.name for stage in stages]
    for late in ("budget", "sensitivity", "export", "bench"):
        if late in names and "distill" in names[names.index(late) :]:
            raise CompressError(f"{where}: distill cannot come after {late}")
    for of_int8 in ("budget", "sensitivity"):
        if of_int8 in names and "quantize" not in names:
            raise CompressError(f"{where}: {of_int8} looks at a quantized model: put a quantize stage before it")
    if "bench" in names and "export" not in names:
        raise CompressError(f"{where}: bench measures engines: put an export stage before it")


def to_config(kind: type, settings: Any, where: str) -> Any:
    """The frozen config of class ``kind`` from a mapping, every key and type checked."""
    import msgspec

    settings = _mapping(settings, where)
    for key, value in settings.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise CompressError(f"{where}: {key} is {value}: it must be a finite number")
    _refuse_unknown(settings, {f.name for f in dataclasses.fields(kind)}, where)
    try:
        return msgspec.convert(settings, kind)
    except msgspec.ValidationError as error:
        field = str(error).rpartition("$.")[2].rstrip("`")
        choices = get_args(get_type_hints(kind).get(field)) if "enum" in str(error) else ()
        hint = f": expected one of {', '.join(map(str, choices))}" if choices else ""
        raise CompressError(f"{where}: {str(error).replace('$.', '')}{hint}") from error
    except CompressError as error:
        raise CompressError(f"{where}: {error}") from error


def _refuse_double_keys(node: Any, where: str) -> None:
    """YAML keeps the last of two equal keys without a word."""
    children = [part for pair in node.value for part in pair] if node is not None and node.id == "mapping" else []
    if node is not None and node.id == "sequence":
        children = node.value
    if node is not None and node.id == "mapping":
        names = [key.value for key, _ in node.value if key.id == "scalar"]
        double = next((name for name in names if names.count(name) > 1), None)
        if double is not None:
            raise CompressError(f"{where}: key {double!r} stands twice in line {node.start_mark.line + 1} and after")
    for child in children:
        _refuse_double_keys(child, where)


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise CompressError(f"{where} must be a mapping of names to values, got {value!r}")
    return value


def _refuse_unknown(value: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            keys = f"expected one of {', '.join(sorted(known))}" if known else "there is nothing to set"
            raise CompressError(f"{where}: unknown key {key!r}: " + (f"did you mean {near[0]!r}?" if near else keys))
