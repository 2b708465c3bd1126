"""The facts a device tells of itself, checked before anything is decided by them or shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

_Text = Annotated[str, Meta(max_length=500)]
_Count = Annotated[int, Meta(ge=0, le=1 << 60)]
_Number = Annotated[float, Meta(ge=-1e18, le=1e18)]
_Version = Annotated[str, Meta(pattern=r"^\d{1,9}(\.\d{1,9}){0,5}\Z")]
_Scalar = bool | _Count | _Number | _Text | None


class Facts(msgspec.Struct):
    """:func:`runtimes.machine.machine_facts`; a fact that a device or an older file does not tell is ``None``."""

    cpu: _Text | None = None
    board: _Text | None = None
    arch: _Text | None = None
    flags: Annotated[list[_Text], Meta(max_length=1000)] | None = None
    dot_product: bool | None = None
    hypervisor: bool | None = None
    cores: _Count | None = None
    cores_usable: _Count | None = None
    memory_bytes: _Count | None = None
    os: _Text | None = None
    python: _Text | None = None
    gpus: Annotated[list[dict[_Text, _Scalar]], Meta(max_length=100)] | None = None
    npus: Annotated[list[dict[_Text, _Scalar]], Meta(max_length=100)] | None = None
    backends: Annotated[dict[_Text, _Text], Meta(max_length=100)] | None = None
    l4t: _Text | None = None
    jetpack: _Version | None = None
    power_mode: _Text | None = None
    governor: _Text | None = None
    clocks_mhz: Annotated[list[_Number], Meta(max_length=4096)] | None = None
    clock_max_mhz: _Number | None = None
    temperatures_c: Annotated[dict[_Text, _Number], Meta(max_length=1000)] | None = None
    load_average: Annotated[list[_Number], Meta(max_length=3)] | None = None


def checked_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``facts`` that are known here, as they are, once each is of its type and of a size to be shown.

    Raises:
        ValueError: names the first fact that is not.
    """
    msgspec.convert(facts, Facts)
    return {name: value for name, value in facts.items() if name in Facts.__struct_fields__}
