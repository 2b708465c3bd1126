import dataclasses
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from calibration import open_set, write
from compress.distill import DistillConfig, distill
from compress.distill import teacher as teacher_file
from compress.distill.checkpoint import Checkpoint
from compress.metrics import get_metric
from compress.modelfile import read_model, write_model
from compress.quantize import quantize
from runtimes.hashing import bytes_digest

ROOT = Path(__file__).parents[3]
CONFIG = DistillConfig(epochs=4, batch_size=16, learning_rate=3e-3)

FULL = DistillConfig(epochs=4, batch_size=8, learning_rate=3e-3, accumulate=2, average=0.9, patience=3,
                     relation_weight=0.5, label_weight=0.5, schedule="linear")  # fmt: skip
CONFIGS = {"plain": CONFIG, "full": FULL}

SCRIPT = """
import sys, torch
from pathlib import Path
from calibration import open_set
from compress.distill import DistillConfig, distill, loop, teacher
from compress.metrics import get_metric
from compress.modelfile import read_model
from tests.compress.distill.test_resume import CONFIGS

if sys.argv[3] == "disk":
    teacher.CACHE_BYTES = teacher.OPERATIONS_PER_BYTE = 0
torch.set_num_threads(1)
loop.CHECKPOINT_SECONDS, loop.CHECKPOINT_SHARE = 0.0, 1e9       # behind every step
folder = Path(sys.argv[1])
student, original = read_model(folder / "student.pt"), read_model(folder / "teacher.pt")
data = open_set(folder / "train", student.inputs)
distill(student, original, data, validation=data, metric=get_metric("accuracy"),
        config=CONFIGS[sys.argv[2]], scratch=folder / "scratch",
        progress=lambda done, total, text: print(done, flush=True))
"""


@pytest.fixture
def folder(build, perturb, feeds, tmp_path):
    teacher = build()
    rng = np.random.default_rng(0)
    data = feeds(teacher, count=200)
    samples = {"picture": rng.normal(size=(200, 6)).astype("f4"), "sound": rng.normal(size=(200, 4)).astype("f4")}
    write(tmp_path / "train", samples, target=data.targets())
    write_model(teacher, tmp_path / "teacher.pt")
    write_model(perturb(teacher, 0.3), tmp_path / "student.pt")
    return tmp_path


def run(folder, config=CONFIG, **arguments):
    student, teacher = read_model(folder / "student.pt"), read_model(folder / "teacher.pt")
    data = open_set(folder / "train", student.inputs)
    return distill(
        student, teacher, data, validation=data, metric=get_metric("accuracy"), config=config, **arguments
    )  # fmt: skip


def kill_after(folder, step, config="plain", remembers="memory"):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", SCRIPT, str(folder), config, remembers]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            if int(line) >= step:
                process.kill()
                break
    return process.wait()


def assert_same_run(result, expected):
    for key, value in expected.model.weights.items():
        assert torch.equal(result.model.weights[key], value), key
    timeless = [[{k: v for k, v in e.items() if k != "seconds"} for e in r.history] for r in (result, expected)]
    assert timeless[0] == timeless[1]
    assert (result.before, result.after, result.kept) == (expected.before, expected.after, expected.kept)


@pytest.mark.slow
@pytest.mark.parametrize("quantized", [False, True])
def test_a_run_killed_inside_an_epoch_continues_to_the_same_weights(folder, quantized):
    if quantized:
        student = read_model(folder / "student.pt")
        data = open_set(folder / "train", student.inputs)
        write_model(quantize(student, data, scheme="x86-vnni").model, folder / "student.pt")
    expected = run(folder)
    assert kill_after(folder, step=18) < 0  # 13 steps an epoch: inside the second
    done = []
    result = run(folder, scratch=folder / "scratch", progress=lambda step, total, text: done.append(step))
    assert 18 <= next(step for step in done if step) < 52
    assert_same_run(result, expected)


@pytest.mark.slow
def test_everything_that_a_run_carries_is_in_its_checkpoint(folder, build, monkeypatch):
    """An average, projections, gradients of two batches a step, the wait for a better metric, answers on disk."""
    monkeypatch.setattr(teacher_file, "CACHE_BYTES", 0)
    monkeypatch.setattr(teacher_file, "OPERATIONS_PER_BYTE", 0.0)
    write_model(build(1, width=4), folder / "student.pt")
    expected = run(folder, config=FULL)
    assert expected.projected == ("seen", "heard")
    assert kill_after(folder, 36, "full", "disk") < 0           # 25 steps an epoch
    assert (folder / "scratch/teacher-0/answers/answers.json").is_file()
    done, texts = [], []
    result = run(folder, config=FULL, scratch=folder / "scratch",
                 progress=lambda step, total, text: (done.append(step), texts.append(text)))  # fmt: skip
    assert 36 <= done[0] < 100
    assert not any("teacher's answers" in text for text in texts)       # which were there
    assert_same_run(result, expected)


def test_a_finished_run_is_not_repeated(folder):
    first = run(folder, scratch=folder / "scratch")
    done = []
    again = run(folder, scratch=folder / "scratch", progress=lambda step, total, text: done.append(step))
    assert_same_run(again, first)
    assert max(done) == 0  # the teacher's answers alone


def test_a_checkpoint_of_other_settings_is_ignored(folder):
    other = dataclasses.replace(CONFIG, seed=1)
    expected = run(folder, config=other)
    run(folder, scratch=folder / "scratch")
    assert_same_run(run(folder, config=other, scratch=folder / "scratch"), expected)


def test_a_checkpoint_of_another_teacher_is_ignored(folder, build):
    run(folder, scratch=folder / "scratch")
    write_model(build(7), folder / "teacher.pt")
    expected = run(folder)
    assert_same_run(run(folder, scratch=folder / "scratch"), expected)


def test_a_damaged_checkpoint_costs_time_alone(folder):
    expected = run(folder, scratch=folder / "scratch")
    path = folder / "scratch" / "distill.checkpoint"
    path.write_bytes(path.read_bytes()[:1000])
    assert_same_run(run(folder, scratch=folder / "scratch"), expected)


def test_a_checkpoint_with_a_flipped_bit_is_no_checkpoint(tmp_path):
    """torch.load takes another weight as it is."""
    checkpoint = Checkpoint(tmp_path, "key")
    checkpoint.write({"weight": torch.ones(1000)})
    whole = checkpoint.path.read_bytes()
    place = whole.index(torch.ones(8).numpy().tobytes())
    found = checkpoint.read()
    assert found is not None
    assert torch.equal(found["weight"], torch.ones(1000))
    for harmed in (whole[:place] + b"\x01" + whole[place + 1:], whole[:-100], whole[65:], b"", b"\x80", b"\n\n"):
        checkpoint.path.write_bytes(harmed)
        assert checkpoint.read() is None


def test_a_checkpoint_that_is_a_pickle_of_code_is_ignored_and_not_run(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    code = pickle.dumps(Hostile(), protocol=2)
    (tmp_path / "distill.checkpoint").write_bytes(f"{bytes_digest(code)}\n".encode() + code)
    assert Checkpoint(tmp_path, "key").read() is None
    assert not (tmp_path / "ran").exists()
