"""What a device really is: read there, kept beside the user's targets, and compared with the target's row.

A finding is one JSON file a target, ``~/.config/compress/devices/NAME.json``::

    {"format": "compress.device", "version": 1, "target": NAME, "address": "user@host" or null, "emulated": false,
     "when": "2026-11-22T13:18:12+00:00", "facts": {...}}                # facts: runtimes.machine.machine_facts there

One of an emulated device lies in ``devices/emulated/`` and is never taken for the device itself.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import CompressError

if TYPE_CHECKING:
    from compress.progress import Progress
    from compress.targets import Scheme, Target

_FORMAT = "compress.device"
_VERSION = 1
_VNNI = {"avx512_vnni", "avx_vnni", "amx_int8"}     # /proc/cpuinfo's names for u8 x s8 without saturation
_OLD_TENSORRT_OPSET = 17                            # what TensorRT 8.6 reads: docs/operators.md of onnx/onnx-tensorrt


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a probe found; ``facts`` as :func:`runtimes.machine.machine_facts` gives them."""

    target: str
    address: str | None
    emulated: bool
    when: str
    facts: Mapping[str, Any]


def probe(
    target: Target, *, emulate: bool = False, home: Path | None = None, progress: Progress | None = None
) -> Finding:
    """Read what the device of ``target`` is, and keep it for :func:`compress.targets.get_target`.

    Raises:
        CompressError: if the device cannot be reached, or the finding cannot be written.
    """
    if target.reach == "local" and not emulate:
        from runtimes.machine import machine_facts

        facts = machine_facts()
    else:
        from compress.device import open_device

        with open_device(target, emulate=emulate, progress=progress) as device:
            facts = device.facts()
    when = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    finding = Finding(target=target.name, address=target.address, emulated=emulate, when=when, facts=facts)
    _write(finding, _path(target.name, emulate, home))
    return finding


def read_finding(target: Target, *, emulated: bool = False, home: Path | None = None) -> Finding | None:
    """The last finding of ``target``'s device; ``None`` if there is none, or it is of another address.

    Raises:
        CompressError: if the file is damaged.
    """
    from compress.device.facts import checked_facts
    from runtimes.errors import RuntimesError
    from runtimes.records import get, parse_record, typed

    path = _path(target.name, emulated, home)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CompressError(f"{path} cannot be read ({error.strerror}): remove it and probe again") from error
    try:
        where = str(path)
        record = parse_record(data, where, format=_FORMAT, version=_VERSION)
        address = record.get("address")
        finding = Finding(
            target=get(record, "target", str, where),
            address=None if address is None else typed(address, str, f"{where}: 'address'"),
            emulated=get(record, "emulated", bool, where),
            when=get(record, "when", str, where),
            facts=checked_facts(get(record, "facts", dict, where)),
        )
    except (RuntimesError, ValueError) as error:
        raise CompressError(f"{path}: {error}; `compress targets probe {target.name}` writes it again") from error
    return finding if finding.address == target.address else None


def fit(target: Target, facts: Mapping[str, Any]) -> Target:
    """``target`` with what its device was found to be: the CPU's scheme, the versions of TensorRT and JetPack."""
    scheme = cpu_scheme(target, str(facts.get("arch") or ""), facts.get("flags") or ())
    fitted = dataclasses.replace(target, scheme=scheme)
    if target.backend == "tensorrt":
        version, jetpack = _version(facts, "tensorrt"), facts.get("jetpack")
        if version is not None:
            opset = target.opset if int(version.split(".")[0]) >= 10 else min(target.opset, _OLD_TENSORRT_OPSET)
            fitted = dataclasses.replace(fitted, tensorrt=version, opset=opset)
        if isinstance(jetpack, str) and target.jetpack is not None:
            fitted = dataclasses.replace(fitted, jetpack=jetpack)
    return fitted


def cpu_scheme(target: Target, arch: str, flags: Iterable[str]) -> Scheme:
    """The scheme for a CPU: a row for any CPU says ``x86-vnni``, which an ARM one or one without VNNI cannot run.

    Without VNNI or AMX the sums of u8 x s8 products saturate, so the weights must be 7-bit; an ARM64 CPU takes s8
    activations.
    """
    if target.device != "CPU" or target.scheme != "x86-vnni" or not arch:
        return target.scheme
    if arch.lower() in ("aarch64", "arm64"):
        return "arm64"
    return "x86-vnni" if _VNNI & set(flags) else "x86"


