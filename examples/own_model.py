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
        conv = [nn.Conv2d(1, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten()]
        self.eye, self.sense = nn.Sequential(*conv), nn.Sequential(nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, 32))
        self.decide = nn.Sequential(nn.Linear(1024 + 32, 256), nn.ReLU(), nn.Linear(256, 2))

    def forward(self, image, limit):
        return self.decide(torch.cat([self.eye(image), self.sense(limit)], dim=1))


if __name__ == "__main__":  # the pipeline imports this file for the class alone
    (pixels, digits), folder, net = load_digits(return_X_y=True), Path("own_model"), AboveLimit()
    limit = np.random.default_rng(0).uniform(0, 9, (len(digits), 1)).astype(np.float32)
    data, above = {"image": (pixels / 16).reshape(-1, 1, 8, 8).astype(np.float32), "limit": limit}, digits > limit[:, 0]
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for pick in torch.randint(0, 1000, (500, 128)):
        logits = net(**{name: torch.from_numpy(array)[pick] for name, array in data.items()})
        nn.functional.cross_entropy(logits, torch.from_numpy(above)[pick].long()).backward()
        optimizer.step(), optimizer.zero_grad()
    for name, rows in {"train": slice(1000), "calibration": slice(1000, 1200), "validation": slice(1200, None)}.items():
        calibration.write(folder / name, {key: value[rows] for key, value in data.items()}, target=above[rows] * 1)
    compress.save(net, folder / "model.pt", example={k: v[:2] for k, v in data.items()}, factory="own_model:AboveLimit")
    (folder / "recipe.yaml").write_text("""{version: 1, model: model.pt, factory: own_model:AboveLimit, target: local,
      data: {calibration: calibration/, train: train/, validation: validation/}, max_drop: 0.02,
      stages: [prune: {macs: 0.6}, distill: {epochs: 3}, quantize: {}, distill: {epochs: 1}, export: {}, bench: {}]}""")
    print(compress.run(folder / "recipe.yaml").report)
