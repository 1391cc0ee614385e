"""A streamed split gives what the same rows in memory give."""

import pickle
from pathlib import Path

import pytest
import torch

from equipoise.data import Dataset, Split, ahead, from_prepared
from equipoise.data.stream import StreamedSplit, layout
from tests.data.stream.conftest import BLOCKS
from tests.data.stream.made_up import ABOUT, SCHEMA, made_up_rows, numbers_of, prepare_made_up


@pytest.fixture(scope="module")
def in_memory() -> Split:
    return made_up_rows(sum(BLOCKS))


@pytest.fixture(scope="module")
def dataset(prepared: Path) -> Dataset:
    return from_prepared(prepared)


def whole(folder: Path) -> Split:
    """Return the rows for training, put together in the order of the blocks."""
    return from_prepared(folder).train.take(slice(None))


def assert_same(one: Split, other: Split) -> None:
    for name in ("categorical", "numeric", "labels", "weight", "importance"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=0, equal_nan=True, msg=name)
    torch.testing.assert_close(one.keys, other.keys)


def test_the_data_set_is_described_as_it_was(dataset: Dataset) -> None:
    assert dataset.schema == SCHEMA
    for name in ("name", "notes", "epochs", "batch_size", "group", "values", "slices", "user_groups", "best_ne"):
        assert getattr(dataset, name) == getattr(ABOUT, name), name
    assert [len(split) for split in (dataset.train, dataset.validation, dataset.test)] == [258, 147, 105]


def test_every_column_comes_back_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "_GROUP_ROWS", 8)  # several row groups in a part
    rows = made_up_rows(30)
    assert_same(whole(prepare_made_up(tmp_path / "out", [30])), rows)


def test_labels_weights_and_keys_are_those_of_the_rows(dataset: Dataset) -> None:
    rows = dataset.train.take(slice(None))
    split = dataset.train
    assert_same(Split(rows.categorical, rows.numeric, split.labels, split.weight, split.importance, split.keys), rows)


@pytest.mark.parametrize("index", [slice(5, 40), slice(None, None, 7), torch.tensor([200, 3, 3, 0, 257]), slice(0)])
def test_rows_are_taken_in_the_order_asked_for(dataset: Dataset, index: slice | torch.Tensor) -> None:
    assert_same(dataset.train.take(index), dataset.train.take(slice(None)).take(index))


@pytest.mark.parametrize("batch_size", [1, 7, 64, 300])
def test_unshuffled_batches_are_those_in_memory(dataset: Dataset, batch_size: int) -> None:
    streamed = list(dataset.train.batches(batch_size))
    expected = list(dataset.train.take(slice(None)).batches(batch_size))
    assert len(streamed) == len(expected)
    for one, other in zip(streamed, expected, strict=True):
        for name in ("categorical", "numeric", "labels", "weight", "importance"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=0, equal_nan=True)
        assert one.categorical.dtype == torch.int64


def test_shuffled_batches_hold_whole_rows_once(dataset: Dataset) -> None:
    numbers: list[int] = []
    rows = dataset.train.take(slice(None))
    for batch in dataset.train.batches(8, generator=torch.Generator().manual_seed(0)):
        row = batch.numeric[:, 0].long()
        numbers += row.tolist()
        torch.testing.assert_close(batch.categorical, rows.categorical[row].long())
        torch.testing.assert_close(batch.numeric, rows.numeric[row])
        torch.testing.assert_close(batch.weight, rows.weight[row])
        torch.testing.assert_close(batch.importance, rows.importance[row] if rows.importance is not None else None)
    assert len(numbers) == len(set(numbers)) == 256
    assert numbers != sorted(numbers)


@pytest.mark.parametrize("skip", [0, 1, 13, 31, 32])
def test_skipped_batches_are_those_left_out(dataset: Dataset, skip: int) -> None:
    def batches(skip: int) -> list[list[int]]:
        found = dataset.train.batches(8, generator=torch.Generator().manual_seed(3), skip=skip)
        return [numbers_of([batch]) for batch in found]

    assert batches(skip) == batches(0)[skip:]


def test_what_lies_before_a_skipped_batch_is_not_read(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    read_window = StreamedSplit._read

    def counted(split: StreamedSplit, window: object) -> object:
        read.append(1)
        return read_window(split, window)  # type: ignore[arg-type]

    monkeypatch.setattr(StreamedSplit, "_read", counted)
    list(dataset.train.batches(8))
    assert len(read) == len(BLOCKS)
    read.clear()
    list(dataset.train.batches(8, skip=31))
    assert len(read) == 1  # the last 10 rows are in the last row group of 11


def test_a_batch_keeps_a_few_others_alive_and_no_window(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "_BLOCK_BYTES", 2 * 4 * dataset.train.nbytes // len(dataset.train))  # of two batches
    for batch in dataset.train.batches(4, generator=torch.Generator().manual_seed(0)):
        for column in (batch.categorical, batch.numeric, batch.labels, batch.weight):
            assert column.untyped_storage().nbytes() <= 2 * column.nbytes


def test_a_pickled_split_holds_no_rows(dataset: Dataset) -> None:
    assert len(dataset.validation.labels) == 147  # read and kept
    words = pickle.dumps(dataset.validation)
    assert "labels" not in pickle.loads(words).__dict__
    torch.testing.assert_close(pickle.loads(words).labels, dataset.validation.labels, equal_nan=True)


def test_fingerprints_tell_rows_apart(prepared: Path, tmp_path: Path) -> None:
    other = prepare_made_up(tmp_path / "other", [*BLOCKS[:-1], BLOCKS[-1] + 1])
    same = prepare_made_up(tmp_path / "same", BLOCKS)
    assert from_prepared(prepared).fingerprint() == from_prepared(same).fingerprint()
    assert from_prepared(prepared).fingerprint() != from_prepared(other).fingerprint()


def test_a_split_smaller_than_a_batch_is_refused_when_shuffled(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="at least one batch of 259 rows, found 258"):
        next(dataset.train.batches(259, generator=torch.Generator()))
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        next(dataset.train.batches(0))
