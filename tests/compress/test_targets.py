"""The target table: its rows, the two aliases, the user's rows, and what is said of a wrong one."""

from __future__ import annotations

import importlib.util
import platform
import re
from pathlib import Path

import pytest

from compress import targets as module
from compress.errors import CompressError
from compress.targets import get_target, targets

NAMES = [
    "openvino-cpu", "openvino-gpu", "openvino-npu", "onnxruntime-cpu", "rpi5",
    "jetson-orin-nano", "jetson-orin-nx", "jetson-agx-orin", "jetson-thor", "rtx",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def _machine(monkeypatch: pytest.MonkeyPatch, machine: str, flags: set[str], *, openvino: bool = True) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(module, "_cpu_flags", lambda: flags)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if openvino else None)


def test_built_in_rows() -> None:
    rows = targets()
    assert list(rows) == NAMES
    assert all(row.name == name and row.verified.endswith(".") for name, row in rows.items())
    assert (rows["openvino-cpu"].float, rows["openvino-cpu"].half) == ("fp32", "bf16")
    assert (rows["onnxruntime-cpu"].float, rows["onnxruntime-cpu"].half) == ("fp32", None)
    assert (rows["rpi5"].scheme, rows["rpi5"].reach, rows["rpi5"].bandwidth_gbs) == ("arm64", "ssh", 17.0)
    assert (rows["jetson-thor"].memory_gib, rows["jetson-thor"].tensorrt) == (128, "10.13")
    assert {row.scheme for row in rows.values() if row.backend.startswith("tensorrt")} == {"tensorrt"}


