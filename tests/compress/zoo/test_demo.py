"""The demo's folder: complete, in the formats of a user's own, made once, and never over somebody else's model."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest

from calibration import open_set
from compress.errors import CompressError
from compress.factory import build_module
from compress.modelfile import read_model
from compress.zoo import demo
from compress.zoo.demo import QUICK, compare, evaluate_network, make_demo, shape_of, train_from_scratch
from compress.zoo.digits_questions import ANSWERS, questions, splits
from compress.zoo.digits_vqa import build

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "digits"
    steps = []
    record = make_demo(folder, quick=True, progress=lambda done, total, text: steps.append((done, total)))
    return folder, record, steps


def test_the_folder_is_complete(made):
    folder, record, _ = made
    names = {path.name for path in folder.iterdir()}
    assert names == {"model.pt", "train", "calibration", "validation", "recipe.yaml", "demo.json"}
    written = json.loads((folder / "demo.json").read_text())
    assert written["accuracy"] == record.accuracy
    assert set(written["baselines"]) == {"image-blind", "question-blind", "majority answer"}
    assert written["images"] == {"train": 1150, "calibration": 100, "validation": 547}
    assert set(written["files"]) >= {"model.pt", "train/dataset.json"}
    assert f"{record.accuracy:.2%}" in record.describe()


def test_progress_reaches_its_end(made):
    _, _, steps = made
    done, total = steps[-1]
    assert all(earlier <= later for (earlier, _), (later, _) in itertools.pairwise(steps))
    assert done <= total
    assert total == sum(max(1, int(epochs * 1150) // 10) for epochs in (QUICK.epochs, *QUICK.baseline_epochs.values()))


def test_the_model_file_is_the_network_that_was_scored(made):
    folder, record, _ = made
    model = read_model(folder / "model.pt")
    assert set(model.components) == {"image_encoder", "text_encoder", "fusion", "head"}
    assert [spec.modality for spec in model.inputs] == ["image", "text"]
    assert model.inputs[1].describe() == "int64[batch=1..64, length=4..12] within 0..39"
    network = build_module(model).eval()
    assert evaluate_network(network, folder / "validation") == pytest.approx(record.accuracy, abs=2 / 547)
    assert record.parameters == sum(p.numel() for p in network.parameters())


def test_data_sets_hold_right_answers_about_their_own_images(made):
    folder, _, _ = made
    inputs = read_model(folder / "model.pt").inputs
    table = {tuple(q.tokens): q.answers for q in questions()}
    for name, (images, digits) in splits().items():
        data = open_set(folder / name, inputs)
        assert len(data) == len(images) * QUICK.asked[name]
        feed = data.first(len(images))
        np.testing.assert_array_equal(feed["image"], images)
        for words, digit, answer in zip(feed["question"], digits, data.targets(), strict=False):
            assert table[tuple(words)][digit] == answer


def test_train_holds_deformed_copies(made):
    images, _ = splits()["train"]
    batches = open_set(made[0] / "train", read_model(made[0] / "model.pt").inputs).batches(64)
    pictures = np.concatenate([batch["image"] for batch in batches])
    np.testing.assert_array_equal(pictures[:1150], images)
    assert 0.02 < np.abs(pictures[1150:] - images).mean() < 0.3


def test_a_second_call_does_nothing(made):
    folder, record, _ = made
    (folder / "recipe.yaml").write_text((folder / "recipe.yaml").read_text() + "# mine\n")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = make_demo(folder, quick=True, progress=lambda *_: pytest.fail("trained again"))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert again.to_json() == record.to_json()


def test_a_killed_demo_is_made_whole_with_the_same_bytes(made, tmp_path, monkeypatch):
    folder = tmp_path / "digits"

    def killed(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_demo(folder, quick=True, progress=killed)
    assert json.loads((folder / "demo.json").read_text())["unfinished"]
    assert make_demo(folder, quick=True).files == made[1].files


def test_another_model_is_left_alone(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"mine")
    with pytest.raises(CompressError, match=r"holds a model\.pt that is not the demo's"):
        make_demo(tmp_path, quick=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


@pytest.mark.parametrize("text", ["not json", '{"format": "other"}', "[]"])
def test_another_record_is_left_alone(tmp_path, text):
    (tmp_path / "demo.json").write_text(text)
    with pytest.raises(CompressError, match=r"demo\.json (cannot be read|is not a record)"):
        make_demo(tmp_path, quick=True)


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CompressError, match=r"cannot be written to .*file"):
        make_demo(tmp_path / "file" / "demo", quick=True)


def test_comparisons_for_the_report(made, monkeypatch):
    from compress.recipe import read_recipe

    folder, record, _ = made
    monkeypatch.setattr(demo, "train_from_scratch", lambda kwargs, *, seconds, seed, progress: train_from_scratch(
        kwargs, seconds=0.2, seed=seed))  # fmt: skip
    rows = compare(read_model(folder / "model.pt"), read_recipe(folder / "recipe.yaml"))
    assert [row["name"] for row in rows] == [
        "trained small from scratch", "image-blind network", "question-blind network", "majority answer"
    ]  # fmt: skip
    assert rows[3]["accuracy"] == record.baselines["majority answer"]
    assert 0 <= rows[0]["accuracy"] <= 1


def test_shape_of_the_unpruned_is_its_own(made):
    assert shape_of(read_model(made[0] / "model.pt")) == {**QUICK.network}


def test_shape_of_the_pruned_builds_a_network_like_it(made):
    """Of its own width behind the image: all tensors but the stem's, whose channels the factory does not ask for."""
    from compress.prune import PruneConfig, prune

    model = read_model(made[0] / "model.pt")
    pruned = prune(model, open_set(made[0] / "calibration", model.inputs), PruneConfig(
        macs=0.6, structures=("width",), importance="magnitude")).model
    shape = shape_of(pruned)
    assert shape["image_width"] < shape["width"]
    fresh = build(**shape).state_dict()
    assert {name: value.shape for name, value in fresh.items() if "stem" not in name} == {
        name: value.shape for name, value in pruned.weights.items() if "stem" not in name}


def test_importing_the_demo_loads_no_torch():
    code = "import sys, compress.zoo.demo; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert len(ANSWERS) == 12
