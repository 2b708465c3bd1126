from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtimes
from runtimes.bundle import Bundle
from runtimes.chain import Cache
from runtimes.errors import FeedError, RuntimesError
from tests.contracts.models import BY_NAME
from tests.runtimes import networks
from tests.runtimes.bundles import FakeRunner, register_fake, write_bundle

BACKENDS = ["openvino", "onnxruntime"]
STEPS = 10
LOOP: dict[str, Any] = {
    "token": "ids", "logits": "logits", "state": {"past": {"from": "present"}}, "start": [networks.BEGIN],
    "stop": [networks.END], "pad": networks.PAD, "max_steps": STEPS, "pick": "argmax",
}
TOWERS = {
    "inputs": ["image", "labels"],
    "steps": [{"graph": "image", "inputs": {"pixels": "image"}},
              {"name": "words", "graph": "text", "inputs": {"tokens": "labels"}, "cache": True}],
    "outputs": {"seen": "image.embedding", "read": "words.rows"},
}
TOWER_FEED = {"image": networks.PIXELS, "labels": BY_NAME["gather"].feed["tokens"]}


def writing(loop: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "inputs": ["x"],
        "steps": [{"name": "words", "graph": "decoder", "inputs": {"memory": "encoder.memory"}, "loop": dict(loop)},
                  {"graph": "encoder", "inputs": {"x": "x"}}],
        "outputs": {"caption": "words.tokens"},
    }


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """An encoder and a decoder with its cache, both engines of both backends."""
    graphs = {"encoder": networks.ENCODER, "decoder": networks.CACHED}
    return write_bundle(tmp_path_factory.mktemp("captioner"), graphs, BACKENDS, chain=writing(LOOP))


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    graphs = {"image": networks.IMAGE, "text": BY_NAME["gather"]}
    return write_bundle(tmp_path_factory.mktemp("towers"), graphs, BACKENDS, chain=TOWERS)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tokens_with_a_cache_are_numpys(backend: str, captioner: Bundle) -> None:
    """Three samples at once: two stop after two tokens and are padded, one never stops."""
    expected = networks.generate(networks.X, STEPS)
    assert [len(row) for row in expected] == [STEPS, 2, 2]
    with runtimes.load(captioner, backend, threads=1, self_test=True, warmup=1) as chain:
        assert [spec.name for spec in chain.inputs] == ["x"]
        assert chain.outputs[0].describe() == "int64[batch=1..4, steps=1..10]"
        tokens = chain.run({"x": networks.X})["caption"]
        np.testing.assert_array_equal(tokens, networks.padded(expected))
        assert tokens.dtype == np.int64
        for sample, row in zip(networks.X, expected, strict=True):     # batch 1, ended by the stop token
            np.testing.assert_array_equal(chain.run({"x": sample[None]})["caption"], [row])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_decoder_without_a_cache(backend: str, tmp_path: Path, captioner: Bundle) -> None:
    graphs = {"encoder": networks.ENCODER, "decoder": networks.UNCACHED}
    bundle = write_bundle(tmp_path / "b", graphs, [backend], chain=writing({**LOOP, "state": {}}))
    with runtimes.load(bundle, threads=1) as plain, runtimes.load(captioner, backend, threads=1) as cached:
        feed = {"x": networks.X}
        np.testing.assert_array_equal(plain.run(feed)["caption"], cached.run(feed)["caption"])


def test_a_prompt_of_several_tokens(tmp_path: Path) -> None:
    graphs = {"encoder": networks.ENCODER, "decoder": networks.CACHED}
    bundle = write_bundle(tmp_path / "b", graphs, ["onnxruntime"], chain=writing({**LOOP, "start": [3, 7, 4]}))
    memory, past = networks.MEMORY[:1], np.zeros((1, 0, networks.WIDTH), np.float32)
    logits, past = networks.decode_step(np.array([[3, 7, 4]]), memory, past)
    expected = [int(logits.argmax())]
    while len(expected) < STEPS and expected[-1] != networks.END:
        logits, past = networks.decode_step(np.array([[expected[-1]]]), memory, past)
        expected.append(int(logits.argmax()))
    with runtimes.load(bundle, threads=1) as chain:
        np.testing.assert_array_equal(chain.run({"x": networks.X[:1]})["caption"], [expected])


