"""Two-digit MNIST: images of two overlaid digits, each with two binary tasks. Not a recommender."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from equipoise.data.dataset import Dataset, Split
from equipoise.data.sets.published_files import find_files, folder_of
from equipoise.data.source import DataSource
from equipoise.errors import DataError
from equipoise.schema import Schema, Task, Vector

__all__ = ["SOURCE", "TASKS", "load", "read_idx"]

TASKS: Final = (
    Task("left_high", "the digit at the left top is 5 or more"),
    Task("left_even", "the digit at the left top is even"),
    Task("right_high", "the digit at the right bottom is 5 or more"),
    Task("right_even", "the digit at the right bottom is even"),
)

_SHIFT: Final = 8  # pixels between the two digits' places, along both axes
_SHARES: Final = {"train": 0.7, "validation": 0.1, "test": 0.2}
_SIDES: Final = (36, 18, 12)
_AT_ONCE: Final = 4096
_FILES: Final = {"images": "t10k-images-idx3-ubyte.gz", "labels": "t10k-labels-idx1-ubyte.gz"}


def load(*, folder: Path | str | None = None, rows: int = 20_000, side: int = 18, seed: int = 0) -> Dataset:
    """Overlay pairs of MNIST's test images, one at the left top and one at the right bottom (Sener & Koltun, 2018).

    The digits overlap: 28 × 28 pixels each, 8 pixels apart on an image of 36 × 36, brighter pixels on top (MultiMNIST
    of Sabour et al., 2017). There the tasks are two, each of ten classes; here each digit has two binary ones. Tasks of
    the same digit help each other, tasks of different digits compete for the trunk.

    Args:
        folder: holds ``t10k-images-idx3-ubyte.gz`` and ``t10k-labels-idx1-ubyte.gz``; by default
            ``$EQUIPOISE_DATA/mnist``, else ``mnist`` in the cache folder.
        rows: images in all three splits, from 10 up.
        side: width and height of the images: 36, or by the mean of blocks 18 or 12.
        seed: the seed of the digits' split and of the pairs, ≥ 0.

    Raises:
        DataError: an option is out of range, a file is not there, damaged, or holds something else.
    """
    _check_options(rows, side, seed)
    place = folder_of("mnist", folder)
    images = read_idx(find_files(place, [_FILES["images"]], SOURCE)[0], dimensions=3)
    digits = read_idx(find_files(place, [_FILES["labels"]], SOURCE)[0], dimensions=1)
    if len(images) != len(digits) or images.shape[1:] != (28, 28) or len(images) < 30 or int(digits.max()) > 9:
        raise DataError(
            f"{place}: expected 28 × 28 images, 30 or more, and a digit from 0 to 9 for each; found images of shape "
            f"{tuple(images.shape)} and {len(digits)} labels up to {int(digits.max())}: fetch both files again."
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    splits, first = {}, 0
    for name, share in _SHARES.items():
        own = order[first : first + round(share * len(order))]  # each digit's image is in one split alone
        first += len(own)
        pairs = own[torch.randint(len(own), (max(1, round(share * rows)), 2), generator=generator)]
        splits[name] = (_overlaid(images, pairs, side), _labels(digits, pairs))
    train = splits["train"][0]
    mean, scale = float(train.mean()), float(train.std())
    schema = Schema([], [Vector("pixels", side * side)], TASKS)

    def split(name: str) -> Split:
        pixels, labels = splits[name]
        none = torch.empty(len(pixels), 0, dtype=torch.int32)
        return Split(none, pixels.sub_(mean).div_(scale), labels, torch.ones(len(pixels)))

    return Dataset(
        SOURCE.name,
        schema,
        split("train"),
        split("validation"),
        split("test"),
        notes=(
            f"Two overlaid MNIST digits on {side} × {side} pixels: {rows:,} pairs of {len(images):,} images. The image "
            "of a digit is in one split alone. Not a recommender, and not comparable with published MultiMNIST "
            "numbers, which classify ten digits at the full size.",
        ),
        **SOURCE.for_dataset(),
    )


def _check_options(rows: object, side: object, seed: object) -> None:
    if type(rows) is not int or rows < 10:
        raise DataError(f"two-digits: rows should be a whole number from 10 up, found {rows!r}.")
    if side not in _SIDES:
        raise DataError(
            f"two-digits: side should be {', '.join(map(str, _SIDES[:-1]))} or {_SIDES[-1]}, found {side!r}."
        )
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise DataError(f"two-digits: seed should be a whole number from 0 up, found {seed!r}.")


def read_idx(file: Path, /, *, dimensions: int) -> Tensor:
    """Return the bytes of an idx file packed by gzip, uint8, in its shape.

    The form, as MNIST's page states it: two zero bytes, the type (8: unsigned bytes), the number of dimensions, the
    size of each as four bytes, most significant first, then the values.

    Raises:
        DataError: the file is damaged, or holds another type or number of dimensions.
    """
    try:
        content = gzip.decompress(file.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{file} should be a complete gzip file, but cannot be unpacked ({error}): copy it again."
        ) from error
    head = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) < head:
        raise DataError(
            f"{file}: expected an idx file of unsigned bytes in {dimensions} dimensions, found one that begins with "
            f"{content[:4].hex(' ') or 'nothing'}: use the file as published."
        )
    shape = [int.from_bytes(content[place : place + 4], "big") for place in range(4, head, 4)]
    values = torch.frombuffer(bytearray(content), dtype=torch.uint8)[head:]
    if len(values) != torch.Size(shape).numel():
        raise DataError(
            f"{file}: expected {torch.Size(shape).numel():,} values ({' × '.join(map(str, shape))}), found "
            f"{len(values):,}: copy the file again."
        )
    return values.view(shape)


def _overlaid(images: Tensor, pairs: Tensor, side: int) -> Tensor:
    """Return the images of pairs as rows of pixels from 0 to 1, float32, shape [pairs, side²]."""
    whole = images.shape[1] + _SHIFT
    found = torch.empty(len(pairs), side * side)
    for start in range(0, len(pairs), _AT_ONCE):
        left, right = images[pairs[start : start + _AT_ONCE]].unbind(1)
        canvas = torch.zeros(len(left), whole, whole, dtype=torch.uint8)
        canvas[:, :-_SHIFT, :-_SHIFT] = left
        canvas[:, _SHIFT:, _SHIFT:] = torch.maximum(canvas[:, _SHIFT:, _SHIFT:], right)
        pooled = avg_pool2d(canvas[:, None].float().div_(255), whole // side)
        found[start : start + len(left)] = pooled.flatten(1)
    return found


def _labels(digits: Tensor, pairs: Tensor) -> Tensor:
    """Return the labels of :data:`TASKS`, float32, shape [pairs, 4]."""
    shown = digits[pairs]
    return torch.stack([shown >= 5, shown % 2 == 0], dim=2).flatten(1).float()


SOURCE: Final = DataSource(
    "two-digits",
    load,
    summary="Images of two overlaid MNIST digits: is each 5 or more, is each even. Not a recommender; train "
    "`examples.two_digits:LeNet` on it.",
    obtain=f"Download MNIST's {_FILES['images']} and {_FILES['labels']} into $EQUIPOISE_DATA/mnist.",
    columns=f"the pixels as one vector; tasks {', '.join(f'`{task.name}`' for task in TASKS)}",
    splits="70 %, 10 % and 20 % of the digits' images, by seed; pairs are drawn within a split",
    epochs=6,
    batch_size=256,
    licence="CC BY-SA 3.0 (Yann LeCun, Corinna Cortes)",
    source="MNIST; Sabour et al., NeurIPS 2017; Sener & Koltun, NeurIPS 2018",
)
