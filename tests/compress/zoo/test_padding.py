"""Networks over texts, sequences and videos answer each sample of a padded batch as they answer it alone."""

import numpy as np
import pytest
import torch

from compress.factory import resolve
from compress.zoo import get_reference
from compress.zoo.fitting import run


def padded(rows):
    """Single samples, without a batch axis, as one feed of the longest's shape: zeros behind the shorter ones."""
    feed = {}
    for name in rows[0]:
        shape = np.max([row[name].shape for row in rows], axis=0)
        widths = [[(0, size - have) for size, have in zip(shape, row[name].shape, strict=True)] for row in rows]
        feed[name] = np.stack([np.pad(row[name], width) for row, width in zip(rows, widths, strict=True)])
    return feed


@pytest.mark.parametrize("name", ["image-text", "attention-vqa", "driving", "video"])
def test_padding_is_not_read(name):
    torch.manual_seed(0)
    reference = get_reference(name)
    network = resolve(reference.factory, "factory")(**reference.kwargs).eval()
    rows = [{key: array[0] for key, array in rows.items()} for rows, _ in reference.samples()["calibration"]]
    assert len(rows) > 2
    with torch.no_grad():
        together = run(network, {key: torch.from_numpy(array) for key, array in padded(rows).items()})
        alone = [run(network, {key: torch.from_numpy(array[None]) for key, array in row.items()}) for row in rows]
    for output, value in together.items():
        np.testing.assert_allclose(value, torch.cat([one[output] for one in alone]), atol=1e-5)