def test_the_cache_goes_from_run_to_run_as_the_engine_returned_it(
    captioner: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is copied or joined: what goes in is the very array that came out, and one token."""
    with runtimes.load(captioner, "onnxruntime", threads=1) as chain:
        decoder = chain.sessions["decoder"]
        runner, seen, made = decoder._runners[-1], [], []

        def run(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            seen.append(dict(feed))
            made.append(runner.run(feed))
            return made[-1]

        decoder._runners.append(FakeRunner(run))
        chain.run({"x": networks.X[:1]})
    assert len(seen) == STEPS
    assert [feed["past"].shape[1] for feed in seen] == list(range(STEPS))
    for feed, before in zip(seen[1:], made, strict=False):
        assert feed["past"] is before["present"]
        assert feed["ids"].shape == (1, 1)


def test_a_cache_that_outgrows_the_engine(tmp_path: Path) -> None:
    graphs = {"encoder": networks.ENCODER, "decoder": networks.CACHED}
    loop = {**LOOP, "stop": [], "max_steps": networks.LONGEST + 10}
    bundle = write_bundle(tmp_path / "b", graphs, ["onnxruntime"], chain=writing(loop))
    with runtimes.load(bundle, threads=1) as chain, pytest.raises(RuntimesError, match="'past' has grown to past=65"):
        chain.run({"x": networks.X})


@pytest.mark.parametrize("backend", BACKENDS)
def test_towers(backend: str, towers: Bundle) -> None:
    with runtimes.load(towers, backend, threads=1, self_test=True) as chain:
        outputs = chain.run(TOWER_FEED)         # two images, one text: each graph has a batch of its own
        assert list(outputs) == ["seen", "read"] or list(outputs) == ["read", "seen"]
        np.testing.assert_allclose(outputs["seen"], networks.PIXELS @ networks.TOWER, atol=1e-5)
        np.testing.assert_array_equal(outputs["read"], BY_NAME["gather"].expected["rows"])
        assert (chain.target, chain.backend, chain.precision) == (f"{backend}-cpu", backend, "fp32")
        assert chain.fallback is None
    with pytest.raises(RuntimesError, match=r"chain of bundle .* is closed"):
        chain.run(TOWER_FEED)
    with pytest.raises(RuntimesError, match="is closed"):
        chain.sessions["image"].run({"pixels": networks.PIXELS})


def test_one_graph_of_several(towers: Bundle) -> None:
    with runtimes.load(towers, "onnxruntime", graph="image", threads=1) as session:
        assert isinstance(session, runtimes.Session)
        assert session.run({"pixels": networks.PIXELS})["embedding"].shape == (2, 2)


def test_towers_run_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits inside its run until the other is inside its own: in turn, neither would ever end."""
    both = threading.Barrier(2, timeout=20)

    def opener(engine: runtimes.Engine) -> FakeRunner:
        def run(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            both.wait()
            return {spec.name: np.zeros(spec.sized(), spec.dtype) for spec in engine.outputs}

        return FakeRunner(run)

    register_fake(monkeypatch, opener)
    graphs = {"image": networks.IMAGE, "text": BY_NAME["gather"]}
    with runtimes.load(write_bundle(tmp_path / "b", graphs, ["fake"], chain=TOWERS)) as chain:
        chain.run(TOWER_FEED)
        assert not both.broken


def test_outputs_of_fixed_feeds_are_kept(towers: Bundle) -> None:
    with runtimes.load(towers, "onnxruntime", threads=1) as chain:
        first = chain.run(TOWER_FEED)["read"]
        first += 7                                                  # the caller's own
        second = chain.run({**TOWER_FEED, "image": networks.PIXELS[:1]})["read"]
        np.testing.assert_array_equal(second, BY_NAME["gather"].expected["rows"])
        cache = chain.caches["words"]
        assert (cache.hits, cache.misses, len(cache)) == (1, 1, 1)
        chain.run({**TOWER_FEED, "labels": np.array([[1, 1, 1]])})
        assert (cache.hits, cache.misses, len(cache)) == (1, 2, 2)


def test_a_cache_is_bounded_and_forgets_the_longest_unused() -> None:
    cache, computed = Cache(2), []

    def ask(number: int, dtype: type = np.int64) -> None:
        cache.get({"x": np.array([number], dtype)}, lambda: computed.append(number) or {})  # type: ignore[func-returns-value]

    for number in (1, 2, 1, 3, 1, 2):       # 3 pushes out 2, not 1
        ask(number)
    assert computed == [1, 2, 3, 2]
    ask(2, np.int32)                        # the same bytes of another type are another feed
    assert computed == [1, 2, 3, 2, 2]
    assert len(cache) == 2
    cache.clear()
    assert len(cache) == 0


def test_many_callers_of_a_chain(captioner: Bundle, towers: Bundle) -> None:
    expected = networks.generate(networks.X, STEPS)
    with runtimes.load(captioner, "openvino", threads=1) as chain, runtimes.load(towers, "openvino", threads=1) as two:
        futures = [chain.submit({"x": networks.X[index % 3][None]}) for index in range(30)]
        for index, future in enumerate(futures):
            np.testing.assert_array_equal(future.result(60)["caption"], [expected[index % 3]])
        pixels = [np.full((1, 3), index, np.float32) for index in range(40)]
        futures = [two.submit({**TOWER_FEED, "image": value}) for value in pixels]
        for value, future in zip(pixels, futures, strict=True):
            np.testing.assert_allclose(future.result(60)["seen"], value @ networks.TOWER, rtol=1e-5)


@pytest.mark.parametrize(("feed", "message"), [
    ({"image": networks.PIXELS}, r"feed lacks input 'labels': expected the inputs \['image', 'labels'\]"),
    ({**TOWER_FEED, "mask": networks.PIXELS}, "feed has an unknown input 'mask'"),
    ({**TOWER_FEED, "image": networks.PIXELS.astype(np.float64)}, "step 'image': feed: input 'pixels' has dtype"),
    ({**TOWER_FEED, "image": networks.PIXELS * np.nan}, "step 'image': .* not finite"),
])
def test_wrong_feeds(feed: dict[str, np.ndarray], message: str, towers: Bundle) -> None:
    with runtimes.load(towers, "onnxruntime", threads=1) as chain, pytest.raises(FeedError, match=message):
        chain.run(feed)


def test_a_step_after_one_that_fails_gives_the_first_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opener(engine: runtimes.Engine) -> FakeRunner:
        def run(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            raise RuntimesError(f"{engine.inputs[0].name} fails")

        return FakeRunner(run)

    register_fake(monkeypatch, opener)
    graphs = {"encoder": networks.ENCODER, "decoder": networks.UNCACHED, "image": networks.IMAGE}
    chain = {"inputs": ["x", "pixels", "ids"],
             "steps": [{"graph": "encoder", "inputs": {"x": "x"}},
                       {"graph": "decoder", "inputs": {"ids": "ids", "memory": "encoder.memory"}},
                       {"graph": "image", "inputs": {"pixels": "pixels"}}],
             "outputs": {"logits": "decoder.logits"}}
    bundle = write_bundle(tmp_path / "b", graphs, ["fake"], chain=chain)
    with runtimes.load(bundle) as opened, pytest.raises(RuntimesError, match=r"^x fails"):
        opened.run({"x": networks.X, "pixels": networks.PIXELS, "ids": networks.IDS})


# --- bundles without a chain of their own ---------------------------------------------------------------------------


def test_independent_graphs_need_no_chain(tmp_path: Path) -> None:
    graphs = {"image": networks.IMAGE, "text": BY_NAME["gather"]}
    with runtimes.load(write_bundle(tmp_path / "b", graphs, ["onnxruntime"]), threads=1) as chain:
        assert {spec.name for spec in chain.inputs} == {"pixels", "tokens"}
        outputs = chain.run({**networks.IMAGE.feed, **BY_NAME["gather"].feed})
        np.testing.assert_allclose(outputs["embedding"], networks.PIXELS @ networks.TOWER, atol=1e-5)
        np.testing.assert_array_equal(outputs["rows"], BY_NAME["gather"].expected["rows"])


def test_one_input_for_both_and_two_outputs_of_one_name(tmp_path: Path) -> None:
    graphs = {"left": networks.IMAGE, "right": networks.IMAGE}
    with runtimes.load(write_bundle(tmp_path / "b", graphs, ["onnxruntime"]), threads=1) as chain:
        assert [spec.name for spec in chain.inputs] == ["pixels"]
        outputs = chain.run(networks.IMAGE.feed)
        assert set(outputs) == {"left.embedding", "right.embedding"}
        np.testing.assert_array_equal(outputs["left.embedding"], outputs["right.embedding"])


def test_graphs_that_need_each_other_need_a_chain(tmp_path: Path) -> None:
    graphs = {"encoder": networks.ENCODER, "decoder": networks.CACHED}
    bundle = write_bundle(tmp_path / "b", graphs, ["onnxruntime"])
    message = r"has the graphs \['decoder', 'encoder'\]: name one with graph= \(.*'memory' of graph 'decoder' is an"
    with pytest.raises(RuntimesError, match=message):
        runtimes.load(bundle)


def test_a_graph_that_does_not_open_closes_the_others(towers: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    release = runtimes.Session._release
    monkeypatch.setattr(runtimes.Session, "_release", lambda self: (closed.append(self.inputs[0].name), release(self)))
    (towers.path / "engines/text/onnxruntime/model.onnx").rename(towers.path / "elsewhere")
    try:
        with pytest.raises(RuntimesError, match="is missing"):
            runtimes.load(towers, "onnxruntime", threads=1)
    finally:
        (towers.path / "elsewhere").rename(towers.path / "engines/text/onnxruntime/model.onnx")
    assert closed == ["pixels"]
