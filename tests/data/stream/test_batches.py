"""Ranks and workers share a stream without loss or duplication, and a resumed stream yields the same batches."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from equipoise.data import DataError, StreamedBatches
from equipoise.data.stream import write_prepared
from equipoise.errors import SettingError
from tests.data.stream.made_up import content_of, made_up_blocks, numbers_of

# Fewer cores than workers, and threads of earlier tests, are no fault here.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:.*multi-threaded, use of fork")


def batches_of(stream: StreamedBatches, workers: int = 0, *, most: int = 10_000) -> list[list[int]]:
    """Return the numbers of the rows of each batch."""
    context = "fork" if workers else None
    loader = DataLoader(stream, batch_size=None, num_workers=workers, multiprocessing_context=context)
    found = []
    for batch in loader:
        found.append(numbers_of([batch]))
        if len(found) == most:
            break
    return found


@pytest.mark.parametrize("workers", [0, 3])
def test_ranks_and_workers_yield_each_row_once(prepared: Path, workers: int) -> None:
    found: list[list[int]] = []
    for rank in range(2):
        stream = StreamedBatches(prepared, batch_size=8, rank=rank, world=2, drop_last=False)
        yielded = batches_of(stream, workers)
        assert len(yielded) == len(stream)
        found += yielded
    assert sorted(row for batch in found for row in batch) == list(range(258))


def test_without_the_last_rows_ranks_yield_as_many_whole_batches(prepared: Path) -> None:
    streams = [StreamedBatches(prepared, batch_size=8, rank=rank, world=3) for rank in range(3)]
    found = [batches_of(stream) for stream in streams]
    assert [len(yielded) for yielded in found] == [10, 10, 10]
    rows = [row for yielded in found for batch in yielded for row in batch]
    assert len(set(rows)) == len(rows) == 240


def test_one_rank_yields_the_batches_of_train(prepared: Path) -> None:
    stream = StreamedBatches(prepared, batch_size=8, seed=5)
    stream.set_epoch(2)
    generator = torch.Generator().manual_seed(5 * 1_000_003 + 2)
    assert batches_of(stream) == [numbers_of([batch]) for batch in stream.split.batches(8, generator=generator)]


def test_seed_and_epoch_decide_the_order(prepared: Path) -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        stream = StreamedBatches(prepared, batch_size=8, seed=seed)
        stream.set_epoch(epoch)
        return batches_of(stream)

    assert order(0, 1) == order(0, 1)
    assert len({str(order(seed, epoch)) for seed in range(2) for epoch in range(2)}) == 4


def test_unshuffled_rows_come_as_they_are_stored(prepared: Path) -> None:
    stream = StreamedBatches(prepared, batch_size=100, shuffle=False, drop_last=False)
    assert [row for batch in stream for row in numbers_of([batch])] == list(range(258))


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("delivered", [1, 5, 32])
def test_a_resumed_stream_yields_the_batches_that_would_have_come(prepared: Path, workers: int, delivered: int) -> None:
    uninterrupted = StreamedBatches(prepared, batch_size=8, seed=1)
    uninterrupted.set_epoch(1)
    expected = batches_of(uninterrupted, workers)
    interrupted = StreamedBatches(prepared, batch_size=8, seed=1)
    interrupted.set_epoch(1)
    assert batches_of(interrupted, workers, most=delivered) == expected[:delivered]
    state = interrupted.state_dict(batches=delivered if workers else None)
    resumed = StreamedBatches(prepared, batch_size=8, seed=1)
    resumed.load_state_dict(state)
    resumed.set_epoch(1)  # a loop sets the epoch that it goes on with
    assert batches_of(resumed, workers) == expected[delivered:]
    for stream in (uninterrupted, resumed):
        stream.set_epoch(2)
    assert batches_of(resumed, workers) == batches_of(uninterrupted, workers)


def test_workers_that_persist_learn_of_the_next_epoch(prepared: Path) -> None:
    def epochs(*, persistent: bool) -> Iterator[list[int]]:
        stream = StreamedBatches(prepared, batch_size=8)
        loader = DataLoader(
            stream, batch_size=None, num_workers=2, persistent_workers=persistent, multiprocessing_context="fork"
        )
        for epoch in range(2):
            stream.set_epoch(epoch)
            yield from (numbers_of([batch]) for batch in loader)

    assert list(epochs(persistent=True)) == list(epochs(persistent=False))


def test_a_state_needs_the_delivered_batches_where_workers_read_ahead(prepared: Path) -> None:
    stream = StreamedBatches(prepared, batch_size=8)
    batches_of(stream, 1, most=2)
    with pytest.raises(SettingError, match=r"call state_dict\(batches=...\)"):
        stream.state_dict()


def test_a_state_of_other_settings_is_refused(prepared: Path) -> None:
    state = StreamedBatches(prepared, batch_size=8).state_dict()
    with pytest.raises(SettingError, match="another stream: batch_size: 8 there, 9 here; world: 1 there, 2 here"):
        StreamedBatches(prepared, batch_size=9, rank=0, world=2).load_state_dict(state)


def test_a_state_of_other_workers_is_refused(prepared: Path) -> None:
    stream = StreamedBatches(prepared, batch_size=8)
    batches_of(stream, 2, most=2)
    state = stream.state_dict(batches=2)
    resumed = StreamedBatches(prepared, batch_size=8)
    resumed.load_state_dict(state)
    with pytest.raises(SettingError, match="saved under 2 workers, found 0"):
        next(iter(resumed))


def test_torchrun_states_rank_and_world(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    stream = StreamedBatches(prepared, batch_size=8)
    assert batches_of(stream) == batches_of(StreamedBatches(prepared, batch_size=8, rank=2, world=3))


def test_what_is_out_of_range_is_refused(prepared: Path) -> None:
    with pytest.raises(SettingError, match="rank must be from 0 to 1, found 2"):
        StreamedBatches(prepared, batch_size=8, rank=2, world=2)
    with pytest.raises(SettingError, match="batch_size must be at least 1, found 0"):
        StreamedBatches(prepared, batch_size=0)
    with pytest.raises(DataError, match="at least one batch of 100 rows for each of 3 ranks, found 258"):
        StreamedBatches(prepared, batch_size=100, rank=0, world=3)


def test_a_changed_part_is_named_from_within_a_worker(tmp_path: Path) -> None:
    blocks = made_up_blocks([9, 9])
    write_prepared(tmp_path, {}, lambda: content_of(blocks))
    stream = StreamedBatches(tmp_path, batch_size=4)
    part = tmp_path / "train/part-00001.parquet"
    part.write_bytes(bytes(len(part.read_bytes())))
    with pytest.raises(DataError, match=r"part-00001\.parquet cannot be read"):
        batches_of(stream, 1)
