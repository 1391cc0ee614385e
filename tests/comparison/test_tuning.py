"""An undefined NE is not a bad one: rates are chosen over the tasks that have a value, the same for all."""

import math

import pytest

from equipoise.comparison.tuned_rates import Rate
from equipoise.comparison.tuning import best_rates, choose_rates, mean_ne, tasks_with_ne
from equipoise.training import Run, SettingError

NAN = math.nan


def run(lr: float, method: str = "equal", seed: int = 1000, **ne: float) -> Run:
    return Run(method, seed, lr, validation={task: {"ne": value} for task, value in ne.items()})


def diverged(lr: float, method: str = "equal", seed: int = 1000) -> Run:
    return Run(method, seed, lr, status="diverged")


def test_a_task_without_a_value_is_in_no_mean() -> None:
    runs = [run(1e-3, click=0.8, buy=NAN), run(1e-2, click=0.7, buy=NAN)]
    assert tasks_with_ne(runs) == ("click",)
    assert choose_rates(runs) == {"equal": Rate(1e-2)}
    assert mean_ne(runs[:1], ["click"]) == 0.8


def test_no_task_with_a_value_is_refused_by_name() -> None:
    with pytest.raises(SettingError, match=r"for any task \(click, buy\).*--rate instead of --tune"):
        choose_rates([run(1e-3, click=NAN, buy=NAN), run(1e-2, click=NAN, buy=NAN)])


def test_a_rate_that_diverged_is_worse_than_any_that_did_not() -> None:
    assert choose_rates([run(1e-3, click=5.0, buy=NAN), diverged(1e-2)]) == {"equal": Rate(1e-3)}
    assert choose_rates([run(1e-2, click=5.0), diverged(1e-3)]) == {"equal": Rate(1e-2)}


def test_one_seed_that_diverged_is_enough() -> None:
    runs = [run(1e-3, click=0.9), run(1e-3, seed=1001, click=0.9), run(1e-2, click=0.1), diverged(1e-2, seed=1001)]
    assert choose_rates(runs) == {"equal": Rate(1e-3)}


def test_a_rate_with_fewer_seeds_than_others_is_not_chosen() -> None:
    lucky = run(1e-3, click=0.1)
    finalists = [run(1e-2, seed=seed, click=0.5 + 0.1 * seed) for seed in range(3)]
    others = [run(1e-1, seed=seed, click=0.5) for seed in range(3)]
    assert choose_rates([lucky, *finalists, *others]) == {"equal": Rate(1e-1)}


def test_finalists_are_the_best_that_did_not_diverge() -> None:
    runs = [run(1e-3, click=0.9), run(1e-2, click=0.7), run(1e-1, click=0.8), diverged(1.0)]
    assert best_rates(runs, "equal", 2) == [Rate(1e-2), Rate(1e-1)]
    assert best_rates(runs, "equal", 9) == [Rate(1e-2), Rate(1e-1), Rate(1e-3)]


def test_where_every_rate_diverged_the_lowest_is_taken() -> None:
    assert choose_rates([diverged(1e-2), diverged(1e-3)]) == {"equal": Rate(1e-3)}


def test_tasks_that_lack_a_value_in_some_seeds_are_in_no_mean_of_any_method() -> None:
    """Otherwise one method's mean would count an easy task that another method's mean leaves out."""
    runs = [
        run(1e-3, seed=1000, a=0.5, b=NAN, c=0.9), run(1e-3, seed=1001, a=NAN, b=0.5, c=0.9),
        run(1e-2, seed=1000, a=0.9, b=0.9, c=0.8), run(1e-2, seed=1001, a=0.9, b=0.9, c=0.8),
    ]  # fmt: skip
    assert tasks_with_ne(runs) == ("c",)
    assert choose_rates(runs) == {"equal": Rate(1e-2)}
    other = [run(1e-3, "pub", c=NAN, a=0.5), run(1e-2, "pub", c=0.1, a=0.6)]
    with pytest.raises(SettingError, match="not defined"):
        choose_rates(runs + other)


def test_rate_and_table_decay_are_chosen_together() -> None:
    runs = [
        Run("equal", 1000, lr, decay, validation={"click": {"ne": abs(lr - 1e-2) + abs(decay - 0.3)}})
        for lr in (1e-3, 1e-2)
        for decay in (0.0, 0.3, 1.0)
    ]
    assert choose_rates(runs) == {"equal": Rate(1e-2, 0.3)}
