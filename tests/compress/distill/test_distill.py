import dataclasses
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from calibration import open_set
from compress.distill import DistillConfig, distill, loop
from compress.distill import teacher as teacher_file
from compress.distill.losses import divergence
from compress.errors import CompressError
from compress.metrics import get_metric
from compress.model import Input
from compress.modelfile import read_model, write_model
from compress.program import run_program
from compress.saving import export_model
from compress.weights import with_weights
from runtimes.spec import Dim

QUICK = DistillConfig(epochs=6, batch_size=32, learning_rate=5e-3)
LONG = DistillConfig(epochs=20, batch_size=32, learning_rate=2e-2)


def outputs(model, data):
    return np.concatenate([run_program(model, feed)["output"] for feed in data.batches(50)])


def same_weights(left, right):
    return all(torch.equal(left.weights[key], right.weights[key]) for key in left.weights)


def test_a_copy_of_the_teacher_stays_where_it_is(build, feeds):
    teacher = build()
    data = feeds(teacher, count=64)  # full batches of 32: the remembered answers are bit for bit the student's
    result = distill(teacher, teacher, data, config=QUICK)
    assert [entry["loss"] for entry in result.history] == pytest.approx([0.0] * 6, abs=1e-9)
    for key, value in teacher.weights.items():
        np.testing.assert_allclose(result.model.weights[key], value, atol=1e-6)


def test_a_perturbed_student_recovers_and_the_best_epoch_is_kept(build, feeds, perturb):
    teacher = build()
    student = perturb(teacher, 0.3)
    data, validation = feeds(teacher, seed=1), feeds(teacher, seed=2)
    told = []
    result = distill(
        student, teacher, data, validation=validation, metric=get_metric("accuracy"), config=LONG,
        progress=lambda *event: told.append(event),
    )  # fmt: skip
    reference = outputs(teacher, validation)
    before, after = (
        divergence(torch.from_numpy(outputs(model, validation)), torch.from_numpy(reference), 1.0)
        for model in (student, result.model)
    )
    assert after < before / 20
    agreement = float((outputs(result.model, validation).argmax(-1) == reference.argmax(-1)).mean())
    assert result.after == agreement  # the labels are the teacher's answers
    assert result.before == float((outputs(student, validation).argmax(-1) == reference.argmax(-1)).mean())
    assert result.after == max(result.before, *(entry["metric"] for entry in result.history))
    assert result.history[result.kept - 1]["metric"] == result.after
    assert result.features == ("seen", "heard")
    assert [entry["epoch"] for entry in result.history] == list(range(1, 21))
    assert result.history[-1]["loss"] < result.history[0]["loss"] / 20
    assert told[-1][:2] == (140, 140)  # 7 batches of up to 32 from 200 samples, 20 times
    assert "epoch 20 of 20, loss " in told[-1][2]
    assert "metric " in told[-1][2]
    record = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert (record["before"], record["after"], record["kept_epoch"]) == (result.before, result.after, result.kept)


def test_labels_alone_can_teach(build, feeds):
    teacher, student = build(0), build(1)
    data = feeds(teacher)
    config = dataclasses.replace(QUICK, logit_weight=0.0, feature_weight=0.0, label_weight=1.0, epochs=20)
    result = distill(student, teacher, data, validation=data, metric=get_metric("accuracy"), config=config)
    assert result.after > 0.9 > result.before


def test_the_student_is_left_as_it_was_and_the_result_is_a_whole_model(build, feeds, perturb, tmp_path):
    teacher = build()
    student = perturb(teacher, 0.3)
    write_model(student, tmp_path / "before.pt")
    result = distill(student, teacher, feeds(teacher), config=dataclasses.replace(QUICK, epochs=1))
    write_model(student, tmp_path / "after.pt")
    assert (tmp_path / "before.pt").read_bytes() == (tmp_path / "after.pt").read_bytes()
    assert not same_weights(student, result.model)
    write_model(result.model, tmp_path / "result.pt")
    feed = {"picture": np.ones((2, 6), np.float32), "sound": np.ones((2, 4), np.float32)}
    read = run_program(read_model(tmp_path / "result.pt"), feed)["output"]
    np.testing.assert_array_equal(read, run_program(result.model, feed)["output"])


