"""A data set that is generated: two tasks, of which one has few positives and missing labels."""

import torch

from equipoise.data import Dataset, Split
from equipoise.schema import Categorical, Numeric, Schema, Task


def load(*, rows: int = 2000, seed: int = 0) -> Dataset:
    """Generate ``rows`` training rows, and half as many for validation and test each."""
    generator = torch.Generator().manual_seed(seed)

    def split(count: int) -> Split:
        ids = torch.randint(0, 12, (count, 2), generator=generator, dtype=torch.int32)
        numbers = torch.randn(count, 3, generator=generator)
        logits = torch.stack([numbers[:, 0] + ids[:, 0] / 6 - 1, 2 * numbers[:, 1] - 2], dim=1)
        labels = torch.bernoulli(logits.sigmoid(), generator=generator)
        labels[::9, 1] = torch.nan
        return Split(ids, numbers, labels, torch.ones(count))

    schema = Schema(
        [Categorical("coin", 12), Categorical("hand", 12)],
        [Numeric("height"), Numeric("force"), Numeric("spin")],
        [Task("heads"), Task("edge")],
    )
    return Dataset("coins", schema, split(rows), split(rows // 2), split(rows // 2), epochs=2, batch_size=100)
