"""Rows written into the user's file: nothing else of it changes, and a file that is not understood is left alone."""

from __future__ import annotations

import re
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from compress.errors import CompressError
from compress.targetfile import add_target, with_row
from compress.targets import get_target, targets


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's home; the current folder is another one."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


def own(home: Path, text: str | None = None) -> Path:
    """The user's file, with this text."""
    file = home / ".config/compress/targets.toml"
    if text is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode())
    return file


def test_an_address_for_a_row_that_is_there(home: Path) -> None:
    file, row = add_target("rpi5", address="pi@kitchen")
    assert (file, file.read_text()) == (own(home), 'version = 1\n\n[target.rpi5]\naddress = "pi@kitchen"\n')
    assert (row.address, row.scheme, get_target("rpi5")) == ("pi@kitchen", "arm64", row)
    add_target("rpi5", address="kitchen", python="~/venv/bin/python")
    assert file.read_text() == 'version = 1\n\n[target.rpi5]\npython = "~/venv/bin/python"\naddress = "kitchen"\n'


def test_a_new_row_is_like_another_one() -> None:
    file, row = add_target("gate", address="edge@gate", like="jetson-orin-nano", python="python3.10", here=True)
    assert file == Path("targets.toml")
    like = targets()["jetson-orin-nano"]
    same = [field for field in vars(like) if field not in ("name", "address", "python")]
    assert [getattr(row, field) for field in same] == [getattr(like, field) for field in same]
    assert (row.name, row.address, row.python) == ("gate", "edge@gate", "python3.10")
    assert targets()["gate"] == row


def test_several_that_add_at_once_lose_nothing(home: Path) -> None:
    before = 'version = 1\n[target.rpi5]  # upstairs\nmemory_gib = 4\n'
    own(home, before)
    names = [f"box{number}" for number in range(12)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda name: add_target(name, address=name, like="rpi5"), names))
    assert set(names) <= set(targets())
    assert own(home).read_text().startswith(before)
    assert list(own(home).parent.iterdir()) == [own(home)]


def test_a_row_like_this_machine_s_is_reached_over_ssh(monkeypatch: pytest.MonkeyPatch) -> None:
    _, row = add_target("box", address="box", like="openvino-cpu")
    assert (row.reach, row.backend, row.half) == ("ssh", "openvino", "bf16")
    assert targets()["box"] == row
    assert targets()["openvino-cpu"].reach == "local"


BEFORE = """# my devices
version = 1     # keep

[target.attic]      # upstairs
backend = "onnxruntime"
address = "pi@attic"    # by the window
description = "a # in a string"
[target."rpi5"]
memory_gib = 4
# the end
"""


def test_everything_else_in_the_file_stays(home: Path) -> None:
    after = with_row(BEFORE, "attic", {"address": "pi@cellar", "python": "p"}, "f")
    assert after == BEFORE.replace('"pi@attic"', '"pi@cellar"').replace(
        "# upstairs\n", '# upstairs\npython = "p"\n')  # fmt: skip
    assert with_row(BEFORE, "rpi5", {"address": "x"}, "f") == BEFORE.replace('"rpi5"]\n', '"rpi5"]\naddress = "x"\n')
    assert with_row(BEFORE, "new.one", {"opset": 17, "power_modes": ["7W", "15W"]}, "f") == (
        BEFORE + '\n[target."new.one"]\nopset = 17\npower_modes = ["7W", "15W"]\n')  # fmt: skip