def test_the_figures_of_the_jetsons() -> None:
    """Each rate is dense and of the GPU alone: half of the sparse one that NVIDIA publishes."""
    rows = targets()
    rates = {name: (row.int8_tops, row.fp16_tflops, row.bandwidth_gbs) for name, row in rows.items() if row.jetpack}
    assert rates == {
        "jetson-orin-nano": (33, 17, 102), "jetson-orin-nx": (None, None, 102.4),
        "jetson-agx-orin": (170 / 2, 170 / 4, 204.8), "jetson-thor": (1035 // 2, 1035 // 4, 273)}  # fmt: skip
    assert {(row.jetpack, row.tensorrt) for row in rows.values() if row.jetpack} == {("6.2", "10.3"), ("7.0", "10.13")}
    assert all(row.power_modes for row in rows.values() if row.jetpack)


@pytest.mark.parametrize("python", ["python3", "python3.10", "/usr/bin/python3", "~/venv/bin/python", "v/bin/python"])
def test_the_interpreter_there(python: str) -> None:
    Path("targets.toml").write_text(f'version = 1\n[target.rpi5]\npython = "{python}"\n')
    assert get_target("rpi5").python == python


def test_unknown_name_lists_the_nearest() -> None:
    with pytest.raises(CompressError, match=r"unknown target 'jetson-orin': did you mean .*jetson-orin-nano"):
        get_target("jetson-orin")
    with pytest.raises(CompressError, match=r"unknown target 'qqq': the targets are openvino-cpu, .*, local, jetson"):
        get_target("qqq")


@pytest.mark.parametrize(
    ("machine", "flags", "openvino", "name", "scheme"),
    [
        ("x86_64", {"avx512_vnni"}, True, "openvino-cpu", "x86-vnni"),
        ("AMD64", {"avx_vnni"}, True, "openvino-cpu", "x86-vnni"),
        ("x86_64", {"amx_int8"}, False, "onnxruntime-cpu", "x86-vnni"),
        ("x86_64", {"avx2"}, True, "openvino-cpu", "x86"),
        ("x86_64", set(), False, "onnxruntime-cpu", "x86"),
        ("aarch64", set(), True, "onnxruntime-cpu", "arm64"),
    ],
)
def test_local_is_the_best_row_with_the_scheme_of_this_cpu(
    monkeypatch: pytest.MonkeyPatch, machine: str, flags: set[str], openvino: bool, name: str, scheme: str
) -> None:
    _machine(monkeypatch, machine, flags, openvino=openvino)
    target = get_target("local")
    assert (target.name, target.scheme) == (name, scheme)
    assert get_target(name) == target


def test_the_scheme_of_other_devices_does_not_follow_this_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch, "x86_64", set())
    assert get_target("openvino-gpu").scheme == "x86-vnni"
    assert get_target("rpi5").scheme == "arm64"


def test_cpu_flags_are_those_of_cpuinfo(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512_vnni\nbugs\t\t: none\n\nflags\t\t: fpu\n")
    assert module._cpu_flags(cpuinfo) == {"fpu", "avx2", "avx512_vnni"}
    cpuinfo.write_text("processor\t: 0\nFeatures\t: asimddp\n")
    assert module._cpu_flags(cpuinfo) == set()
    assert module._cpu_flags(tmp_path / "absent") == set()


def test_jetson_is_the_one_with_an_address() -> None:
    with pytest.raises(CompressError, match=r"none has one: name the row \(jetson-orin-nano, .*targets.toml"):
        get_target("jetson")
    own = 'version = 1\n[target.jetson-orin-nx]\naddress = "me@robot"\n'
    Path("targets.toml").write_text(own)
    assert get_target("jetson") == get_target("jetson-orin-nx")
    Path("targets.toml").write_text(own + '[target.jetson-thor]\naddress = "thor"\n')
    with pytest.raises(CompressError, match="jetson-orin-nx, jetson-thor have one"):
        get_target("jetson")


def test_own_rows_change_and_extend_and_the_current_folder_wins() -> None:
    config = Path.home() / ".config/compress"
    config.mkdir(parents=True)
    (config / "targets.toml").write_text('version = 1\n[target.rpi5]\naddress = "pi@attic"\nmemory_gib = 4\n')
    Path("targets.toml").write_text(
        'version = 1\n[target.rpi5]\naddress = "pi@kitchen"\n[target.gateway]\ndescription = "Our gateway"\n'
        'backend = "onnxruntime"\ndevice = "CPU"\nscheme = "x86"\nfloat = "fp32"\ninstall = "onnxruntime"\n'
        'verified = "Nothing yet."\nreach = "ssh"\n'
    )
    assert (get_target("rpi5").address, get_target("rpi5").memory_gib) == ("pi@kitchen", 4)
    assert get_target("rpi5").scheme == "arm64"
    assert get_target("gateway").description == "Our gateway"
    assert list(targets()) == [*NAMES, "gateway"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[target.rpi5]\nadress = 'pi'", "targets.toml: target 'rpi5': unknown key 'adress': did you mean 'address'"),
        ("[target.rpi5]\nqqqq = 1", "target 'rpi5': unknown key 'qqqq': the keys are description, "),
        ("[target.rpi5]\nmemory_gib = '8'", "target 'rpi5': Expected `int | null`, got `str` - at `memory_gib`"),
        ("[target.rpi5]\nscheme = 'int4'", "target 'rpi5': Invalid enum value 'int4' - at `scheme`"),
        ("[target.new]\nbackend = 'openvino'", "target 'new': Object missing required field `description`"),
        ("[target.rpi5]\naddress = '-oProxyCommand=id'", "target 'rpi5': address '-oProxyCommand=id' is not a host"),
        ("[target.rpi5]\npython = 'python3 -c'", "target 'rpi5': python 'python3 -c' is not the name or the path of"),
        ("[target.rtx]\naddress = 'pc'", "target 'rtx': an address is for a row with reach"),
        ("[target.rtx]\ntensorrt = 'newest'", "target 'rtx': tensorrt = 'newest' is not a version"),
        ("[target.rpi5]\nbandwidth_gbs = nan", "target 'rpi5': bandwidth_gbs = nan is not a figure above 0"),
        ("[target.rpi5]\nint8_tops = 0", "target 'rpi5': int8_tops = 0.0 is not a figure above 0"),
        ("[target.rpi5]\nmemory_gib = -8", "target 'rpi5': memory_gib = -8 is not a figure above 0"),
        ("[target.rpi5]\naddress = 'pi@-oProxyCommand=id'", "address 'pi@-oProxyCommand=id' is not a host"),
        ("[target.rpi5]\naddress = 'pi@h\u00f6st'", "is not a host, user@host or a name of your ssh configuration"),
        ('[target.rpi5]\naddress = "pi\\n"', "is not a host, user@host or a name of your ssh configuration"),
        ("[target.'a b']\nbackend = 'openvino'\ndescription = ''\ndevice = 'CPU'\nscheme = 'x86'\n"
         "float = 'fp32'\ninstall = ''\nverified = ''", "target 'a b': a target's name is"),
        ("[rpi5]\nmemory_gib = 4", "unknown key 'rpi5': a row begins with [target.NAME]"),
        ("target = 3", "`target` must hold one table a row"),
        ("[target.rpi5", "targets.toml cannot be read as TOML"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_refused_with_file_row_and_key(text: str, message: str) -> None:
    Path("targets.toml").write_text(f"version = 1\n{text}\n")
    with pytest.raises(CompressError, match=re.escape(message)):
        get_target("openvino-cpu")


def test_a_file_of_another_version_is_refused() -> None:
    Path("targets.toml").write_text("[target.rpi5]\nmemory_gib = 4\n")
    with pytest.raises(CompressError, match=r"targets.toml: version is None, expected `version = 1`"):
        targets()
