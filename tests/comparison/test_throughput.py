import statistics
import subprocess
import sys
from functools import partial
from math import comb
from pathlib import Path

import pytest
import torch

from equipoise.comparison import throughput as throughput_module
from equipoise.comparison.throughput import peak_memory, throughput_ratio
from equipoise.measuring import median_interval
from equipoise.schema import Batch, Numeric, Schema, Task
from equipoise.settings import TrainingSettings
from equipoise.training import METHODS, Learner

SCHEMA = Schema([], [Numeric(f"number{index}") for index in range(50)], [Task("click"), Task("like")])

ROOT = Path(__file__).parents[2]


def learner(method: str = "equal", width: int = 10) -> Learner:
    options = {"bottom": [width], "tower": []}
    return Learner(SCHEMA, METHODS[method], TrainingSettings.of(lr=1e-3, seed=0, model_options=dict(options)))


def batch(rows: int = 8) -> Batch:
    return Batch(torch.empty(rows, 0).long(), torch.ones(rows, 50), torch.ones(rows, 2), torch.ones(rows))


@pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 15, 41, 100])
def test_the_interval_covers_the_median_as_often_as_it_says_and_no_narrower_one_does(count: int) -> None:
    low, high = median_interval([float(value) for value in range(1, count + 1)])

    def coverage(rank: float) -> float:  # of the interval from the rank-th smallest to the rank-th largest
        return 1 - 2 * sum(comb(count, below) for below in range(int(rank))) / 2**count

    assert high == count + 1 - low
    assert low == 1 or coverage(low) >= 0.95
    assert coverage(low + 1) < 0.95 or low + 1 > count / 2


def test_the_ratio_is_the_median_of_interleaved_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    fast, slow = learner(), learner()
    order, seconds = [], {id(fast): iter(range(1, 100)), id(slow): iter(range(3, 300, 3))}

    def clock(timed: Learner, _: object, steps: int) -> float:
        order.append("fast" if timed is fast else "slow")
        assert steps == 4
        return next(seconds[id(timed)])

    monkeypatch.setattr(throughput_module, "_seconds", clock)
    measured = throughput_ratio(slow, fast, [batch()], pairs=5, steps=4)
    assert measured.ratio == statistics.median([1 / 3] * 5)
    assert measured.pairs == 5
    assert order == ["slow", "fast"] + ["fast", "slow", "slow", "fast"] * 2 + ["fast", "slow"]


def test_pairs_end_with_the_time_but_there_are_enough_for_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput_module, "_seconds", lambda *_: 2.0)
    one, other = learner(), learner()
    assert throughput_ratio(one, other, [batch()], seconds=1.0).pairs == 6
    assert throughput_ratio(one, other, [batch()], seconds=30.0).pairs == 8
    assert throughput_ratio(one, other, [batch()], seconds=1e9).pairs == 15


def test_blocks_take_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(Learner, "step", lambda timed, _: taken.append(timed))
    one, other = learner(), learner()
    measured = throughput_ratio(one, other, [batch()], pairs=2, steps=3)
    assert (taken.count(one), taken.count(other)) == (9, 9)
    assert measured.low <= measured.ratio <= measured.high


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(ValueError, match="found 0, 1 and 1"):
        throughput_ratio(learner(), learner(), [batch()], pairs=0, steps=1)


def test_peak_memory_counts_weights_gradients_and_adams_state_and_repeats() -> None:
    width = 20_000  # so that all else is small against the first layer: 51 × width floats
    build = partial(learner, width=width)
    measured = peak_memory(build, batch())
    layer = 51 * width * 4
    assert 4 * layer < measured < 6.5 * layer  # weight, gradient, two moments, and what Adam takes for its step
    assert peak_memory(build, batch()) == measured


def test_peak_memory_of_one_model_per_task_is_that_of_both() -> None:
    joint = peak_memory(partial(learner, width=20_000), batch())
    alone = peak_memory(partial(learner, "single-task", width=20_000), batch())
    assert alone > 1.5 * joint


def test_the_profiler_says_nothing_to_the_user() -> None:
    # In a process of its own: torch decides at a process's first profile how much it says.
    code = "from tests.comparison.test_throughput import *; peak_memory(learner, batch())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
