"""A small prepared folder with every kind of column, whose rows can be told apart."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from equipoise.data import Split
from equipoise.data.stream import About, Block, Content, write_prepared
from equipoise.schema import Batch, Categorical, Categories, Numeric, Schema, Task, Vector

SCHEMA = Schema(
    [Categorical("user", 50), Categories("history", 20, 3)],
    [Numeric("age"), Vector("image", 2)],
    [Task("click"), Task("spend", kind="regression")],
)
ABOUT = About(
    name="made up", columns=SCHEMA, keys=("row",), importance=True, epochs=2, batch_size=8,
    notes=("Made up.",), group="row", values={"row": ["none"]}, slices=("user",), user_groups=("user",),
)  # fmt: skip


def made_up_rows(rows: int, *, first: int = 0) -> Split:
    """Return rows whose key ``row`` counts from ``first``."""
    generator = torch.Generator().manual_seed(first)
    row = torch.arange(first, first + rows)
    history = torch.randint(0, 20, (rows, 3), generator=generator, dtype=torch.int32)
    return Split(
        torch.cat([(row[:, None] % 50).int(), history], 1),
        torch.cat([row[:, None].float(), torch.randn(rows, 2, generator=generator)], 1),
        torch.stack([(torch.rand(rows, generator=generator) < 0.3).float(), torch.full((rows,), float("nan"))], 1),
        torch.rand(rows, generator=generator),
        torch.rand(rows, generator=generator),
        {"row": row},
    )


def made_up_blocks(rows: list[int]) -> list[Block]:
    """Return blocks with so many rows for training, and a few of each other split."""
    firsts = [sum(rows[:i]) for i in range(len(rows))]
    return [
        {
            "train": made_up_rows(count, first=first),
            "validation": made_up_rows(7, first=1_000_000 + 7 * block),
            "test": made_up_rows(5, first=2_000_000 + 5 * block),
        }
        for block, (count, first) in enumerate(zip(rows, firsts, strict=True))
    ]


def prepare_made_up(folder: Path, rows: list[int]) -> Path:
    """Prepare such blocks and return the folder."""
    write_prepared(folder, {"rows": rows}, lambda: content_of(made_up_blocks(rows)))
    return folder


def content_of(blocks: Sequence[Block], about: About = ABOUT) -> Content:
    """Return the content of a folder with these blocks."""
    return Content(about, None, lambda first: iter(blocks[first:]))


def numbers_of(batches: Iterable[Batch]) -> list[int]:
    """Return the numbers of the rows, which stand in their first numeric column."""
    return [int(number) for batch in batches for number in batch.numeric[:, 0]]
