"""A model and data of one's own, through the whole chain: is the digit in the picture above a sensed limit?"""

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import calibration
import compress


class AboveLimit(nn.Module):
    def __init__(self):
        super().__init__()
        self.eye = nn.Sequential(nn.Conv2d(1, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten())
        self.sense = nn.Sequential(nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, 32))
        self.decide = nn.Sequential(nn.Linear(1024 + 32, 256), nn.ReLU(), nn.Linear(256, 2))

    def forward(self, image, limit):
        return self.decide(torch.cat([self.eye(image), self.sense(limit)], dim=1))


if __name__ == "__main__":  # the pipeline imports this file for the class alone
    pixels, digits = load_digits(return_X_y=True)
    limit = np.random.default_rng(0).uniform(0, 9, (len(digits), 1)).astype(np.float32)
    data = {"image": (pixels / 16).reshape(-1, 1, 8, 8).astype(np.float32), "limit": limit}
    above, net, folder = (digits > limit[:, 0]).astype(np.int64), AboveLimit(), Path("own_model")
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(500):
        pick = torch.randint(0, 1200, (128,))
        loss = nn.functional.cross_entropy(net(**{k: torch.from_numpy(v)[pick] for k, v in data.items()}), torch.from_numpy(above)[pick])
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    for name, rows in {"train": slice(1200), "calibration": slice(1000, 1200), "validation": slice(1200, None)}.items():
        calibration.write(folder / name, {k: v[rows] for k, v in data.items()}, target=above[rows])
    compress.save(net, folder / "model.pt", example={k: v[:2] for k, v in data.items()}, factory="own_model:AboveLimit")
    (folder / "recipe.yaml").write_text("""{version: 1, model: model.pt, factory: own_model:AboveLimit, target: local, max_drop: 0.02,
      data: {calibration: calibration/, train: train/, validation: validation/},
      stages: [prune: {macs: 0.6}, distill: {epochs: 3}, quantize: {}, distill: {epochs: 1}, export: {}, bench: {}]}""")
    print(compress.run(folder / "recipe.yaml").report)
