"""The shards of an epoch hold each row once, whatever the row groups, ranks and workers."""

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from equipoise.data.stream.order import WINDOW, Epoch

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=40)
COUNT = st.integers(1, 5)


def generator(seed: int | None) -> torch.Generator | None:
    return None if seed is None else torch.Generator().manual_seed(seed)


def rows_of(epoch: Epoch, **shard: int) -> list[int]:
    """Return the numbers of a shard's rows in the order in which it yields them."""
    first = [sum(epoch.sizes[:group]) for group in range(len(epoch.sizes))]
    found = []
    for window in epoch.windows(**shard):
        rows = [first[piece.group] + row for piece in window.pieces for row in range(piece.start, piece.stop)]
        order = window.order()
        found += rows if order is None else [rows[i] for i in order.tolist()]
    return found


@given(sizes=SIZES, batch_size=COUNT, world=COUNT, workers=COUNT, seed=st.none() | st.integers(0, 99))
def test_ranks_and_workers_hold_each_row_once(
    sizes: list[int], batch_size: int, world: int, workers: int, seed: int | None
) -> None:
    epoch = Epoch.of(sizes, batch_size=batch_size, generator=generator(seed), drop_last=False)
    found = [
        row
        for rank in range(world)
        for worker in range(workers)
        for row in rows_of(epoch, rank=rank, world=world, worker=worker, workers=workers)
    ]
    assert sorted(found) == list(range(sum(sizes)))


@given(sizes=SIZES, batch_size=COUNT, world=COUNT, workers=COUNT)
def test_without_the_last_rows_every_rank_has_as_many_whole_batches(
    sizes: list[int], batch_size: int, world: int, workers: int
) -> None:
    epoch = Epoch.of(sizes, batch_size=batch_size, generator=generator(0), drop_last=True)
    each = sum(sizes) // (batch_size * world)
    found: list[int] = []
    for rank in range(world):
        shards = [rows_of(epoch, rank=rank, world=world, worker=worker, workers=workers) for worker in range(workers)]
        assert sum(map(len, shards)) == each * batch_size
        assert [len(shard) for shard in shards] == [
            batch_size * epoch.batches(rank=rank, world=world, worker=worker, workers=workers)
            for worker in range(workers)
        ]
        found += [row for shard in shards for row in shard]
    assert len(set(found)) == len(found) == each * batch_size * world


@given(sizes=SIZES, seed=st.integers(0, 99))
def test_the_seed_decides_the_order(sizes: list[int], seed: int) -> None:
    def order(seed: int) -> list[int]:
        return rows_of(Epoch.of(sizes, batch_size=1, generator=generator(seed), drop_last=True))

    assert order(seed) == order(seed)
    if sum(sizes) > 20:
        assert order(seed) != order(seed + 1)


def test_windows_mix_rows_of_as_many_row_groups() -> None:
    epoch = Epoch.of([50] * 64, batch_size=10, generator=generator(0), drop_last=True)
    windows = epoch.windows()
    assert [len(window.pieces) for window in windows] == [WINDOW] * 4
    first_batch = rows_of(epoch)[:10]
    assert len({row // 50 for row in first_batch}) > 5
    orders = [window.order() for window in windows]
    assert not any(torch.equal(a, b) for a, b in pairwise(orders) if a is not None)


def test_every_row_group_comes_first_equally_often() -> None:
    firsts = torch.zeros(8)
    for seed in range(800):
        firsts[rows_of(Epoch.of([1] * 8, batch_size=1, generator=generator(seed), drop_last=True))[0]] += 1
    assert float(((firsts - 100) ** 2 / 100).sum()) < 24  # chi-squared with 7 degrees of freedom, p = .001
