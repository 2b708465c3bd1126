"""Hardware targets: one row of data each, built in (``targets.toml`` beside this file) or the user's own."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import platform
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from compress.errors import CompressError
from compress.probe import cpu_scheme, fit, read_finding

if sys.version_info >= (3, 11):
    import tomllib
else:  # JetPack 6 has Python 3.10
    import tomli as tomllib

Scheme = Literal["x86-vnni", "x86", "arm64", "tensorrt"]
Float = Literal["fp32", "bf16", "fp16"]
Number = float  # inside the class below ``float`` is a field

_BUILT_IN = Path(__file__).with_name("targets.toml")
_VERSION = 1

ALIASES = {"local": "the best row for this machine", "jetson": "the one Jetson row with an address"}


@dataclass(frozen=True, kw_only=True)
class Target:
    """What an engine is made for.

    ``float`` is the precision of whatever an int8 engine does not compute in int8; ``half`` is the half-precision
    control of the benchmarks, ``None`` where the backend has no such kernels. ``address`` is what the user gives to
    ``ssh``. Rates are dense peaks. ``verified`` says in one sentence what was really seen working.
    """

    name: str
    description: str
    backend: Literal["openvino", "onnxruntime", "tensorrt", "tensorrt_rtx"]
    device: Literal["CPU", "GPU", "NPU"]
    scheme: Scheme
    float: Float
    install: str                                 # the extra that brings its runtime
    verified: str
    half: Float | None = None
    opset: int = 20
    multiple: int = 8                            # what prune leaves channel counts multiples of, for its kernels
    reach: Literal["local", "ssh"] = "local"
    address: str | None = None
    memory_gib: int | None = None
    bandwidth_gbs: Number | None = None
    int8_tops: Number | None = None
    fp16_tflops: Number | None = None
    tensorrt: str | None = None
    jetpack: str | None = None                   # set on the Jetson rows alone
    power_modes: tuple[str, ...] = ()
    python: str = "python3"                      # the interpreter on the device: 3.10 or newer, with numpy and backend

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError("a target's name is letters, digits, '.', '_' and '-'")
        if self.address is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._@:%+-]*", self.address):
            raise ValueError(f"address {self.address!r} is not a host, user@host or a name of your ssh configuration")
        if self.address is not None and self.reach != "ssh":
            raise ValueError('an address is for a row with reach = "ssh"')
        if not re.fullmatch(r"(~?/)?[A-Za-z0-9_.+][A-Za-z0-9_./+-]*", self.python):
            raise ValueError(f"python {self.python!r} is not the name or the path of an interpreter")
        for field in ("opset", "multiple", "memory_gib", "bandwidth_gbs", "int8_tops", "fp16_tflops"):
            if (figure := getattr(self, field)) is not None and not 0 < figure < 1e9:
                raise ValueError(f"{field} = {figure} is not a figure above 0")
        for field in ("tensorrt", "jetpack"):
            if (version := getattr(self, field)) is not None and not re.fullmatch(r"\d+(\.\d+)*", version):
                raise ValueError(f"{field} = {version!r} is not a version")


def targets(*, folder: Path | None = None, home: Path | None = None) -> dict[str, Target]:
    """Every target by name: the built-in rows, changed and extended by the user's, the current folder's last.

    Args:
        folder: where ``targets.toml`` is looked for; the current folder by default.
        home: the user's home folder, whose ``.config/compress/targets.toml`` is read before ``folder``'s.

    Raises:
        CompressError: if a file is not of the form described in the built-in one; names file, row and key.
    """
    return read_targets(*user_files(folder=folder, home=home))


def read_targets(*files: Path) -> dict[str, Target]:
    """The built-in rows as these files change and extend them, one after the other; errors as :func:`targets`."""
    rows: dict[str, dict[str, Any]] = {}
    found: dict[str, Target] = {}
    for file in (_BUILT_IN, *files):
        for name, row in _read_rows(file).items():
            rows[name] = {**rows.get(name, {}), **row, "name": name}
            found[name] = to_target(rows[name], f"{file}: target {name!r}")
    return found


def user_files(*, folder: Path | None = None, home: Path | None = None) -> tuple[Path, Path]:
    """The user's own file and the current folder's, which comes after it; neither need exist."""
    return (home or Path.home()) / ".config" / "compress" / "targets.toml", (folder or Path()) / "targets.toml"


def get_target(name: str) -> Target:
    """The target called ``name``: ``local`` is the best row for this machine, ``jetson`` the Jetson with an address.

    A row for this machine's CPU, or for a device that was probed (:mod:`compress.probe`), gets the scheme which that
    CPU can run; a probed Jetson's row also its versions of TensorRT and JetPack.

    Raises:
        CompressError: if there is no such target (with the nearest names), or ``jetson`` is not exactly one row.
    """
    target = row_of(name)
    if target.reach == "local":
        scheme = cpu_scheme(target, platform.machine(), _cpu_flags())
        return target if scheme == target.scheme else dataclasses.replace(target, scheme=scheme)
    finding = read_finding(target)
    return target if finding is None else fit(target, finding.facts)


def row_of(name: str) -> Target:
    """The row called ``name`` as it is written, ``local`` and ``jetson`` included; errors as :func:`get_target`."""
    rows = targets()
    if name == "local":
        name = _best_here()
    elif name == "jetson":
        name = _only_jetson(rows.values())
    if name not in rows:
        known = [*rows, *ALIASES]
        begun = [row for row in known if name and row.startswith(name)]
        near = begun or difflib.get_close_matches(name, known, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"the targets are {', '.join(known)}"
        raise CompressError(f"unknown target {name!r}: {hint} (own rows go into targets.toml)")
    return rows[name]


def _best_here() -> str:
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return "openvino-cpu" if x86 and importlib.util.find_spec("openvino") is not None else "onnxruntime-cpu"


def _only_jetson(rows: Iterable[Target]) -> str:
    jetsons = [row for row in rows if row.jetpack is not None]
    reachable = [row.name for row in jetsons if row.address is not None]
    if len(reachable) != 1:
        what = f"{', '.join(reachable)} have one" if reachable else "none has one"
        raise CompressError(
            f"target 'jetson' means the one Jetson row with an address, and {what}: name the row ("
            f"{', '.join(row.name for row in jetsons)}), or give one its address: "
            f"compress targets add {jetsons[0].name} --address user@host (it goes into targets.toml)"
        )
    return reachable[0]


def _cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """This CPU's flags; empty where they cannot be read, so that the scheme which is safe everywhere is taken."""
    if not cpuinfo.is_file():
        return set()
    match = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
    return set(match[1].split()) if match else set()


