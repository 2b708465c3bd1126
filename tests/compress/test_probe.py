"""What is found on a device, how it is kept, and where it contradicts the target's row."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import compress.device
from compress.errors import CompressError
from compress.probe import contradictions, cpu_scheme, fit, probe, read_finding
from compress.targets import get_target, targets
from runtimes.machine import machine_facts
from tests.sshd import Sshd

PI = {"arch": "aarch64", "cpu": "Cortex-A76", "flags": ["asimd", "asimddp"], "dot_product": True,
      "memory_bytes": 8_453_000_000, "gpus": [], "npus": [], "backends": {"onnxruntime": "1.23.0"}, "l4t": None,
      "jetpack": None}  # fmt: skip
NANO = {"arch": "aarch64", "cpu": "Cortex-A78AE", "flags": ["asimd", "asimddp"], "dot_product": True,
        "memory_bytes": 7620 * 2**20, "gpus": [{"vendor": "NVIDIA", "compute_capability": "8.7"}], "npus": [],
        "backends": {"tensorrt": "10.3.0"}, "l4t": "36.4.3", "jetpack": "6.2"}  # fmt: skip
PC = {"arch": "x86_64", "cpu": "Intel(R) N100", "flags": ["avx2", "avx_vnni"], "dot_product": True,
      "memory_bytes": 16 * 2**30, "gpus": [{"vendor": "Intel"}], "npus": [{"vendor": "Intel"}],
      "backends": {"openvino": "2026.4.1", "onnxruntime": "1.31.1"}, "l4t": None, "jetpack": None}  # fmt: skip


class FakeDevice:
    """A device that answers with these facts; remembers how it was opened."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self._facts = facts
        self.closed = False

    def __enter__(self) -> FakeDevice:
        return self

    def __exit__(self, *error: object) -> None:
        self.closed = True

    def facts(self) -> dict[str, Any]:
        return dict(self._facts)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's home, empty, and the current folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    """A Raspberry Pi, or an emulated one, in place of every device."""
    fake = FakeDevice(PI)
    monkeypatch.setattr(compress.device, "open_device", lambda target, *, emulate, progress: fake)
    return fake


def with_address(name: str, address: str = "user@box", **changes: Any) -> Any:
    return dataclasses.replace(targets()[name], reach="ssh", address=address, **changes)


def test_a_finding_is_kept_and_read_again(home: Path, device: FakeDevice) -> None:
    row = with_address("rpi5", "pi@attic")
    assert read_finding(row) is None
    finding = probe(row)
    assert device.closed
    assert (finding.target, finding.address, finding.emulated, finding.facts) == ("rpi5", "pi@attic", False, PI)
    assert read_finding(row) == finding
    record = json.loads((home / ".config/compress/devices/rpi5.json").read_text())
    assert (record["format"], record["version"], record["when"][-6:]) == ("compress.device", 1, "+00:00")
    assert read_finding(dataclasses.replace(row, address="pi@cellar")) is None      # that is another device


def test_an_emulated_device_is_not_taken_for_the_real_one(home: Path, device: FakeDevice) -> None:
    row = targets()["rpi5"]
    finding = probe(row, emulate=True)
    assert (finding.emulated, read_finding(row)) == (True, None)
    assert read_finding(row, emulated=True) == finding


def test_this_machine_is_probed_without_a_device(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compress.device, "open_device", lambda *target, **options: pytest.fail("nothing to open"))
    finding = probe(targets()["onnxruntime-cpu"])
    assert finding.address is None
    assert finding.facts["cores"] >= 1


def test_a_device_over_ssh_is_probed(home: Path, sshd: Sshd) -> None:
    row = with_address("onnxruntime-cpu", sshd.address, python=sys.executable)
    finding = probe(row)
    here = machine_facts()
    same = ("cpu", "arch", "flags", "memory_bytes", "python", "backends")
    assert {key: finding.facts[key] for key in same} == {key: here[key] for key in same}
    assert read_finding(row) == finding


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"rpi5\.json is not JSON .*; `compress targets probe rpi5` writes it again"),
        ('{"format": "compress.device", "version": 2}', "has format version 2 and this software reads version 1"),
        ('{"format": "compress.device", "version": 1}', "lacks 'target'"),
        ('{"format": "compress.device", "version": 1, "target": "rpi5", "address": 3}', "'address' must be a string"),
        ('{"format": "compress.device", "version": 1, "address": null, "target": "rpi5", "emulated": false, '
         '"when": "now", "facts": []}', "'facts' must be an object"),
    ],
)  # fmt: skip
def test_a_damaged_finding_is_refused(home: Path, text: str, message: str) -> None:
    file = home / ".config/compress/devices/rpi5.json"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    with pytest.raises(CompressError, match=message):
        read_finding(targets()["rpi5"])


def test_a_finding_that_cannot_be_read_or_written(home: Path, device: FakeDevice) -> None:
    (home / ".config/compress/devices/rpi5.json").mkdir(parents=True)
    with pytest.raises(CompressError, match=r"rpi5\.json cannot be read \(Is a directory\): remove it and probe again"):
        read_finding(targets()["rpi5"])
    with pytest.raises(CompressError, match=r"rpi5\.json cannot be written \(Is a directory\)"):
        probe(with_address("rpi5"))


@pytest.mark.parametrize(
    ("row", "facts", "scheme"),
    [
        ("openvino-cpu", PC, "x86-vnni"),
        ("openvino-cpu", {**PC, "flags": ["avx2"]}, "x86"),
        ("openvino-cpu", {**PC, "flags": []}, "x86"),
        ("onnxruntime-cpu", PI, "arm64"),
        ("rpi5", PC, "arm64"),                  # a contradiction, which is told; the row stays what it says
        ("openvino-gpu", {**PC, "flags": []}, "x86-vnni"),
        ("openvino-cpu", {"arch": None, "flags": None}, "x86-vnni"),
    ],
)
def test_the_scheme_is_one_that_the_cpu_can_run(row: str, facts: Mapping[str, Any], scheme: str) -> None:
    target = with_address(row)
    assert fit(target, facts).scheme == scheme
    assert cpu_scheme(target, str(facts["arch"] or ""), facts["flags"] or ()) == scheme


