"""Splits and data sets: what they refuse, and that batches hold each row once, in memory of their own."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from equipoise.data import DataError, Dataset, Split
from equipoise.schema import Batch, Categorical, Numeric, Schema, Task

SCHEMA = Schema([Categorical("user", 50), Categorical("ad", 9)], [Numeric("age")], [Task("click"), Task("like")])


def numbered_split(rows: int) -> Split:
    """Row i has age i, so a batch tells which rows it holds."""
    i = torch.arange(rows)
    labels = torch.stack([i % 2, i % 3 == 0], dim=1).float()
    labels[::7, 1] = torch.nan
    return Split(torch.stack([i % 50, i % 9], dim=1).int(), i.float()[:, None], labels, 1 + i.float())


def dataset(**splits: Split) -> Dataset:
    return Dataset("toy", SCHEMA, **{"train": numbered_split(20), "validation": numbered_split(5),
                                     "test": numbered_split(6)} | splits)  # fmt: skip


def rows_of(batches: list[Batch]) -> list[float]:
    return torch.cat([batch.numeric[:, 0] for batch in batches]).tolist()


def test_batches_in_order_hold_every_row_once_with_a_short_last_one() -> None:
    batches = list(numbered_split(10).batches(4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert rows_of(batches) == list(range(10))


def test_shuffled_batches_hold_distinct_rows_and_leave_out_the_short_last_one() -> None:
    batches = list(numbered_split(10).batches(4, generator=torch.Generator().manual_seed(0)))
    assert [len(batch) for batch in batches] == [4, 4]
    rows = rows_of(batches)
    assert len(set(rows)) == 8
    assert rows != sorted(rows)


def test_shuffling_keeps_the_columns_of_a_row_together() -> None:
    split = numbered_split(100)
    for batch in split.batches(16, generator=torch.Generator().manual_seed(3)):
        row = batch.numeric[:, 0].long()
        assert batch.categorical.dtype == torch.int64
        torch.testing.assert_close(batch.categorical, split.categorical[row].long())
        torch.testing.assert_close(batch.labels, split.labels[row], equal_nan=True)
        torch.testing.assert_close(batch.weight, split.weight[row])


def test_the_generator_decides_the_order_and_goes_on_to_another_in_the_next_epoch() -> None:
    split = numbered_split(64)
    first, second = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    epochs = [rows_of(list(split.batches(8, generator=generator))) for generator in (first, second, first)]
    assert epochs[0] == epochs[1]
    assert epochs[0] != epochs[2]


def test_a_batch_that_is_kept_does_not_change_while_the_stream_goes_on() -> None:
    stream = numbered_split(64).batches(8, generator=torch.Generator().manual_seed(0))
    first = next(stream)
    before = first.numeric.clone(), first.categorical.clone()
    later = list(stream)
    assert len(later) == 7
    torch.testing.assert_close((first.numeric, first.categorical), before)


@pytest.mark.parametrize(("batch_size", "message"), [(0, "batch_size must be at least 1"), (11, "found 10: lower")])
def test_batches_that_cannot_be_had_are_refused(batch_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        next(numbered_split(10).batches(batch_size, generator=torch.Generator()))


def test_a_split_moves_as_a_whole() -> None:
    moved = numbered_split(4).to("meta")
    assert {moved.categorical.device.type, moved.numeric.device.type, moved.labels.device.type,
            moved.weight.device.type} == {"meta"}  # fmt: skip


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_same_generator_gives_the_same_batches_on_a_gpu() -> None:
    here, there = (
        rows_of([batch.to("cpu") for batch in part.batches(8, generator=torch.Generator().manual_seed(2))])
        for part in (dataset().train, dataset().to("cuda").train)
    )
    assert here == there


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"categorical": torch.zeros(4, 2)},
            r"categorical .* torch.int32, found 2 dimensions of torch.float32",
        ),
        ({"numeric": torch.zeros(4)}, "numeric .* 2-dimensional .*, found 1 dim"),
        ({"weight": torch.ones(3)}, "weight .* as many rows as labels"),
        ({"numeric": torch.zeros(4, 1, device="meta")}, "numeric .* same device"),
    ],
)
def test_a_split_of_the_wrong_shape_or_type_is_refused(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(DataError, match=message):
        replace(numbered_split(4), **change)


def spoil(column: str, place: tuple[int, ...], value: float) -> Callable[[Split], Split]:
    def spoiled(split: Split) -> Split:
        tensor = getattr(split, column).clone()
        tensor[place] = value
        return replace(split, **{column: tensor})

    return spoiled


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            spoil("categorical", (2, 1), 9),
            "'ad' should hold ids from 0 to 8, found 1 others in 20 rows, the first 9",
        ),
        (spoil("categorical", (2, 0), -1), "column 'user' .* the first -1"),
        (spoil("numeric", (3, 0), float("nan")), "'age' should hold finite numbers, found 1 .* nan"),
        (spoil("numeric", (3, 0), float("inf")), "'age' should hold finite numbers, found 1 .* inf"),
        (spoil("labels", (4, 1), 0.5), r"'like' should hold 0, 1 or NaN \(missing\), found 1 .* 0.5"),
        (spoil("labels", (4, 0), float("inf")), "column 'click' .* the first inf"),
        (spoil("labels", (4, 0), -1), "column 'click' .* the first -1"),
        (spoil("weight", (5,), -2), "column 'weight' .* the first -2"),
        (spoil("weight", (5,), float("nan")), "column 'weight' .* the first nan"),
        (lambda split: replace(split, labels=split.labels[:, :1]), r"2 columns .*\(click, like\), found 1"),
        (lambda split: replace(split, numeric=split.numeric[:, :0]), r"1 columns .*\(age\), found 0"),
        (lambda _: numbered_split(0), "expected at least one row, found none"),
    ],
)
@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_bad_columns_are_named_with_their_split_and_count(
    name: str, change: Callable[[Split], Split], message: str
) -> None:
    with pytest.raises(DataError, match=rf"toy, {name} split.*{message}"):
        dataset(**{name: change(numbered_split(20))})


def test_the_column_with_the_most_wrong_values_is_the_one_named() -> None:
    split = spoil("labels", (slice(None), 1), 2)(spoil("labels", (0, 0), 2)(numbered_split(20)))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"'like' .* found 20 others in 20 rows"):
        dataset(train=split)


def test_missing_labels_are_no_mistake() -> None:
    assert bool(dataset().train.labels.isnan().any())


def test_best_ne_for_an_unknown_task_is_refused() -> None:
    with pytest.raises(DataError, match="tasks out of click, like; found share"):
        replace(dataset(), best_ne={"share": 0.5})


@pytest.mark.parametrize("setting", ["epochs", "batch_size"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "2"])
def test_epochs_and_batch_size_are_whole_numbers_from_one_up(setting: str, value: object) -> None:
    with pytest.raises(DataError, match=f"toy: {setting} should be a whole number from 1 up, found"):
        replace(dataset(), **{setting: value})
