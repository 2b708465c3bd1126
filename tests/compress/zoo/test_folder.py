"""The folder of `compress demo`: whole with the same settings and every byte as written; the recipe is the user's."""

import json

import pytest

from compress.errors import CompressError
from compress.zoo.folder import begin, digests, finish, is_whole, read_record, shifted


@pytest.fixture
def folder(tmp_path):
    begin(tmp_path, "dense", "version: 1\n")
    (tmp_path / "model.pt").write_bytes(b"weights")
    (tmp_path / "train").mkdir()
    (tmp_path / "train/0.npz").write_bytes(b"rows")
    return tmp_path


def _finish(folder):
    finish(folder, {"format": "compress.demo", "version": 1, "model": "dense", "settings": {"seed": 0},
                    "files": digests(folder)})  # fmt: skip
    return read_record(folder, "dense")


def test_what_was_begun_is_not_whole(folder):
    found = read_record(folder, "dense")
    assert found["unfinished"]
    assert not is_whole(folder, found, {"seed": 0})


def test_what_was_finished_is_whole_until_something_changes(folder):
    found = _finish(folder)
    assert set(found["files"]) == {"model.pt", "train/0.npz"}
    assert is_whole(folder, found, {"seed": 0})
    assert not is_whole(folder, found, {"seed": 1})
    (folder / "train/0.npz").write_bytes(b"rowz")
    assert not is_whole(folder, found, {"seed": 0})


def test_the_users_recipe_is_kept_and_a_missing_one_makes_the_folder_incomplete(folder):
    (folder / "recipe.yaml").write_text("mine")
    begin(folder, "dense", "version: 1\n")
    assert (folder / "recipe.yaml").read_text() == "mine"
    found = _finish(folder)
    (folder / "recipe.yaml").unlink()
    assert not is_whole(folder, found, {"seed": 0})


def test_a_record_that_names_no_model_is_the_demos(folder):
    (folder / "demo.json").write_text(json.dumps({"format": "compress.demo", "version": 1}))
    assert read_record(folder) is not None
    with pytest.raises(CompressError, match="holds the demo's model 'digits-vqa', not 'dense'"):
        read_record(folder, "dense")


def test_progress_of_a_part():
    said = []
    shifted(lambda *step: said.append(step), 10, 30, "second")(2, 20, "loss 1")
    assert said == [(12, 30, "second: loss 1")]
    assert shifted(None, 0, 1, "") is None
