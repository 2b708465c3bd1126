"""The small recipe, for every test that needs a model on disk or a finished run; made once a session."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.sshd import Sshd

sys.path.insert(0, str(Path(__file__).parent / "e2e"))  # small_recipe is imported by the recipes that name its factory
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def small() -> ModuleType:
    """The module ``tests/e2e/small_recipe.py``."""
    import small_recipe

    return small_recipe


@pytest.fixture(scope="session")
def small_files(small: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small model, its data and its recipe; copy what a test changes."""
    folder = tmp_path_factory.mktemp("small")
    small.write_all(folder)
    return folder


@pytest.fixture(scope="session")
def finished(small_files: Path) -> Path:
    """The same folder after a run of the recipe, into ``out``."""
    import compress

    compress.run(small_files / "recipe.yaml", command="compress run recipe.yaml")
    return small_files


@pytest.fixture(scope="session")
def int8(finished: Path) -> Path:
    """The model file of that run which is in int8."""
    from tests.compress.command import from_run

    return from_run(finished, "distill", 1)


@pytest.fixture(scope="session")
def running_sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    from compress.errors import CompressError
    from tests.sshd import have_ssh, started_sshd

    if not have_ssh():
        pytest.skip("the OpenSSH client is not installed")
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(started_sshd(tmp_path_factory.mktemp("sshd")))
        except CompressError as error:
            pytest.skip(f"no sshd to test with: {error}")
        yield server


@pytest.fixture
def sshd(running_sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    """A device reached over ssh at ``sshd.address``; COMPRESS_SSH is set to reach it. Its network works again after."""
    monkeypatch.setenv("COMPRESS_SSH", running_sshd.ssh)
    yield running_sshd
    running_sshd.resume()


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies a folder to one that the test may change."""

    def copy(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / folder.name))

    return copy
