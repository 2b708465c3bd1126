"""The reference models: their data are what they say, and one tiny training of each goes through the whole chain."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from small_recipe import BENCH

import compress
import runtimes
from calibration import open_set
from compress.errors import CompressError
from compress.evaluate import evaluate
from compress.factory import resolve
from compress.metrics import get_metric
from compress.modelfile import read_model
from compress.zoo import MODELS, REFERENCES, dense_classifier, fused_features, get_reference, make, patient
from compress.zoo.fitting import run
from compress.zoo.reference import compare, make_reference
from compress.zoo.samples import targets_of
from compress.zoo.tasks import constant_answer
from tests.compress.zoo.composed import engines_that_disagree

HERE = [name for name in REFERENCES if name != "spoken-command"]       # whose data has to be spoken: test_commands.py
COMPOSED = ("dual-encoder", "captioning", "video-caption")       # of several graphs, with tests of their own


@pytest.mark.parametrize("name", [name for name in HERE if name not in COMPOSED])
def test_each_is_what_the_table_says(name):
    reference = get_reference(name)
    assert reference.name == name
    rows, target = reference.samples()["train"][0]
    network = resolve(reference.factory, "factory")(**reference.kwargs).eval()
    outputs = run(network, {key: torch.from_numpy(array[:3]) for key, array in rows.items()})
    assert list(outputs) == list(reference.tasks)
    assert len(outputs) == 1 or target.shape[1:] == (len(outputs),)
    for key, task in reference.tasks.items():
        if task.loss == "cross-entropy":
            assert outputs[key].shape == (3, len(task.labels))
        else:
            assert outputs[key].shape == (3, 1)
        if task.loss == "binary cross-entropy":
            assert ((outputs[key] > 0) & (outputs[key] < 1)).all()


@pytest.mark.parametrize("name", HERE)
def test_no_sample_is_in_two_splits(name):
    """Nor is any value of the first input, which several samples of a split may share (questions about one image)."""
    splits = get_reference(name).samples()
    seen = [{row.tobytes() for rows, _ in parts for row in next(iter(rows.values()))} for parts in splits.values()]
    assert len(set.union(*seen)) == sum(map(len, seen))


def test_an_unknown_model_names_the_nearest(tmp_path):
    with pytest.raises(CompressError, match="no model 'feature-gate': did you mean 'features-gated'"):
        make("feature-gate", tmp_path)


def test_measurements_are_scikit_learns_standardised():
    data = load_breast_cancer()
    order = np.random.default_rng(0).permutation(569)
    train = data.data[order[:285]]
    ((rows, target),) = dense_classifier.samples()["validation"]
    np.testing.assert_array_equal(target, data.target[order[369:]] == 0)
    expected = (data.data[order[369:]] - train.mean(0)) / train.std(0)
    np.testing.assert_allclose(rows["cells"], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["text", "image"])
def test_one_modality_says_nothing_of_the_answer_and_much_of_its_topic(name):
    ((rows, target),), ((asked, answers),) = (fused_features.samples()[split] for split in ("train", "validation"))
    blind = LogisticRegression(C=1e-3, max_iter=50).fit(rows[name], target)
    assert abs(blind.score(asked[name], answers) - 0.5) < 0.06


def test_the_weighted_sum_by_hand():
    fusion = fused_features.WeightedSum(2)
    fusion.weight.data = torch.tensor([2.0, -1.0])
    assert fusion(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 5.0]])).tolist() == [[-1.0, -1.0]]


def test_the_gated_sum_by_hand():
    fusion = fused_features.GatedSum(1)
    fusion.gate.weight.data, fusion.gate.bias.data = torch.tensor([[0.0, 0.0]]), torch.tensor([float(np.log(3))])
    output = fusion(torch.tensor([[8.0]]), torch.tensor([[4.0]]))     # the gate is 3/4
    assert output.item() == pytest.approx(7.0)


def test_another_fusion_or_no_layer_is_refused():
    with pytest.raises(CompressError, match="fusion is 'product': expected one of concat, sum, gated"):
        fused_features.build(fusion="product")
    with pytest.raises(CompressError, match=r"hidden is \[8, 0\]"):
        dense_classifier.build(hidden=[8, 0])


def test_a_patients_record_holds_one_category_of_each_field():
    ((rows, target),) = patient.samples()["validation"]
    for column, field in zip(rows["record"].T, patient.RECORD, strict=True):
        assert {patient.CATEGORIES[index] for index in column} == set(field)
    assert 0.4 < target.mean() < 0.6
    spots = rows["scan"].reshape(len(target), -1).sum(1)
    assert np.corrcoef(spots, target)[0, 1] > 0.3       # a larger spot is a larger risk
    markers, smokes = rows["markers"][:, 2], rows["record"][:, 3] == patient.CATEGORIES.index("smokes")
    for group, sign in ((smokes, 1), (~smokes, -1)):    # the marker says the opposite in the two groups
        assert sign * np.corrcoef(markers[group], target[group])[0, 1] > 0.4


def test_importing_the_table_loads_no_torch():
    code = "import sys, compress.zoo; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert MODELS[0] == "digits-vqa"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo") / "dense"
    return folder, make("dense", folder, quick=True)


def test_a_second_call_does_nothing(made):
    folder, record = made
    assert make("dense", folder, quick=True, progress=lambda *_: pytest.fail("trained again")) == record
    written = json.loads((folder / "demo.json").read_text())
    assert written["model"] == "dense"
    assert set(written["scores"]) == {"accuracy", "precision", "recall", "f1"}
    assert record.value == record.scores["accuracy"]
    assert f"dense: accuracy {record.value:.2%} on 200 samples" in record.describe()


def test_another_models_folder_is_left_alone(made):
    with pytest.raises(CompressError, match="holds the demo's model 'dense', not 'patient'"):
        make("patient", made[0], quick=True)
    with pytest.raises(CompressError, match="holds the demo's model 'dense', not 'digits-vqa'"):
        make("digits-vqa", made[0], quick=True)


def test_comparisons_need_the_folder(made, tmp_path):
    from compress.recipe import read_recipe

    model, recipe = read_model(made[0] / "model.pt"), read_recipe(made[0] / "recipe.yaml")
    (row,) = compare(model, recipe)
    majority = (dense_classifier.samples()["validation"][0][1] == 0).mean()
    assert (row["name"], row["accuracy"]) == ("majority answer", pytest.approx(majority))
    with pytest.raises(CompressError, match="holds no finished demo"):
        compare(model, dataclasses.replace(recipe, path=tmp_path / "recipe.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in HERE if name not in COMPOSED])
def test_the_whole_chain(name, tmp_path):
    """Prune, distil, quantize, export for every target, parity, bench, bundle; then the bundle answers."""
    reference = get_reference(name)
    splits = {split: _fewer(parts, 600) for split, parts in reference.samples().items()}
    small = dataclasses.replace(reference, samples=lambda: splits, fit=dataclasses.replace(reference.fit, epochs=4))
    folder = tmp_path / name
    record = make_reference(small, folder)
    names = list(reference.modalities)
    expected = [f"{key} alone" for key in names] if len(names) > 1 else []
    assert list(record.baselines) == [*expected, *reference.blinded, "majority answer"]

    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    for stage in recipe["stages"]:
        if "prune" in stage:
            stage["prune"]["round_to"] = 8      # so small a network has little left in the steps of all targets
        if "distill" in stage:
            stage["distill"]["epochs"] = 1
        if "bench" in stage:
            stage["bench"] = BENCH
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    result = compress.run(folder / "recipe.yaml")
    assert result.bundle is not None
    assert engines_that_disagree(result.record) == []
    export = next(stage for stage in result.record["stages"] if stage["stage"] == "export")
    built = export["summary"]
    missing = [entry["reason"] for entry in built["not_built"] if entry["target"] != "rtx"]
    assert missing == []

    model = read_model(folder / "model.pt")
    data = open_set(folder / "validation", model.inputs)
    target, metric = targets_of(splits["validation"]), get_metric(reference.metric)
    guessed = metric.per_sample(constant_answer(target, reference.tasks, len(target)), target).mean()
    for backend in ("openvino-cpu", "onnxruntime-cpu"):
        with runtimes.load(result.bundle, target=backend, self_test=True) as session:
            assert evaluate(session.run, data, metric).value >= guessed - 0.1       # of so little training
            said = {key: value[:5] for key, value in session.run(data.first(64)).items()}
            answers = session.processor.answer(said)
        for key, task in reference.tasks.items():
            assert [_answer(one) for one in answers[key]] == [_expected(value, task) for value in said[key]]


def _fewer(parts, count):
    """About ``count`` samples, of every shape as many."""
    each = -(-count // len(parts))
    return [({key: array[:each] for key, array in rows.items()}, target[:each]) for rows, target in parts]


def _answer(answer):
    return answer["label"] if isinstance(answer, dict) and "label" in answer else pytest.approx(_number(answer))


def _number(answer):
    while isinstance(answer, list | dict):
        (answer,) = answer.values() if isinstance(answer, dict) else answer
    return answer


def _expected(value, task):
    if task.loss == "mean squared error":
        return value.item()
    return task.labels[int(value[0] >= 0.5) if task.loss == "binary cross-entropy" else int(value.argmax())]


def test_the_command_names_the_models_and_refuses_others(tmp_path):
    from click.testing import CliRunner

    from compress.cli import cli

    said = CliRunner().invoke(cli, ["demo", "--help"]).stdout
    said = "".join(said.split())        # lines break at hyphens
    assert all(name in said for name in MODELS)
    result = CliRunner().invoke(cli, ["demo", str(tmp_path / "x"), "--model", "dens"])
    assert (result.exit_code, (tmp_path / "x").exists()) == (2, False)
    assert "did you mean 'dense'" in result.stderr
