"""Several processes, as torchrun starts them, against one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from calibration import write
from compress.distill.workers import Workers, first_of_torchrun, workers
from compress.modelfile import read_model, write_model

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def folder(build, perturb, feeds, tmp_path):
    teacher = build()
    data = feeds(teacher, count=256)
    feed = next(data.batches(256))
    write(tmp_path / "train", feed, target=data.targets())
    write_model(teacher, tmp_path / "teacher.pt")
    write_model(perturb(teacher, 0.3), tmp_path / "student.pt")
    return tmp_path


def distilled(folder, name, *more, processes=1, check=True):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [
        sys.executable, *(launcher if processes > 1 else ()), "-m", "compress", "distill", folder / "student.pt",
        "--teacher", folder / "teacher.pt", "--data", folder / "train", "--validation", folder / "train",
        "--learning-rate", "2e-2", "--epochs", "10", "--batch-size", "32", "--output", folder / name, "--json", *more,
    ]  # fmt: skip
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=ENVIRONMENT, check=check)


@pytest.mark.slow
def test_two_processes_train_as_one_does(folder):
    """Each takes half of every batch: another order of samples, as much learning, one model file and one record."""
    alone = json.loads(distilled(folder, "alone.pt").stdout)
    result = distilled(folder, "both.pt", "--scratch", folder / "scratch", processes=2)
    both = json.loads(result.stdout)                # of one process
    assert both["before"] == alone["before"]
    assert len(both["history"]) == 10
    assert both["history"][-1]["loss"] < both["history"][0]["loss"] / 4
    np.testing.assert_allclose(both["history"][-1]["loss"], alone["history"][-1]["loss"], rtol=0.5)
    again = json.loads(distilled(folder, "again.pt", "--scratch", folder / "scratch", processes=2).stdout)
    assert again["history"] == both["history"]      # a finished run, seconds and all
    first, second = (read_model(folder / name).weights for name in ("both.pt", "again.pt"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_what_is_wrong_ends_all_processes(folder):
    result = distilled(folder, "none.pt", "--learning-rate", "1e30", "--clip-norm", "0", processes=2, check=False)
    assert result.returncode != 0
    assert "distilling model 'tiny' stopped at step" in result.stderr
    assert not (folder / "none.pt").exists()


def test_alone_everything_is_its_own():
    with workers() as crew:
        assert crew == Workers(rank=0, count=1)
    assert crew.first
    assert crew.told({"a": 1}) == {"a": 1}
    assert crew.mean([1.0, 2.0]) == [1.0, 2.0]
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.full((2,), 3.0)
    crew.join([weight])
    crew.same([weight])
    assert weight.grad.tolist() == [3.0, 3.0]


MEANS = """
import torch
from torch import nn
from compress.distill.workers import workers

with workers() as crew:
    values = [torch.full((2, 3), float(crew.rank + 5)), torch.zeros(1), torch.ones(2)]
    weights = [nn.Parameter(value) for value in values]
    weights[0].grad = torch.arange(6.0).view(2, 3) * (1 + 2 * crew.rank)        # once and thrice: the mean is twice
    weights[2].grad = torch.full((2,), float(crew.rank))
    crew.join(weights)
    assert torch.equal(weights[0].grad, 2 * torch.arange(6.0).view(2, 3)) and weights[1].grad is None
    assert weights[2].grad.tolist() == [0.5, 0.5]
    crew.same(weights)
    assert (weights[0] == 5).all()
    assert crew.told({"rank": crew.rank}) == {"rank": 0}
    assert crew.mean([float(crew.rank), 4.0]) == [0.5, 4.0]
    assert crew.first == (crew.rank == 0) and crew.count == 2
"""


@pytest.mark.slow
def test_means_over_two_processes(tmp_path):
    (tmp_path / "means.py").write_text(MEANS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "means.py"]
    subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, check=True, capture_output=True)


def test_the_first_of_torchrun_is_told_by_its_rank(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert first_of_torchrun()
    monkeypatch.setenv("RANK", "1")
    assert not first_of_torchrun()


def test_the_callers_own_processes_are_used(monkeypatch, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        with workers() as crew:
            assert crew == Workers(rank=0, count=1)
        assert torch.distributed.is_initialized()       # and left to the caller
    finally:
        torch.distributed.destroy_process_group()