def test_a_student_that_only_gets_worse_is_returned_as_it_was(build, feeds):
    teacher = build(0)
    result = distill(
        teacher, build(1), feeds(teacher), validation=feeds(teacher, seed=2), metric=get_metric("accuracy"),
        config=dataclasses.replace(QUICK, epochs=2),
    )  # fmt: skip
    assert (result.before, result.after, result.kept) == (1.0, 1.0, 0)
    assert same_weights(result.model, teacher)


def test_remembered_answers_teach_as_computed_ones(build, feeds, perturb, monkeypatch):
    teacher = build()
    student, data = perturb(teacher, 0.3), feeds(teacher)
    remembered = distill(student, teacher, data, config=QUICK)
    monkeypatch.setattr(teacher_file, "CACHE_BYTES", 0)
    computed = distill(student, teacher, data, config=QUICK)
    for key, value in computed.model.weights.items():
        np.testing.assert_allclose(remembered.model.weights[key], value, atol=1e-4)


def test_tied_weights_stay_tied(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(6, 4)
            self.head = nn.Linear(4, 6, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, ids):
            return self.head(self.embedding(ids).mean(1))

    torch.manual_seed(0)
    ids = np.random.default_rng(0).integers(0, 6, (64, 5))
    inputs = {"ids": Input(modality="text", dims=("batch", Dim("length", 1, 5, 8)))}
    write_model(export_model(Tied(), name="tied", example={"ids": ids[:1]}, inputs=inputs), tmp_path / "tied.pt")
    teacher = read_model(tmp_path / "tied.pt")  # tied by storage, not by identity
    student = with_weights(teacher, {"head.weight": teacher.weights["head.weight"] * 0.5})
    assert student.weights["embedding.weight"] is student.weights["head.weight"]
    data = open_set([{"ids": ids[:40]}, {"ids": ids[40:, :3]}], teacher.inputs)
    result = distill(student, teacher, data, config=LONG)
    assert result.model.weights["embedding.weight"] is result.model.weights["head.weight"]
    state = result.model.graph.program.state_dict
    assert state["embedding.weight"] is state["head.weight"]
    assert result.history[-1]["loss"] < result.history[0]["loss"] / 5


def test_a_narrower_component_learns_through_a_projection(build, feeds):
    teacher, student = build(0), build(1, width=4)
    data = feeds(teacher)
    result = distill(student, teacher, data, config=LONG)
    assert result.features == result.projected == ("seen", "heard")
    assert result.skipped == ()
    assert result.history[-1]["feature_loss"] < result.history[0]["feature_loss"] / 3
    assert {name: value.shape for name, value in result.model.weights.items()} == {
        name: value.shape for name, value in student.weights.items()
    }
    assert result.to_json()["projected"] == ["seen", "heard"]


def test_relations_need_no_projection(build, feeds):
    teacher = build(0)
    student = build(1, width=4)
    config = dataclasses.replace(QUICK, epochs=1, feature_weight=0.0, relation_weight=1.0)
    result = distill(student, teacher, feeds(teacher), config=config)
    assert (result.features, result.projected, result.skipped) == (("seen", "heard"), (), ())
    assert set(result.history[0]) == {"epoch", "loss", "logit_loss", "relation_loss", "metric", "seconds"}


def test_nothing_to_compare_is_refused(build, feeds):
    teacher = build(0)
    student = dataclasses.replace(teacher, components={"head": "head"})
    with pytest.raises(CompressError, match=r"have nothing in common that is compared .*seen: the student hands on 0"):
        distill(student, teacher, feeds(teacher), config=DistillConfig(logit_weight=0.0))


def test_teacher_with_other_answers_is_refused(build, feeds):
    student = build(0)
    message = r"student 'tiny' and teacher 'wide' differ in output 'output'.*, 3\].*, 5\]"
    with pytest.raises(CompressError, match=message):
        distill(student, build(0, classes=5, name="wide"), feeds(student))


def test_teacher_with_other_inputs_is_refused(build, feeds):
    class Other(nn.Linear):
        pass

    student = build(0)
    other = export_model(Other(6, 3), name="other", example={"input": np.zeros((1, 6), np.float32)})
    message = r"'tiny' and teacher 'other' have different inputs, \['picture', 'sound'\] and \['input'\]"
    with pytest.raises(CompressError, match=message):
        distill(student, other, feeds(student))


def test_class_scores_of_one_class_are_refused(build, feeds):
    student = build(0, classes=1)
    with pytest.raises(CompressError, match=r"output 'output' of 'tiny' is one number, .*: use loss 'mse' or 'auto'"):
        distill(student, student, feeds(student), config=DistillConfig(loss="kl"))
    assert distill(student, student, feeds(student)).outputs == {"output": "numbers"}


def test_regression_learns_by_mse(build, feeds, perturb):
    teacher = build(0, classes=1)
    data = feeds(teacher)
    result = distill(perturb(teacher, 0.2), teacher, data, config=dataclasses.replace(LONG, loss="mse"))
    assert result.history[-1]["logit_loss"] < result.history[0]["logit_loss"] / 20


def test_a_model_without_real_answers_is_refused():
    class Argmax(nn.Linear):
        def forward(self, input):
            return super().forward(input).argmax(-1)

    example = {"input": np.zeros((1, 6), np.float32)}
    model = export_model(Argmax(6, 3), name="argmax", example=example)
    with pytest.raises(CompressError, match="model 'argmax' has no output of real numbers"):
        distill(model, model, open_set([example], model.inputs))


def test_metric_without_validation_is_refused(build, feeds):
    student = build(0)
    with pytest.raises(CompressError, match="validation and metric go together"):
        distill(student, student, feeds(student), metric=get_metric("accuracy"))


def test_sets_without_labels_are_refused_where_labels_are_read(build):
    student = build(0)
    feed = {"picture": np.ones((2, 6), np.float32), "sound": np.ones((2, 4), np.float32)}
    data = open_set([feed], student.inputs, name="bare")
    with pytest.raises(CompressError, match="train set 'bare' has no labels"):
        distill(student, student, data, config=DistillConfig(label_weight=1.0))
    with pytest.raises(CompressError, match="data set 'bare' has no targets"):
        distill(student, student, data, validation=data, metric=get_metric("accuracy"))


def test_a_set_of_another_model_is_refused(build, feeds):
    student = build(0)
    specs = [dataclasses.replace(spec, name=f"my_{spec.name}") for spec in student.inputs]
    feed = {"my_picture": np.ones((2, 6), np.float32), "my_sound": np.ones((2, 4), np.float32)}
    with pytest.raises(CompressError, match=r"data set 'strange' holds the inputs .*my_picture.*, model 'tiny' takes"):
        distill(student, student, open_set([feed], specs, name="strange"))


def test_labels_of_several_outputs_are_named_by_them(feeds, build):
    class Two(nn.Linear):
        def forward(self, input):
            scores = super().forward(input)
            return {"scores": scores, "twice": scores * 2}

    example = {"input": np.zeros((1, 6), np.float32)}
    model = export_model(Two(6, 3), name="two", example=example)
    data = open_set([{**example, "target": np.zeros(1, np.int64)}], model.inputs)
    with pytest.raises(CompressError, match=r"\['target'\], and the model the outputs \['scores', 'twice'\]: write"):
        distill(model, model, data, config=DistillConfig(label_weight=1.0))


def test_a_loss_that_is_not_finite_stops_and_names_the_step(build, feeds, perturb, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    teacher = build()
    student, data = perturb(teacher, 0.3), feeds(teacher)
    config = dataclasses.replace(QUICK, learning_rate=1e30, loss="mse", feature_weight=0.0, clip_norm=0.0)
    with pytest.raises(CompressError, match=r"distilling model 'tiny' stopped at step \d+ of 42: .*checkpoint is"):
        distill(student, teacher, data, config=config, scratch=tmp_path)
    held = (tmp_path / "distill.checkpoint").read_bytes().partition(b"\n")[2]
    saved = torch.load(io.BytesIO(held), weights_only=True)["state"]
    assert all(torch.isfinite(value).all() for value in saved["module"].values())


def test_the_public_module_loads_no_torch():
    code = "import sys, compress.distill; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
