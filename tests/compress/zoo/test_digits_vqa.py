"""The demo's network: shapes by keyword, indifference to padding, and the same answers once exported."""

import json

import numpy as np
import pytest
import torch

from compress.errors import CompressError
from compress.zoo.digits_vqa import Attention, build

SMALL = {
    "width": 32, "head_dim": 8, "image_heads": [3, 1], "image_hidden": [24, 40], "text_heads": [2],
    "text_hidden": [16], "fusion_heads": [4], "fusion_hidden": [48],
}  # fmt: skip


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build(**json.loads(json.dumps(SMALL))).eval()


def _feed(batch, length, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((batch, 1, 8, 8), np.float32), rng.integers(1, 30, (batch, length))


def test_blocks_have_the_shapes_asked_for(network):
    first, second = network.image_encoder.blocks
    assert first.attention.q.weight.shape == (24, 32)
    assert first.attention.out.weight.shape == (32, 24)
    assert first.up.weight.shape == (24, 32)
    assert second.attention.heads == 1
    assert second.down.weight.shape == (32, 40)
    assert network.text_encoder.blocks[0].up.out_features == 16
    assert network.fusion.blocks[0].attention.heads == 4


@pytest.mark.parametrize("bad", [{"image_heads": [2]}, {"text_heads": [], "text_hidden": []}, {"fusion_hidden": [0]}])
def test_shapes_that_do_not_fit_are_refused(bad):
    part = next(iter(bad)).split("_")[0]
    with pytest.raises(CompressError, match=f"{part}_heads .* must have one entry of at least 1 a block"):
        build(**{**SMALL, **bad})


def test_padding_changes_nothing(network):
    image, question = map(torch.from_numpy, _feed(3, 7))
    padded = torch.cat([question, torch.zeros(3, 5, dtype=torch.int64)], 1)
    with torch.no_grad():
        torch.testing.assert_close(network(image, padded), network(image, question), rtol=0, atol=1e-5)


def test_ask_equals_forward_on_every_pair(network):
    image, question = map(torch.from_numpy, _feed(6, 9))
    question[1, 4:] = 0
    with torch.no_grad():
        asked = network.ask(network.image_encoder(image[:2]), question.reshape(2, 3, 9))
        pairs = network(image[:2].repeat_interleave(3, 0), question)
    torch.testing.assert_close(asked.reshape(6, -1), pairs, rtol=0, atol=1e-5)


def test_attention_against_the_formula():
    torch.manual_seed(0)
    attention = Attention(6, heads=2, head_dim=3)
    query, context = torch.randn(1, 4, 6), torch.randn(1, 5, 6)
    seen = torch.tensor([True, True, False, True, False])
    with torch.no_grad():
        q, k, v = attention.q(query)[0], attention.k(context)[0], attention.v(context)[0]
        heads = []
        for head in (slice(0, 3), slice(3, 6)):
            scores = (q[:, head] @ k[seen][:, head].T) / 3**0.5
            heads.append(scores.softmax(-1) @ v[seen][:, head])
        expected = attention.out(torch.cat(heads, -1))
        got = attention(query, context, seen[None, None, None])[0]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_a_head_of_zeros_can_be_cut_out():
    """What pruning relies on: heads and head_dim are read at run time, and the scale stays."""
    torch.manual_seed(0)
    attention = Attention(8, heads=3, head_dim=4)
    tokens = torch.randn(2, 5, 8)
    with torch.no_grad():
        attention.out.weight[:, 4:8] = 0
        expected = attention(tokens, tokens)
        keep = [0, 1, 2, 3, 8, 9, 10, 11]
        for layer in (attention.q, attention.k, attention.v):
            layer.weight, layer.bias = torch.nn.Parameter(layer.weight[keep]), torch.nn.Parameter(layer.bias[keep])
        attention.out.weight = torch.nn.Parameter(attention.out.weight[:, keep])
        attention.heads = 2
        torch.testing.assert_close(attention(tokens, tokens), expected, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx_runtime_and_openvino_agree_at_every_size(network, tmp_path):
    import onnxruntime
    import openvino

    batch, length = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("length", min=4, max=12)
    image, question = map(torch.from_numpy, _feed(2, 8))
    program = torch.export.export(network, (image, question), dynamic_shapes=({0: batch}, {0: batch, 1: length}))
    names = {"input_names": ["image", "question"], "output_names": ["output"]}
    torch.onnx.export(program, dynamo=True, opset_version=20, verbose=False, **names).save(tmp_path / "demo.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "demo.onnx", providers=["CPUExecutionProvider"])
    compiled = openvino.Core().compile_model(str(tmp_path / "demo.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for size, words in [(1, 4), (1, 12), (3, 7), (17, 5), (64, 12)]:
        image, question = _feed(size, words, seed=size)
        question[0, 3:] = 0
        with torch.no_grad():
            expected = network(torch.from_numpy(image), torch.from_numpy(question)).numpy()
        feed = {"image": image, "question": question}
        np.testing.assert_allclose(session.run(None, feed)[0], expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(compiled(feed)[0], expected, rtol=0, atol=1e-5)