def test_windows_line_ends_and_a_missing_last_one_stay() -> None:
    windows = 'version = 1\r\n[target.rpi5]\r\naddress = "a" # b\r\nopset = 17\r\n'
    assert with_row(windows, "rpi5", {"address": "c"}, "f") == windows.replace('"a"', '"c"')
    assert with_row("version = 1\n[target.rpi5]\nopset = 17", "rpi5", {"opset": 20}, "f") == (
        "version = 1\n[target.rpi5]\nopset = 20\n")  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "version = 1\ntarget = {rpi5 = {opset = 17}}\n",
        "version = 1\n[target]\nrpi5.opset = 17\n",
        'version = 1\n[target.rpi5]\naddress = """\nold"""\n',
        'version = 1\n[target.other]\ndescription = """\n[target.rpi5]\n"""\n',
    ],
)
def test_a_form_that_cannot_be_edited_is_refused(home: Path, text: str) -> None:
    file = own(home, text)
    with pytest.raises(CompressError, match=r"target 'rpi5' in a form that is not edited here: write into it addr"):
        with_row(text, "rpi5", {"address": "pi"}, str(file))
    with pytest.raises(CompressError):
        add_target("rpi5", address="pi")
    assert file.read_text() == text
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version = 1\n[target.rpi5", "cannot be read as TOML"),
        ("version = 7\n", "version is 7, expected `version = 1`"),
        ("version = 1\n[target.rpi5]\nadress = 'pi'\n", "unknown key 'adress': did you mean 'address'"),
        ("version = 1\n[target.rtx]\nopset = 'x'\n", "Expected `int`, got `str` - at `opset`"),
    ],
)
def test_a_damaged_file_is_left_alone(home: Path, text: str, message: str) -> None:
    file = own(home, text)
    with pytest.raises(CompressError, match=re.escape(message)):
        add_target("rpi5", address="pi")
    assert file.read_text() == text
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(CompressError, match="cannot be read as TOML"):
        add_target("rpi5", address="pi")
    assert file.read_bytes() == b"\xff\xfe"


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("attic", {}, "no target is called 'attic': say which row it is like, for example --like rpi5"),
        ("attic", {"like": "rpi"}, "unknown target 'rpi': did you mean rpi5?"),
        ("rpi5", {"like": "rpi5"}, "target 'rpi5' is there already: leave out --like, or take another name"),
        ("rtx", {}, "target 'rtx' is this machine: take another name, with --like rtx"),
        ("local", {"like": "rpi5"}, "'local' means one of the other targets (the best row for this machine)"),
        ("jetson", {"like": "jetson-thor"}, "'jetson' means one of the other targets"),
        ("a b", {"like": "rpi5"}, "target 'a b': a target's name is letters, digits, '.', '_' and '-'"),
        ("rpi5", {"address": "-oProxyCommand=id"}, "target 'rpi5': address '-oProxyCommand=id' is not a host"),
        ("rpi5", {"python": "python3; id"}, "target 'rpi5': python 'python3; id' is not the name or the path"),
        ("rpi5", {"python": "$(id)"}, "target 'rpi5': python '$(id)' is not the name or the path"),
        ("rpi5", {"python": "-c"}, "target 'rpi5': python '-c' is not the name or the path"),
    ],
)
def test_what_cannot_be_added(home: Path, name: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(CompressError, match=re.escape(message)):
        add_target(name, **{"address": "pi", **values})
    assert not own(home).exists()


def test_a_row_of_the_current_folder_is_changed_there(home: Path) -> None:
    add_target("gate", address="one", like="rpi5", here=True)
    with pytest.raises(CompressError, match=r"'gate' is written in .*here/targets.toml, .* last: add --here"):
        add_target("gate", address="two")
    add_target("gate", address="two", here=True)
    assert get_target("gate").address == "two"
    Path("targets.toml").write_text("version = 1\n[target.rpi5]\nopset = 17\n")
    add_target("rpi5", address="pi")            # its address is nobody else's
    assert (get_target("rpi5").address, get_target("rpi5").opset) == ("pi", 17)


def test_a_link_stays_a_link_and_permissions_stay(home: Path, tmp_path: Path) -> None:
    real = tmp_path / "dotfiles.toml"
    real.write_text("version = 1\n")
    real.chmod(0o600)
    own(home).parent.mkdir(parents=True)
    own(home).symlink_to(real)
    add_target("rpi5", address="pi")
    assert own(home).is_symlink()
    assert real.read_text() == 'version = 1\n\n[target.rpi5]\naddress = "pi"\n'
    assert stat.S_IMODE(real.stat().st_mode) == 0o600


def test_a_file_that_cannot_be_written_is_told(home: Path) -> None:
    (home / ".config").write_text("a file")
    with pytest.raises(CompressError, match=r"targets.toml cannot be (written|read as TOML)"):
        add_target("rpi5", address="pi")
