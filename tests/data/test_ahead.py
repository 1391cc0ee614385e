"""Rows gathered ahead are those that were asked for, in their order."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import fields
from functools import partial

import pytest
import torch

from equipoise.data import Split
from equipoise.data.ahead import ahead, batches_of_blocks, spans
from equipoise.schema import Batch


def rows(count: int, *, importance: bool = True) -> Split:
    generator = torch.Generator().manual_seed(0)
    return Split(
        torch.randint(2**31 - 1, (count, 3), dtype=torch.int32, generator=generator),
        torch.randn(count, 2, generator=generator),
        torch.randn(count, 2, generator=generator).where(torch.rand(count, 2, generator=generator) < 0.5, torch.nan),
        torch.rand(count, generator=generator),
        torch.rand(count, generator=generator) if importance else None,
    )


def assert_equal(found: Batch, expected: Batch) -> None:
    for column in fields(Batch):
        one, other = getattr(found, column.name), getattr(expected, column.name)
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
            assert one.is_contiguous()


def test_results_come_in_turn_and_one_is_made_ahead() -> None:
    made: list[int] = []
    second_is_made = threading.Event()

    def make(number: int) -> int:
        made.append(number)
        if number == 1:
            second_is_made.set()
        return number

    results = ahead(partial(make, number) for number in range(5))
    assert next(results) == 0
    assert second_is_made.wait(60)  # without being asked for
    assert made == [0, 1]
    assert list(results) == [1, 2, 3, 4]
    assert list(ahead([])) == []


def test_an_exception_comes_in_its_turn() -> None:
    def fail() -> int:
        raise KeyError("the second")

    results = ahead([lambda: 1, fail, lambda: 3])
    assert next(results) == 1
    with pytest.raises(KeyError, match="the second"):
        next(results)


def test_no_thread_is_left_when_a_training_ends_early() -> None:
    before = threading.active_count()
    results = ahead(partial(int, number) for number in range(100))
    next(results)
    results.close()
    assert threading.active_count() == before


@pytest.mark.parametrize(("first", "last", "batch"), [(0, 100, 10), (20, 107, 10), (13, 64, 7), (5, 6, 10), (4, 4, 2)])
def test_blocks_cover_the_rows_end_with_batches_and_are_bounded(first: int, last: int, batch: int) -> None:
    found = list(spans(first, last, batch, 2**20 // batch))  # four batches are 4 MiB
    assert [place for span in found for place in range(*span)] == list(range(first, last))
    assert all(stop % batch == 0 or stop == last for _, stop in found)
    assert all(stop - start <= 4 * batch for start, stop in found)
    assert all(stop - start <= batch for start, stop in found[:1])  # for which a training waits


def test_a_batch_larger_than_a_block_is_a_block() -> None:
    assert list(spans(0, 300, 100, 2**30)) == [(0, 100), (100, 200), (200, 300)]


@pytest.mark.parametrize("importance", [True, False])
def test_batches_are_cut_from_blocks_of_any_length(*, importance: bool) -> None:
    whole = rows(57, importance=importance).gather(slice(None))

    def blocks() -> Iterator[Batch]:
        for start, stop in ((0, 3), (3, 3), (3, 24), (24, 30), (30, 57)):
            yield whole[start:stop]

    found = list(batches_of_blocks(blocks(), 8))
    assert [len(batch) for batch in found] == [8] * 7 + [1]
    for place, batch in enumerate(found):
        assert_equal(batch, whole[8 * place : 8 * place + 8])


@pytest.mark.parametrize("importance", [True, False])
@pytest.mark.parametrize("skip", [0, 3])
def test_shuffled_batches_are_the_rows_of_the_permutation(skip: int, *, importance: bool) -> None:
    split = rows(1003, importance=importance)
    order = torch.randperm(1003, generator=torch.Generator().manual_seed(5))
    found = list(split.batches(50, generator=torch.Generator().manual_seed(5), skip=skip))
    assert len(found) == 20 - skip
    for place, batch in enumerate(found, start=skip):
        index = order[50 * place : 50 * place + 50]
        expected = split.take(index)
        assert batch.categorical.dtype == torch.int64
        assert_equal(
            batch,
            Batch(expected.categorical.long(), expected.numeric, expected.labels, expected.weight, expected.importance),
        )


def test_rows_that_are_gathered_have_memory_of_their_own() -> None:
    split = rows(20)
    for index in (slice(3, 9), torch.tensor([7, 7, 1])):
        batch = split.gather(index)
        before = split.numeric.clone()
        batch.numeric.fill_(9)
        torch.testing.assert_close(split.numeric, before)
        assert batch.weight.untyped_storage().nbytes() == batch.weight.nbytes
