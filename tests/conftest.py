"""The small recipe, for every test that needs a model on disk or a finished run; made once a session."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

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


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies a folder to one that the test may change."""

    def copy(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / folder.name))

    return copy