@pytest.mark.parametrize(
    ("found", "jetpack", "expected"),
    [
        ("10.3.0.30", "6.2", ("10.3", "6.2", 20)),
        ("10.16.2.10", "7.2", ("10.16", "7.2", 20)),
        ("8.6.2", "6.0", ("8.6", "6.0", 17)),       # its parser does not know opset 20
        (None, None, ("10.3", "6.2", 20)),
        ("unknown", None, ("10.3", "6.2", 20)),
    ],
)
def test_a_jetson_s_own_versions_are_used(
    found: str | None, jetpack: str | None, expected: tuple[str, str, int]
) -> None:
    facts = {**NANO, "backends": {"tensorrt": found} if found else {}, "jetpack": jetpack}
    fitted = fit(with_address("jetson-orin-nano"), facts)
    assert (fitted.tensorrt, fitted.jetpack, fitted.opset) == expected


def test_get_target_uses_what_was_found(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "targets.toml").write_text(
        'version = 1\n[target.box]\ndescription = "Old server"\nbackend = "openvino"\ndevice = "CPU"\n'
        'scheme = "x86-vnni"\nfloat = "fp32"\ninstall = "openvino"\nverified = "."\nreach = "ssh"\naddress = "box"\n'
    )
    assert get_target("box").scheme == "x86-vnni"
    fake = FakeDevice({**PC, "flags": ["avx2"]})
    monkeypatch.setattr(compress.device, "open_device", lambda target, *, emulate, progress: fake)
    probe(targets()["box"])
    assert get_target("box").scheme == "x86"
    assert targets()["box"].scheme == "x86-vnni"


@pytest.mark.parametrize(
    ("row", "facts"),
    [("rpi5", PI), ("jetson-orin-nano", NANO), ("openvino-cpu", PC), ("openvino-gpu", PC), ("openvino-npu", PC),
     ("jetson-agx-orin", {**NANO, "memory_bytes": 62795 * 2**20}),
     ("jetson-thor", {**NANO, "memory_bytes": 125772 * 2**20, "backends": {"tensorrt": "10.13.3.9"}, "l4t": "38.2.1",
                      "jetpack": "7.0"})],
)  # fmt: skip
def test_a_row_that_says_what_its_device_is(row: str, facts: Mapping[str, Any]) -> None:
    assert contradictions(targets()[row], facts) == []


@pytest.mark.parametrize(
    ("row", "facts", "sentence"),
    [
        ("openvino-cpu", {**PC, "flags": ["avx2"]},
         "the row's scheme is x86-vnni and the Intel(R) N100 has no VNNI or AMX, without which u8 x s8 saturates: "
         "x86 is used"),
        ("onnxruntime-cpu", PI, "the row's scheme is x86-vnni and the Cortex-A76 is an ARM64 CPU: arm64 is used"),
        ("rpi5", {**PI, "arch": "x86_64", "cpu": None, "flags": ["avx2"]},
         "the row's scheme is arm64 and the CPU is x86_64: give it a row of its own"),
        ("rpi5", {**PI, "cpu": "Cortex-A72", "flags": ["asimd"], "dot_product": False},
         "the Cortex-A72 has no dot-product instructions (asimddp): int8 may be no faster than fp32"),
        ("rpi5", {**PI, "memory_bytes": 4 * 2**30}, "the row says 8 GiB of memory and the device has 4.0"),
        ("rpi5", {**PI, "memory_bytes": 16 * 2**30}, "the row says 8 GiB of memory and the device has 16.0"),
        ("rpi5", {**PI, "backends": {"numpy": "2.0"}},
         'onnxruntime is not installed for python3 there: pip install "compress-edge[onnxruntime]"'),
        ("openvino-gpu", {**PC, "gpus": [{"vendor": "NVIDIA"}]},
         "the row's device is an Intel GPU and none was found (is its driver loaded?)"),
        ("openvino-npu", {**PC, "npus": []},
         "the row's device is an Intel NPU and none was found (is its driver loaded?)"),
        ("jetson-orin-nano", {**NANO, "gpus": []},
         "the row's device is an NVIDIA GPU and none was found (is its driver loaded?)"),
        ("jetson-orin-nano", {**NANO, "backends": {}},
         "tensorrt is not installed for python3 there: it belongs to JetPack, install nvidia-jetpack or give the row "
         "a `python` that sees it"),
        ("jetson-orin-nano", {**NANO, "backends": {"tensorrt": "8.6.2"}},
         "the row says TensorRT 10.3 and the device has 8.6, which is used"),
        ("jetson-orin-nano", {**NANO, "l4t": "35.4.1", "jetpack": "5.1.2"},
         "the row says JetPack 6.2 and the device has JetPack 5.1.2"),
        ("jetson-orin-nano", {**NANO, "l4t": "50.1", "jetpack": None},
         "the row says JetPack 6.2 and the device has an unknown JetPack (L4T 50.1)"),
        ("jetson-orin-nano", {**NANO, "l4t": None, "jetpack": None},
         "the row is a Jetson's and the device is none: it has no /etc/nv_tegra_release"),
    ],
)  # fmt: skip
def test_what_a_row_and_its_device_contradict_each_other_in(row: str, facts: Mapping[str, Any], sentence: str) -> None:
    assert contradictions(targets()[row], facts) == [sentence]
