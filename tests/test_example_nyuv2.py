"""The example on NYUv2 reads files of the set's form, and learns three vision tasks at once."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

from equipoise import MultiBalance, check

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def nyuv2(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("nyuv2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures whose left half is near and of one class, and whose right half is far and of another."""
    random = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 2)):
        for kind in ("image", "label", "depth", "normal"):
            (tmp_path / part / kind).mkdir(parents=True)
        for place in range(count):
            far = np.zeros((16, 24), bool)
            far[:, 12:] = True
            label = np.where(far, 5, 2).astype(np.int64)
            label[0] = -1
            depth = np.where(far, 3.0, 1.0)[..., None].astype(np.float32)
            depth[0] = 0
            normal = np.stack([far, ~far, np.zeros_like(far)], -1).astype(np.float32)
            image = (np.repeat(far[..., None], 3, 2) + random.normal(0, 0.1, (16, 24, 3))).astype(np.float32)
            for kind, array in (("image", image), ("label", label), ("depth", depth), ("normal", normal)):
                np.save(tmp_path / part / kind / f"{place}.npy", array)
    return tmp_path


def test_all_three_tasks_are_learned(nyuv2, folder: Path) -> None:
    before = nyuv2.train(folder, MultiBalance(nyuv2.TASKS), epochs=0, width=8)
    after = nyuv2.train(folder, MultiBalance(nyuv2.TASKS), epochs=15, width=8)
    assert all(late < early for late, early in zip(after, before, strict=True))


def test_the_fork_stands_where_the_tasks_part(nyuv2, folder: Path) -> None:
    net = nyuv2.Net(MultiBalance(nyuv2.TASKS), 8)
    images, *labels = next(nyuv2.batches(folder / "train", 2, shuffle=False))
    found = check(net, dict(zip(nyuv2.TASKS, nyuv2.losses(net(images), *labels), strict=True)))
    assert found.ok, str(found)


def test_unknown_pixels_do_not_count(nyuv2) -> None:
    outputs = [torch.randn(1, 13, 8, 8), torch.randn(1, 1, 8, 8), torch.randn(1, 3, 8, 8)]
    label, depth, normal = torch.zeros(1, 8, 8).long(), torch.ones(1, 1, 8, 8), torch.ones(1, 3, 8, 8)
    label[..., 4:], depth[..., 4:], normal[..., 4:] = -1, 0, 0
    whole = nyuv2.losses(outputs, label, depth, normal)
    half = nyuv2.losses([part[..., :4] for part in outputs], label[..., :4], depth[..., :4], normal[..., :4])
    torch.testing.assert_close(whole, half)


def test_a_folder_without_pictures_is_named(nyuv2, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="found none"):
        nyuv2.Pictures(tmp_path)
