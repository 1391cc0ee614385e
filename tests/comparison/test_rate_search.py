"""The search for rates: the grid as it is, TPE near the best, the same proposals for the same scores."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from equipoise import MultiBalance
from equipoise.comparison import runner as runner_module
from equipoise.comparison.jobs import method_at
from equipoise.comparison.rate_search import RateSearch
from equipoise.comparison.result_folder import ResultFolder
from equipoise.comparison.runner import run_comparison
from equipoise.comparison.tuned_rates import Choice, Rate
from equipoise.comparison.tuning import choose_rates
from equipoise.data import load
from equipoise.methods import METHODS, Method, parse_method, register
from equipoise.report.page import write_markdown
from equipoise.settings import Settings
from equipoise.training import Run, train

BEST = Rate(0.02, 0.8)
EQUAL, TASKS = parse_method("equal"), ("click", "like", "long_view", "conversion")


def score(rate: Rate) -> float:
    return abs(math.log10(rate.lr / BEST.lr)) + abs(rate.table_decay - BEST.table_decay) / 3


def proposals(score: Callable[[Rate], float | None], **settings: object) -> list[Rate]:
    search, found = RateSearch(Settings.of(**settings), EQUAL, TASKS), []
    while asked := search.ask():
        found += asked
        search.tell({rate: score(rate) for rate in asked})
    assert len(found) == search.trials
    return found


def test_without_trials_every_point_of_the_grid_is_proposed_once_in_its_order_and_in_one_round() -> None:
    settings = Settings.of(grid=[1e-2, 1e-3, 1e-2], decay_grid=[0.3, 0.0])
    assert RateSearch(settings, EQUAL, TASKS).rounds == 1
    assert RateSearch(settings, EQUAL, TASKS).ask() == [
        Rate(1e-2, 0.3),
        Rate(1e-2, 0.0),
        Rate(1e-3, 0.3),
        Rate(1e-3, 0.0),
    ]


def test_with_trials_the_search_stays_within_the_grids_and_comes_nearer_to_the_best_than_the_grid() -> None:
    found = proposals(score, tune_trials=30)
    assert all(1e-3 <= rate.lr <= 3e-2 and 0 <= rate.table_decay <= 3 for rate in found)
    assert min(map(score, found)) < min(map(score, proposals(score)))
    assert sum(map(score, found[20:])) < 0.7 * sum(map(score, found[:10]))


def test_two_thirds_of_the_trials_are_the_same_for_every_method() -> None:
    settings = Settings.of(tune_trials=12)
    firsts = []
    for name in ("equal", "multibalance", "stch"):
        search = RateSearch(settings, METHODS[name], TASKS)
        found = []
        while asked := search.ask():
            found += asked
            search.tell({rate: score(rate) for rate in asked})
        firsts.append([(rate.lr, rate.table_decay) for rate in found[:8]])
        if name != "equal":  # the values of the main option take turns
            assert {rate.options for rate in found[:4]} == {rate.options for rate in found[4:8]}
            assert len({rate.options for rate in found[:4]}) == 4
    assert firsts[0] == firsts[1] == firsts[2]
    assert len(set(firsts[0])) == 8


def test_the_same_scores_give_the_same_proposals_and_other_scores_others() -> None:
    assert proposals(score, tune_trials=12) == proposals(score, tune_trials=12)
    other = proposals(lambda rate: -score(rate), tune_trials=12)
    assert other[:4] == proposals(score, tune_trials=12)[:4]
    assert other != proposals(score, tune_trials=12)


def test_rates_that_diverge_or_have_no_score_are_the_worst() -> None:
    found = proposals(
        lambda rate: math.inf if rate.lr > 5e-3 else None if rate.table_decay > 2 else 0.5, tune_trials=30
    )
    assert sum(rate.lr > 5e-3 for rate in found[20:]) < sum(rate.lr > 5e-3 for rate in found[:10])


def test_fewer_trials_than_a_round_are_as_many_as_asked_for() -> None:
    assert len(proposals(score, tune_trials=3)) == 3


class _CutOffError(Exception):
    pass


def test_a_comparison_searches_with_equal_budget_and_goes_on_where_it_was_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list = []

    def runs(jobs: list, most: int):
        for job in jobs:
            if len(made) == most:
                raise _CutOffError
            made.append(job)
            found = score(Rate(job.lr, job.table_decay)) + 0.1 * (job.seed % 2) + 0.2 * (job.method == "equal")
            validation = {"click": {"ne": found}}
            yield job, Run(job.method, job.seed, *job.rate[:2], options=job.options, validation=validation)

    def compare(folder: Path, most: int) -> Choice:
        monkeypatch.setattr(runner_module, "run_jobs", lambda _settings, _data, jobs, *_: runs(jobs, most))
        monkeypatch.setattr(runner_module._Comparison, "measure_speed", lambda *_: None)
        settings = Settings.of(
            data="funnel", data_options={"rows": 1500}, methods=["equal", "multibalance"], seeds=1, epochs=1,
            batch_size=256, tune=True, tune_trials=10, tune_seeds=2,
        )  # fmt: skip
        run_comparison(settings, folder, jobs=1)
        return Choice.model_validate_json((folder / "tuned.json").read_bytes())

    whole = compare(tmp_path / "whole", most=-1)
    assert len(made) == 2 * 10 * 2 + 2  # methods, trials, tuning seeds; then one seed each
    for method in ("equal", "multibalance"):
        assert len({(job.lr, job.table_decay) for job in made if job.method == method and job.seed >= 1000}) == 10
    assert whole.trials == 10
    assert "--tune-trials 10" in whole.command
    jobs = list(made)
    made.clear()
    with pytest.raises(_CutOffError):
        compare(tmp_path / "parts", most=21)
    again = compare(tmp_path / "parts", most=-1)
    assert sorted(map(str, made)) == sorted(map(str, jobs))  # none twice
    assert again.chosen == whole.chosen
    assert {str(run) for run in ResultFolder(tmp_path / "parts").tuning_runs()} == {
        str(run) for run in ResultFolder(tmp_path / "whole").tuning_runs()
    }
    assert json.loads((tmp_path / "whole" / "plan.json").read_text())["options"]["tune_trials"] == 10
    assert "10 pairs of a rate from 0.001 to 0.03" in write_markdown(tmp_path / "whole").read_text()


def test_the_main_option_is_searched_with_the_rate_and_trained_with(tmp_path: Path) -> None:
    register(Method("searched", fork=MultiBalance, search={"gamma": (0.02, 0.5)}))
    try:
        search = RateSearch(Settings.of(tune_trials=12), METHODS["searched"], TASKS)
        drawn = [rate for _ in range(search.rounds) for rate in search.ask()]
        assert {rate.options for rate in drawn} == {"gamma=0.02", "gamma=0.5"}
        settings = Settings.of(
            data="funnel", data_options={"rows": 1500}, methods=["equal", "searched"], seeds=1, epochs=1,
            batch_size=256, tune=True, tune_trials=5, trials={"equal": 2}, evaluations=1,
        )  # fmt: skip
        run_comparison(settings, tmp_path, jobs=1, speed=False)
        results = ResultFolder(tmp_path).results()
        assert len([run for run in results.tuning if run.method == "equal"]) == 2
        assert {run.options for run in results.tuning if run.method == "searched"} == {"gamma=0.02", "gamma=0.5"}
        (run,) = results.of("searched")
        assert run.options == results.plan.chosen_options["searched"]
        report = write_markdown(tmp_path).read_text()
        assert results.plan.rate("searched").options in report
        assert "another number of such pairs for equal: 2" in report
        gamma = float(run.options.removeprefix("gamma="))
        alone = train(
            load("funnel", rows=1500), Method("alone", fork=MultiBalance, options={"gamma": gamma}),
            epochs=1, batch_size=256, evaluations=1, lr=run.lr, table_decay=run.table_decay, seed=run.seed,
        )  # fmt: skip
        assert alone.test == run.test
    finally:
        METHODS.restore({})


def test_weights_of_tasks_are_searched_from_equal_ones_and_keep_a_geometric_mean_of_one() -> None:
    search = RateSearch(Settings.of(tune_trials=20), METHODS["static"], TASKS)
    drawn = [rate.options.removeprefix("weights=") for rate in search.ask()]
    weights = [[float(word) for word in words.split("-")] for words in drawn]
    assert weights[0] == [1.0] * 4
    assert all(math.isclose(math.prod(row), 1, rel_tol=0.02) for row in weights)
    assert max(map(max, weights)) > 3


def test_each_task_of_single_task_training_gets_the_rate_that_suits_its_own_model() -> None:
    def run(lr: float, click: float, like: float) -> Run:
        validation = {"click": {"ne": click}, "like": {"ne": like}}
        return Run("single-task", 1000, lr, 1.0, validation=validation)

    runs = [run(0.001, 0.9, 0.7), run(0.01, 0.8, 0.72), run(0.1, 0.95, 0.9)]
    chosen = choose_rates(runs, apart=["single-task"])["single-task"]
    assert chosen == Rate(0.01, 1.0, "rates=0.01-0.001,decays=1-1")
    assert method_at("single-task", chosen).options == {"rates": [0.01, 0.001], "decays": [1.0, 1.0]}
    assert choose_rates(runs) == {"single-task": Rate(0.01, 1.0)}
