"""Processing on the host: read from JSON, tried on the model, kept in its file, carried by its bundles."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from PIL import Image
from tokenizers import models, pre_tokenizers
from torch import nn

import compress
import runtimes
from compress.bundle import bundle
from compress.errors import CompressError
from compress.export import export
from compress.model import Input, Model
from compress.modelfile import write_model
from compress.processing import read_processing, section_of
from compress.targets import targets
from compress.zoo import digits_questions
from runtimes.bundle import Bundle
from runtimes.errors import FeedError
from runtimes.processing.outputs import ClassesOutput
from runtimes.spec import Dim

ROOT = Path(__file__).parents[2]
ANSWERS = ("no", "yes", "maybe")
IMAGE = {"kind": "image", "from": "photo", "steps": [
    {"op": "resize", "size": [4, 4], "resample": "box"}, {"op": "rescale"}]}
TEXT = {"kind": "text", "from": "question", "tokenizer": "tokenizer.json", "pad_id": 0}


class Asked(nn.Module):
    """A picture and word ids to three logits."""

    def __init__(self) -> None:
        super().__init__()
        self.eye, self.words, self.head = nn.Conv2d(3, 4, 3), nn.Embedding(6, 4), nn.Linear(4, 3)

    def forward(self, image: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        seen: torch.Tensor = self.eye(image).mean((2, 3)) + self.words(ids).sum(1)
        answer: torch.Tensor = self.head(seen)
        return answer


def write_tokenizer(folder: Path) -> None:
    words = {"[pad]": 0, "[unk]": 1, "is": 2, "it": 3, "red": 4, "?": 5}
    made = tokenizers.Tokenizer(models.WordLevel(words, unk_token="[unk]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(folder / "tokenizer.json"))


def save(folder: Path, processing: Any, **changes: Any) -> Model:
    torch.manual_seed(0)
    example = {"image": np.zeros((2, 3, 4, 4), np.float32), "ids": np.ones((2, 4), np.int64)}
    settings: dict[str, Any] = {
        "inputs": {"ids": Input(modality="text", dims=("batch", Dim("length", 2, 4, 8)))},
        "labels": {"output": ANSWERS}, **changes,
    }
    return compress.save(Asked(), folder / "model.pt", example=example, processing=processing, **settings)


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A record whose tokenizer lies in the current folder."""
    monkeypatch.chdir(tmp_path)
    write_tokenizer(tmp_path)
    return {"inputs": {"image": dict(IMAGE), "ids": dict(TEXT)}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Bundle]:
    """The model read back from its file, and its bundle."""
    folder = tmp_path_factory.mktemp("made")
    write_tokenizer(folder)
    (folder / "processing.json").write_text(json.dumps({"version": 1, "inputs": {"image": IMAGE, "ids": TEXT}}))
    save(folder, folder / "processing.json")
    model = compress.load(folder / "model.pt")
    engine = export(model, targets()["onnxruntime-cpu"], folder / "engine")
    return model, bundle(model, {"onnxruntime-cpu": engine}, model.example, folder / "bundle")


def test_a_picture_and_a_string_in_a_label_out(made: tuple[Model, Bundle]) -> None:
    """Beside the same model in torch, on inputs made by Pillow and by hand."""
    model, folder = made
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    small = np.asarray(Image.fromarray(pixels).resize((4, 4), Image.Resampling.BOX)) / np.float32(255)
    feed = {"image": torch.from_numpy(small.transpose(2, 0, 1)[None]), "ids": torch.tensor([[2, 3, 4, 5]])}
    expected = model.graph.program.module()(**feed)[0].softmax(-1).detach().numpy()
    with runtimes.load(folder, self_test=True) as session:
        for photo in (pixels, Image.fromarray(pixels)):
            answer = session.ask({"photo": photo, "question": "is it red?"})["output"]
            assert answer["label"] == ANSWERS[expected.argmax()]
            assert answer["score"] == pytest.approx(expected.max(), abs=1e-5)
        both = session.ask({"photo": [pixels] * 2, "question": ["is it red?", "is it blue"]})["output"]
        assert both[0] == pytest.approx(answer)
        with pytest.raises(FeedError, match=r"raw input 'question' .* has 9 tokens, more than 8"):
            session.ask({"photo": pixels, "question": "is " * 9})