def contradictions(target: Target, facts: Mapping[str, Any]) -> list[str]:
    """Where the row says something else than its device, or asks what the device cannot do; a sentence each."""
    return [*_cpu(target, facts), *_accelerator(target, facts), *_software(target, facts), *_memory(target, facts)]


def _cpu(target: Target, facts: Mapping[str, Any]) -> list[str]:
    if target.device != "CPU":
        return []
    arch, cpu = str(facts.get("arch") or "unknown").lower(), facts.get("cpu") or "CPU"
    is_arm = arch in ("aarch64", "arm64")
    fitted = cpu_scheme(target, arch, facts.get("flags") or ())
    if fitted != target.scheme:
        why = "is an ARM64 CPU" if is_arm else "has no VNNI or AMX, without which u8 x s8 saturates"
        return [f"the row's scheme is {target.scheme} and the {cpu} {why}: {fitted} is used"]
    if is_arm != (target.scheme == "arm64"):
        return [f"the row's scheme is {target.scheme} and the {cpu} is {arch}: give it a row of its own"]
    if target.scheme == "arm64" and facts.get("dot_product") is False:
        return [f"the {cpu} has no dot-product instructions (asimddp): int8 may be no faster than fp32"]
    return []


def _accelerator(target: Target, facts: Mapping[str, Any]) -> list[str]:
    vendor = "NVIDIA" if target.backend.startswith("tensorrt") else "Intel"
    kind = {"GPU": "gpus", "NPU": "npus"}.get(target.device)
    if kind is None or any(found.get("vendor") == vendor for found in facts.get(kind) or ()):
        return []
    return [f"the row's device is an {vendor} {target.device} and none was found (is its driver loaded?)"]


def _software(target: Target, facts: Mapping[str, Any]) -> list[str]:
    said = []
    if target.backend not in (facts.get("backends") or {}):
        said.append(
            f"{target.backend} is not installed for {target.python} there: "
            + ("it belongs to JetPack, install nvidia-jetpack or give the row a `python` that sees it"
               if target.jetpack is not None else f'pip install "compress-edge[{target.install}]"')
        )  # fmt: skip
    found = _version(facts, "tensorrt")
    if target.backend == "tensorrt" and target.tensorrt is not None and found not in (None, _short(target.tensorrt)):
        said.append(f"the row says TensorRT {target.tensorrt} and the device has {found}, which is used")
    if target.jetpack is not None:
        jetpack = facts.get("jetpack")
        if facts.get("l4t") is None:
            said.append("the row is a Jetson's and the device is none: it has no /etc/nv_tegra_release")
        elif jetpack != target.jetpack:
            what = f"JetPack {jetpack}" if jetpack else f"an unknown JetPack (L4T {facts['l4t']})"
            said.append(f"the row says JetPack {target.jetpack} and the device has {what}")
    return said


def _memory(target: Target, facts: Mapping[str, Any]) -> list[str]:
    """The kernel and the firmware keep a part for themselves: 8 GB boards show 7.4 to 7.9 GiB."""
    found = facts.get("memory_bytes")
    if target.memory_gib is None or not isinstance(found, int):
        return []
    gib = found / 2**30
    if 0.8 * target.memory_gib <= gib <= 1.02 * target.memory_gib:
        return []
    return [f"the row says {target.memory_gib} GiB of memory and the device has {gib:.1f}"]


def _version(facts: Mapping[str, Any], backend: str) -> str | None:
    """Major and minor version of a backend there: "10.3" of "10.3.0.30"."""
    return _short(str((facts.get("backends") or {}).get(backend)))


def _short(version: str) -> str | None:
    match = re.match(r"\d+\.\d+", version)
    return match[0] if match else None


def _path(name: str, emulated: bool, home: Path | None) -> Path:
    folder = (home or Path.home()) / ".config" / "compress" / "devices"
    return (folder / "emulated" if emulated else folder) / f"{name}.json"


def _write(finding: Finding, path: Path) -> None:
    from runtimes.records import write_json

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"format": _FORMAT, "version": _VERSION, **dataclasses.asdict(finding)})
    except OSError as error:
        raise CompressError(f"{path} cannot be written ({error.strerror}): the device was not remembered") from error
