"""Networks over texts, sequences and videos: one engine for every batch and length, padded or not."""

import numpy as np
import pytest
import torch

from compress.export import export
from compress.factory import resolve
from compress.saving import save
from compress.targets import targets
from compress.zoo import get_reference
from compress.zoo.fitting import run
from runtimes.backends import open_engine

NAMES = ("image-text", "attention-vqa", "driving", "video")


def _network(name):
    torch.manual_seed(0)
    reference = get_reference(name)
    return reference, resolve(reference.factory, "factory")(**reference.kwargs).eval()


def _samples(reference):
    """A sample of each length, without a batch axis."""
    return [{key: array[0] for key, array in rows.items()} for rows, _ in reference.samples()["calibration"]]


def _padded(rows):
    """Samples as one feed of the longest's shape: zeros behind the shorter ones, as a bundle's processing puts them."""
    feed = {}
    for name in rows[0]:
        shape = np.max([row[name].shape for row in rows], axis=0)
        widths = [[(0, size - have) for size, have in zip(shape, row[name].shape, strict=True)] for row in rows]
        feed[name] = np.stack([np.pad(row[name], width) for row, width in zip(rows, widths, strict=True)])
    return feed


def _in_torch(network, feed):
    with torch.no_grad():
        return {key: value.numpy() for key, value in
                run(network, {key: torch.from_numpy(array) for key, array in feed.items()}).items()}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_padding_is_not_read(name):
    reference, network = _network(name)
    rows = _samples(reference)
    assert len(rows) > 2
    alone = [_in_torch(network, _padded([row])) for row in rows]
    for output, value in _in_torch(network, _padded(rows)).items():
        np.testing.assert_allclose(value, np.concatenate([one[output] for one in alone]), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_one_engine_answers_as_torch_at_every_length(name, tmp_path):
    reference, network = _network(name)
    rows = _samples(reference)
    model = save(
        network, tmp_path / "model.pt", example=_padded([rows[0], rows[0]]), inputs=reference.inputs,
        processing=reference.processing,
    )  # fmt: skip
    longest = {spec.name: spec.sized(batch=3, length=next(d.max for d in spec.dims if d.name == "length"))
               for spec in model.inputs if "length" in {d.name for d in spec.dims}}  # fmt: skip
    filled = {key: np.resize(array, longest.get(key, (3, *array.shape))) for key, array in rows[0].items()}
    feeds = [_padded([row]) for row in rows] + [_padded(rows), filled]
    for backend in ("openvino-cpu", "onnxruntime-cpu"):
        runner = open_engine(export(model, targets()[backend], tmp_path / backend, precision="fp32"), threads=1)
        try:
            for feed in feeds:
                found = runner.run(feed)
                for output, expected in _in_torch(network, feed).items():
                    np.testing.assert_allclose(found[output], expected, atol=1e-4, err_msg=backend)
        finally:
            runner.close()