def test_the_bundle_lists_the_tokenizer_and_its_every_byte_counts(made: tuple[Model, Bundle], tmp_path: Path) -> None:
    import shutil

    _, folder = made
    assert "processing/tokenizer.json" in folder.files
    assert folder.processing is not None
    assert folder.processing.outputs == {"output": ClassesOutput(labels=ANSWERS)}
    copy = Path(shutil.copytree(folder.path, tmp_path / "copy"))
    read = runtimes.read_bundle(copy)
    path = copy / "processing/tokenizer.json"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(runtimes.RuntimesError, match=r"tokenizer\.json was changed since the bundle was read"):
        runtimes.load(read, "onnxruntime").ask({"photo": "a.png", "question": "is it"})
    with pytest.raises(runtimes.RuntimesError, match=r"tokenizer\.json is not the file"):
        runtimes.read_bundle(copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["processing"]["inputs"]["ids"]["tokenizer"] = "other.json"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(runtimes.RuntimesError, match=r"processing/other\.json is not one of the files listed"):
        runtimes.read_bundle(copy)


def test_the_device_app_takes_a_picture_and_a_question(made: tuple[Model, Bundle], tmp_path: Path) -> None:
    Image.new("RGB", (9, 9), "red").save(tmp_path / "a.png")
    done = subprocess.run(
        [sys.executable, ROOT / "examples/device_app.py", made[1].path, "--threads", "1",
         "--ask", f"photo={tmp_path / 'a.png'}", "--ask", "question=is it red ?"],
        capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith(tuple(f"output: {label} (" for label in ANSWERS))
    assert done.stdout.splitlines()[1].endswith("ms, pre- and post-processing included)")


def test_the_command_takes_another_record(made: tuple[Model, Bundle], tmp_path: Path) -> None:
    from click.testing import CliRunner

    from calibration import write
    from compress.commands.bundle import create

    model, _ = made
    write(tmp_path / "data", model.example, target=np.zeros(2, np.int64))
    record = {"version": 1, "inputs": {}, "outputs": {"output": {"kind": "classes", "top": 2}}}
    (tmp_path / "p.json").write_text(json.dumps(record))
    write_model(model, tmp_path / "model.pt")
    done = CliRunner().invoke(create, [
        str(tmp_path / "model.pt"), "--target", "onnxruntime-cpu", "--data", str(tmp_path / "data"),
        "--processing", str(tmp_path / "p.json"), "-o", str(tmp_path / "bundle")])
    assert done.exit_code == 0, done.output
    processing = runtimes.read_bundle(tmp_path / "bundle").processing
    assert processing is not None
    assert processing.outputs == {"output": ClassesOutput(labels=ANSWERS, top=2)}
    assert not processing.inputs


def test_the_file_holds_it_and_the_same_bytes_each_time(record: dict[str, Any], tmp_path: Path) -> None:
    model = save(tmp_path, record)
    assert model.processing is not None
    assert model.processing.files == {"tokenizer.json": (tmp_path / "tokenizer.json").read_bytes()}
    before = (tmp_path / "model.pt").read_bytes()
    assert compress.load(tmp_path / "model.pt").processing == model.processing
    save(tmp_path, record)
    assert (tmp_path / "model.pt").read_bytes() == before


def test_a_file_of_version_1_is_read(tmp_path: Path) -> None:
    """As the first release wrote it: no processing, no chain, and version 1."""
    save(tmp_path, None)
    with zipfile.ZipFile(tmp_path / "model.pt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    header = json.loads(members["model.json"])
    assert (header["version"], header.pop("processing"), header.pop("chain")) == (4, None, None)
    members["model.json"] = json.dumps({**header, "version": 1}).encode()
    with zipfile.ZipFile(tmp_path / "old.pt", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    old = compress.load(tmp_path / "old.pt")
    assert (old.labels, old.processing) == ({"output": ANSWERS}, None)


def test_a_damaged_section_in_the_file_is_refused(record: dict[str, Any], tmp_path: Path) -> None:
    save(tmp_path, record)
    with zipfile.ZipFile(tmp_path / "model.pt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    header = json.loads(members["model.json"])
    for change, message in (({"kind": "shell"}, "'kind' is 'shell'"), ({"tokenizer": "b.json"}, "do not agree on")):
        changed = json.loads(json.dumps(header))
        changed["processing"]["inputs"]["ids"].update(change)
        with zipfile.ZipFile(tmp_path / "changed.pt", "w") as archive:
            for name, data in {**members, "model.json": json.dumps(changed).encode()}.items():
                archive.writestr(name, data)
        with pytest.raises(CompressError, match=message):
            compress.load(tmp_path / "changed.pt")


def test_pruning_keeps_it(tmp_path: Path) -> None:
    import importlib

    networks = importlib.import_module("compress.zoo.digits_vqa")
    from calibration import open_set, write
    from compress.zoo.demo import QUICK

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    data = {"image": rng.random((8, 1, 8, 8), dtype=np.float32), "question": rng.integers(1, 30, (8, 12))}
    model = compress.save(
        networks.build(**QUICK.network), tmp_path / "model.pt", example={k: v[:2] for k, v in data.items()},
        inputs={"question": Input(modality="text", dims=("batch", Dim("length", 4, 8, 12)))},
        factory="compress.zoo.digits_vqa:build", factory_kwargs=QUICK.network, processing=digits_questions.PROCESSING)
    write(tmp_path / "data", data, target=np.zeros(8, np.int64))
    pruned = compress.prune(model, open_set(tmp_path / "data", model.inputs), compress.PruneConfig(macs=0.8))
    assert pruned.model.processing == model.processing is not None


def test_the_demos_questions_get_the_ids_they_were_trained_with() -> None:
    from types import SimpleNamespace

    from compress.zoo.demo import _specs
    from runtimes.processing import Processor

    processing = read_processing(digits_questions.PROCESSING)
    graphs = {"forward": SimpleNamespace(inputs=_specs(), outputs=())}
    made = Processor(SimpleNamespace(processing=processing.section, chain=None, read_file=None, graphs=graphs))
    asked = digits_questions.questions()
    images, _ = digits_questions.splits()["validation"]
    levels = (images[: len(asked), 0] * 255).round().astype(np.uint8)
    feed = made.feed({"image": list(levels), "question": [question.text.capitalize() for question in asked]})
    expected = np.array([question.tokens for question in asked])
    np.testing.assert_array_equal(feed["question"], expected[:, : feed["question"].shape[1]])
    assert not expected[:, feed["question"].shape[1] :].any()
    np.testing.assert_allclose(feed["image"], images[: len(asked)], atol=0.5 / 255 + 1e-6)
    large = np.kron(levels[0], np.ones((5, 5), np.uint8))      # the same picture, five times as large
    np.testing.assert_array_equal(made.feed({"image": large, "question": "is it even?"})["image"], feed["image"][:1])


def test_a_record_of_the_bundles_own_takes_the_models_place(record: dict[str, Any], tmp_path: Path) -> None:
    model = save(tmp_path, record)
    other = {"inputs": {}, "outputs": {"output": {"kind": "classes", "top": 2}}}
    section = section_of(model, other)
    assert section is not None
    assert (section.section.inputs, section.files) == ({}, {})
    assert section.section.outputs == {"output": ClassesOutput(top=2, labels=ANSWERS)}
    assert section_of(dataclasses.replace(model, processing=None, labels={})) is None


@pytest.mark.parametrize(("change", "message"), [
    ({"picture": IMAGE}, "processing describes input 'picture', but the model's are"),
    ({"image": {**IMAGE, "steps": []}}, r"makes of a sample: input 'image' has shape \(1, 3, 37, 53\)"),
    ({"image": {**IMAGE, "layout": "HWC"}}, r"input 'image' has shape \(1, 4, 4, 3\), expected size 3 on axis 1"),
    ({"image": {**IMAGE, "mode": "L"}}, r"input 'image' has shape \(1, 1, 4, 4\)"),
    ({"ids": {**TEXT, "max_length": 9}}, "input 'ids' has max_length 9, but the model's input takes 8"),
    ({"ids": {**TEXT, "tokenizer": "none.json"}}, "processing of 'ids': the tokenizer none.json cannot be read"),
    ({"ids": {**TEXT, "size": 3}}, "processing of 'ids' has the unknown key 'size'"),
    ({"ids": IMAGE}, "becomes float32, but input 'ids' takes int64"),
])
def test_records_that_do_not_fit_the_model_are_refused_at_once(
    change: dict[str, Any], message: str, record: dict[str, Any], tmp_path: Path
) -> None:
    record["inputs"].update(change)
    with pytest.raises(CompressError, match=message):
        save(tmp_path, record)
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize(("outputs", "message"), [
    ({"logits": {"kind": "classes"}}, "processing describes output 'logits'"),
    ({"output": {"kind": "classes", "labels": ["a", "b", "c"]}}, "of 'output' has other labels than the model"),
    ({"output": {"kind": "decision"}}, "output 'output' has 3 values a sample"),
    ({"output": {"kind": "values", "names": ["a"]}}, "output 'output' has 3 values, but the record 1"),
])
def test_outputs_that_do_not_fit_the_model(outputs: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CompressError, match=message):
        save(tmp_path, {"inputs": {}, "outputs": outputs})


def test_files_that_are_no_record(tmp_path: Path) -> None:
    path = tmp_path / "processing.json"
    with pytest.raises(CompressError, match=r"processing\.json cannot be read as JSON"):
        read_processing(path)
    for text in ("[]", "{}", '{"version": 2, "inputs": {}}', '{"version": true}'):
        path.write_text(text)
        with pytest.raises(CompressError, match=r'processing\.json is not a processing record: it needs "version": 1'):
            read_processing(path)
    path.write_text('{"version": 1, "inputs": []}')
    with pytest.raises(CompressError, match=r"processing\.json: 'processing': 'inputs' must be an object"):
        read_processing(path)
    with pytest.raises(CompressError, match="processing is not a record that JSON can hold"):
        read_processing({"inputs": {"x": object()}})


def test_two_tokenizers_of_one_name(record: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b/tokenizer.json").write_text("{}")
    record["inputs"]["more"] = {**TEXT, "tokenizer": "b/tokenizer.json"}
    with pytest.raises(CompressError, match=r"two different files are called 'tokenizer\.json': rename one"):
        read_processing(record)