def _read_rows(file: Path) -> dict[str, dict[str, Any]]:
    try:
        return parse_rows(file.read_text(encoding="utf-8"), str(file))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise CompressError(f"{file} cannot be read as TOML: {error}") from error


def parse_rows(text: str, file: str) -> dict[str, dict[str, Any]]:
    """The rows in the text of a ``targets.toml``, as they are written; :func:`to_target` checks their values.

    Raises:
        CompressError: if it is not TOML of this form, or a key is unknown; names ``file``, row and key.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CompressError(f"{file} cannot be read as TOML: {error}") from error
    if content.get("version") != _VERSION:
        found = content.get("version")
        raise CompressError(f"{file}: version is {found!r}, expected `version = {_VERSION}` as the first line")
    if extra := [key for key in content if key not in ("version", "target")]:
        raise CompressError(f"{file}: unknown key {extra[0]!r}: a row begins with [target.NAME]")
    rows = content.get("target", {})
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise CompressError(f"{file}: `target` must hold one table a row, each beginning with [target.NAME]")
    known = [field.name for field in dataclasses.fields(Target) if field.name != "name"]
    for name, row in rows.items():
        for key in row:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(known)}"
                raise CompressError(f"{file}: target {name!r}: unknown key {key!r}: {hint}")
    return rows


def to_target(row: Mapping[str, Any], where: str) -> Target:
    """The row's values, checked; ``where`` begins the message of the :class:`CompressError`."""
    import msgspec

    try:
        return msgspec.convert(row, Target)
    except msgspec.ValidationError as error:  # its text ends in "- at `$.key`"
        raise CompressError(f"{where}: {str(error).replace('$.', '')}") from error
