import json

import numpy as np
import pytest

from compress.distill import batches as batches_file
from compress.distill import teacher as module
from compress.distill.batches import Batches
from compress.distill.bound import bind
from compress.distill.graphs import find_features
from compress.distill.teacher import Teacher

FORMS = ["memory", "disk", "nothing"]


@pytest.fixture
def remembering(monkeypatch):
    """Makes a teacher remember as it is told to."""

    def choose(form):
        monkeypatch.setattr(module, "CACHE_BYTES", 1 << 30 if form == "memory" else 0)
        monkeypatch.setattr(module, "OPERATIONS_PER_BYTE", 0.0 if form == "disk" else 1e9)

    return choose


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("window", [1 << 29, 2000])
def test_answers_are_those_of_the_batch(build, feeds, remembering, monkeypatch, form, window):
    monkeypatch.setattr(batches_file, "WINDOW_BYTES", window)
    remembering(form)
    model = build()
    batches = Batches(feeds(model), 32, 0)
    assert (batches.only is None) == (window == 2000)
    features = find_features(model)
    live = bind(model, features)
    with Teacher(bind(model, features), batches, epochs=2) as teacher:
        assert teacher.remembers == form
        for batch in batches.epoch(1):
            for given, expected in zip(teacher(batch), live(batch.feed), strict=True):
                np.testing.assert_allclose(given.numpy(), expected.detach().numpy(), atol=1e-6)


def test_answers_on_disk_serve_the_next_run_of_the_same_key(build, feeds, remembering, tmp_path):
    remembering("disk")
    model = build()
    batches = Batches(feeds(model), 32, 0)
    told = []

    def answers(key):
        told.clear()
        with Teacher(bind(model), batches, epochs=2, folder=tmp_path, key=key, progress=told.append) as teacher:
            return [teacher(batch)[0].clone().numpy() for batch in batches.epoch(0)]

    first = answers("one")
    assert told[-1] == "teacher's answers, 200 of 200 samples"
    np.testing.assert_array_equal(np.concatenate(answers("one")), np.concatenate(first))
    assert told == []
    np.testing.assert_array_equal(np.concatenate(answers("another")), np.concatenate(first))
    assert told[-1] == "teacher's answers, 200 of 200 samples"
    assert json.loads((tmp_path / "answers" / "answers.json").read_text())["key"] == "another"


@pytest.mark.parametrize("harm", ["zeros", "gone", "shorter", "no record"])
def test_answers_on_disk_that_are_not_what_was_written_are_made_again(build, feeds, remembering, tmp_path, harm):
    remembering("disk")
    model = build()
    batches = Batches(feeds(model), 32, 0)
    told = []

    def answers():
        with Teacher(bind(model), batches, epochs=2, folder=tmp_path, key="one", progress=told.append) as teacher:
            return [teacher(batch)[0].clone().numpy() for batch in batches.epoch(0)]

    first = answers()
    (file,) = (tmp_path / "answers").glob("*.bin")
    if harm == "zeros":
        file.write_bytes(bytes(file.stat().st_size))
    elif harm == "gone":
        file.unlink()
    elif harm == "shorter":
        file.write_bytes(file.read_bytes()[:100])
    else:
        (tmp_path / "answers" / "answers.json").write_text("{")
    told.clear()
    np.testing.assert_array_equal(np.concatenate(answers()), np.concatenate(first))
    assert told[-1] == "teacher's answers, 200 of 200 samples"


def test_the_free_space_is_that_of_the_disk_that_is_written_to(build, feeds, remembering, tmp_path, monkeypatch):
    """The folder is made only once it is known that there is enough."""
    remembering("disk")
    asked = []
    usage = module.shutil.disk_usage
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: (asked.append(path), usage(path))[1])
    model = build()
    with Teacher(bind(model), Batches(feeds(model), 32, 0), epochs=2, folder=tmp_path / "scratch" / "teacher-0"):
        assert asked == [tmp_path]


def test_a_pass_that_was_cut_short_is_done_again(build, feeds, remembering, tmp_path):
    remembering("disk")
    model = build()
    batches = Batches(feeds(model), 32, 0)

    def interrupt(text):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Teacher(bind(model), batches, epochs=2, folder=tmp_path, key="one", progress=interrupt)
    told = []
    with Teacher(bind(model), batches, epochs=2, folder=tmp_path, key="one", progress=told.append):
        assert told[-1] == "teacher's answers, 200 of 200 samples"


def test_answers_on_disk_of_no_folder_go_with_the_run(build, feeds, remembering, tmp_path, monkeypatch):
    remembering("disk")
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    model = build()
    with Teacher(bind(model), Batches(feeds(model), 32, 0), epochs=2):
        assert len(list(tmp_path.glob("*/answers/*.bin"))) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_not_filled(build, feeds, remembering, monkeypatch):
    remembering("disk")
    monkeypatch.setattr(module, "DISK_SHARE", 0.0)
    model = build()
    assert Teacher(bind(model), Batches(feeds(model), 32, 0), epochs=2).remembers == "nothing"
