"""A data set small enough to train on in a moment, with signal, a missing label and weights."""

import pytest
import torch

from equipoise.data import Dataset, Split
from equipoise.schema import Categorical, Numeric, Schema, Task


def _split(rows: int, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    categorical = torch.randint(0, 20, (rows, 2), generator=generator, dtype=torch.int32)
    numeric = torch.randn(rows, 2, generator=generator)
    logits = torch.stack([numeric[:, 0] * 2 - 1, categorical[:, 0].float() / 5 - 2], dim=1)
    labels = torch.bernoulli(logits.sigmoid(), generator=generator)
    labels[::7, 1] = torch.nan
    weight = torch.where(labels[:, 0] == 1, 1.0, 3.0)
    return Split(categorical, numeric, labels, weight)


@pytest.fixture(scope="session")
def tiny() -> Dataset:
    schema = Schema(
        [Categorical("user", 20), Categorical("item", 20)],
        [Numeric("price"), Numeric("age")],
        [Task("click"), Task("like")],
    )
    return Dataset("tiny", schema, _split(700, 0), _split(300, 1), _split(400, 2))
