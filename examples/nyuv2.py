"""Three vision tasks on NYUv2 with one encoder: segmentation in 13 classes, depth and surface normals.

Reads the prepared form of the set: a folder with ``train`` and ``val``, each with ``image``, ``label``, ``depth`` and
``normal``, which hold one NumPy file per picture, ``0.npy``, ``1.npy``, … Pictures and normals have shape [H, W, 3],
labels [H, W] with -1 where unknown, depth [H, W, 1] with 0 where unknown.

    python examples/nyuv2.py PATH
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from equipoise import MultiBalance

CLASSES = 13
TASKS = ("segmentation", "depth", "normal")


class Pictures(torch.utils.data.Dataset):
    """The pictures of one part of NYUv2, with their three labels."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = len(list((folder / "image").glob("*.npy")))
        if not self.count:
            raise SystemExit(f"Expected NumPy files in {folder / 'image'}, found none.")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        image, label, depth, normal = (
            torch.from_numpy(np.load(self.folder / kind / f"{place}.npy")).float()
            for kind in ("image", "label", "depth", "normal")
        )
        return image.movedim(-1, 0), label.long(), depth.movedim(-1, 0), normal.movedim(-1, 0)


class Net(nn.Module):
    """A small convolutional encoder, one fork, and a decoder for each task."""

    def __init__(self, fork: nn.Module, width: int = 32) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        self.encoder = nn.Sequential(*layers)
        self.fork = fork
        self.heads = nn.ModuleList(self._head(4 * width, channels) for channels in (CLASSES, 1, 3))

    @staticmethod
    def _head(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(inputs, inputs // 2, 3, padding=1), nn.ReLU(), nn.Conv2d(inputs // 2, outputs, 1),
            nn.Upsample(scale_factor=8, mode="bilinear"),
        )  # fmt: skip

    def forward(self, images: Tensor) -> list[Tensor]:
        branches = self.fork(self.encoder(images))
        return [head(branch) for head, branch in zip(self.heads, branches, strict=True)]


def losses(outputs: list[Tensor], label: Tensor, depth: Tensor, normal: Tensor) -> list[Tensor]:
    """Return cross entropy, absolute error of the depth, and one minus the cosine of the normals, where known."""
    classes, distance, direction = outputs
    segmentation = functional.cross_entropy(classes, label, ignore_index=-1)
    known = (depth != 0).float()
    absolute = ((distance - depth).abs() * known).sum() / known.sum().clamp(min=1)
    there = (normal != 0).any(1).float()
    cosine = functional.cosine_similarity(direction, normal, dim=1)
    return [segmentation, absolute, 1 - (cosine * there).sum() / there.sum().clamp(min=1)]


def batches(folder: Path, size: int, *, shuffle: bool) -> Iterator[list[Tensor]]:
    yield from torch.utils.data.DataLoader(Pictures(folder), size, shuffle=shuffle)


def train(folder: Path, fork: nn.Module, *, epochs: int = 1, batch_size: int = 2, width: int = 32) -> list[float]:
    """Train, and return the three losses on the validation pictures."""
    torch.manual_seed(0)
    net = Net(fork, width)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(epochs):
        for images, *labels in batches(folder / "train", batch_size, shuffle=True):
            optimizer.zero_grad()
            sum(losses(net(images), *labels)).backward()
            optimizer.step()
    net.eval()
    with torch.no_grad():
        found = [torch.stack(losses(net(images), *rest)) for images, *rest in batches(folder / "val", 1, shuffle=False)]
    return torch.stack(found).mean(0).tolist()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=20)
    given = parser.parse_args()
    for name, value in zip(TASKS, train(given.folder, MultiBalance(TASKS), epochs=given.epochs), strict=True):
        print(f"{name}: {value:.4f}")
