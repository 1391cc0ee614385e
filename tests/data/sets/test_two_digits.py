"""Two-digit images: overlaid as stated, digits in one split alone, files of another form refused."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from equipoise.data import DataError, load
from equipoise.data.sets.two_digits import read_idx
from equipoise.ranking.models import build_model

MNIST = Path(os.environ.get("EQUIPOISE_DATA", "/nonexistent")) / "mnist"
COUNT = 60


def idx(values: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    return gzip.compress(head + values.astype(np.uint8).tobytes())


def write(folder: Path, *, digits: np.ndarray | None = None) -> None:
    """Write images that tell their number: image k is 4 · k everywhere; and their digits."""
    levels = 4 * np.arange(COUNT)
    images = np.broadcast_to(levels[:, None, None], (COUNT, 28, 28))
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(idx(images))
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(idx(np.arange(COUNT) % 10 if digits is None else digits))


@pytest.mark.parametrize("side", [36, 18, 12])
def test_each_digit_has_its_place_and_its_two_labels(tmp_path: Path, side: int) -> None:
    write(tmp_path)
    found = load("two-digits", folder=tmp_path, rows=400, side=side)
    splits = (found.train, found.validation, found.test)
    assert [len(part) for part in splits] == [280, 40, 80]
    pixels = torch.cat([part.numeric for part in splits]).view(-1, side, side)
    corners = torch.stack([pixels[:, 0, 0], pixels[:, -1, -1]], 1)
    levels, number = corners.unique(return_inverse=True)  # of the images at the left top and at the right bottom
    assert len(levels) == COUNT
    assert torch.equal(pixels[:, side // 2, side // 2], corners.amax(1))  # where both are, the brighter one
    assert bool((pixels[:, 0, -1] == levels[0]).all())  # where neither is, black
    digits = number % 10
    expected = torch.stack([digits[:, 0] >= 5, digits[:, 0] % 2 == 0, digits[:, 1] >= 5, digits[:, 1] % 2 == 0], 1)
    assert torch.equal(torch.cat([part.labels for part in splits]), expected.float())
    train, validation, test = (set(part.flatten().tolist()) for part in number.split([280, 40, 80]))
    assert [len(train), len(validation), len(test)] == [42, 6, 12]
    assert len(train | validation | test) == COUNT  # the image of a digit is in one split alone
    assert float(found.train.numeric.mean()) == pytest.approx(0, abs=1e-4)
    assert float(found.train.numeric.std()) == pytest.approx(1, abs=1e-4)


def test_the_seed_decides_the_pairs(tmp_path: Path) -> None:
    write(tmp_path)
    prints = [load("two-digits", folder=tmp_path, rows=100, seed=seed).fingerprint() for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 9}, "rows should be a whole number from 10 up, found 9"),
        ({"side": 28}, "side should be 36, 18 or 12, found 28"),
        ({"seed": -1}, "seed should be a whole number from 0 up, found -1"),
    ],
)
def test_bad_options_are_refused(options: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load("two-digits", folder=tmp_path, **options)


def test_files_of_another_form_are_refused_with_what_they_hold(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected t10k-images"):
        load("two-digits", folder=tmp_path)
    file = tmp_path / "some.gz"
    for content, message in (
        (b"no gzip", "cannot be unpacked"),
        (gzip.compress(b"PNG"), "begins with 50 4e 47"),
        (idx(np.zeros((3, 2), np.uint8)), "in 3 dimensions, found one that begins with 00 00 08 02"),
        (gzip.compress(bytes([0, 0, 8, 3]) + (5).to_bytes(4, "big") * 3 + b"abc"), "expected 125 values"),
    ):
        file.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_idx(file, dimensions=3)
    write(tmp_path, digits=np.arange(COUNT))
    with pytest.raises(DataError, match=r"a digit from 0 to 9 for each; found .* labels up to 59"):
        load("two-digits", folder=tmp_path)


def test_the_model_of_the_example_takes_each_size(tmp_path: Path) -> None:
    write(tmp_path)
    for side in (36, 18, 12):
        found = load("two-digits", folder=tmp_path, rows=30, side=side)
        model = build_model("examples.two_digits:LeNet", found.schema)
        outputs = model(torch.empty(21, 0, dtype=torch.int64), found.train.numeric)
        assert [output.shape for output in outputs] == [(21,)] * 4


@pytest.mark.skipif(not MNIST.is_dir(), reason="needs EQUIPOISE_DATA with mnist")
def test_of_the_real_digits_all_appear_at_both_places() -> None:
    found = load("two-digits", rows=2000)
    assert len(found.train) + len(found.validation) + len(found.test) == 2000
    rates = found.train.labels.mean(0)
    assert bool(((rates > 0.44) & (rates < 0.54)).all())  # of MNIST's test digits 48.6 % are high and 49.3 % even
    assert len(found.train.numeric.view(-1, 18, 18)[:, 0, -1].unique()) == 1  # no digit covers that corner
