import json
import math
import multiprocessing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from equipoise import data
from equipoise.comparison import runner as runner_module
from equipoise.comparison.jobs import Job, RunListener, cores, workers_on
from equipoise.comparison.result_folder import FolderError, ResultFolder
from equipoise.comparison.results import Throughput
from equipoise.comparison.runner import run_comparison, starting_rate, train_into
from equipoise.comparison.tuned_rates import Choice, ChosenRate, Rate, rate_of
from equipoise.report import write_markdown
from equipoise.settings import Settings
from equipoise.training import METHODS, FolderInUseError, Run, SettingError, own_folder

SMALL = {"data": "funnel", "data_options": {"rows": 1500}, "batch_size": 256, "epochs": 1}
METHODS_SHORT = ["equal", "multibalance"]


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the throughput measurement, which has its own tests, to save time."""
    measured = Throughput(ratio=1.0, low=0.9, high=1.1, pairs=3)
    monkeypatch.setattr(runner_module, "throughput_ratio", lambda *_: measured)
    monkeypatch.setattr(runner_module, "peak_memory", lambda *_: 1000)


def plan(**settings: object) -> Settings:
    return Settings.of(**SMALL | {"methods": METHODS_SHORT, "seeds": 2} | settings)


def results(file: Path) -> dict[tuple[str, int], dict]:
    """Return the runs without their timing, which alone may depend on where and when they were made."""
    runs = [json.loads(line) for line in file.read_text().splitlines()]
    timing = {"seconds": 0, "examples_per_second": 0}
    return {(run["method"], run["seed"]): run | timing for run in runs}


class Recorder(RunListener):
    def __init__(self) -> None:
        self.phases: list[tuple[str, int, int]] = []
        self.trained: list[Job] = []
        self.notes: list[str] = []

    def noted(self, sentence: str, /) -> None:
        self.notes.append(sentence)

    def phase_started(self, title: str, parts: int, done: int = 0, /) -> None:
        self.phases.append((title, parts, done))

    def run_done(self, job: Job, _run: Run, _left: float | None, /) -> None:
        self.trained.append(job)


class Interrupting(Recorder):
    """Presses Ctrl-C in the middle of the second run."""

    def steps_done(self, _job: Job, _done: int, _total: int, _left: float | None, /) -> None:
        if self.trained:
            raise KeyboardInterrupt


def test_a_comparison_leaves_plan_runs_and_throughput(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    run_comparison(plan(rates={"equal": 0.01}), folder, jobs=1)
    written = json.loads((folder / "plan.json").read_text())
    assert written["tasks"] == ["click", "like", "long_view", "conversion"]
    assert written["seeds"] == [0, 1]
    assert written["rates"] == {"equal": 0.01, "multibalance": 0.003}
    assert written["grid"] is None
    assert written["generated"] is True
    assert set(written["best_ne"]) == set(written["tasks"])
    assert written["rows"] == {"train": 1050, "validation": 150, "test": 300}
    assert [method["name"] for method in written["methods"]] == METHODS_SHORT
    assert 0 < written["label_rates"]["click"]["rate"] < 0.5
    assert written["label_rates"]["click"]["labelled"] == 1
    assert written["label_counts"]["test"]["click"]["labelled"] == 300
    assert 0 < written["label_counts"]["test"]["click"]["positives"] < 150
    assert Settings.of(**written["options"]) == plan(rates={"equal": 0.01})
    found = results(folder / "runs.jsonl")
    assert list(found) == [("equal", 0), ("multibalance", 0), ("equal", 1), ("multibalance", 1)]
    assert {run["lr"] for run in found.values()} == {0.01, 0.003}
    assert json.loads((folder / "throughput.json").read_text())["equal"]["peak_memory"] == 1000
    assert {file.name for file in folder.iterdir()} == {"plan.json", "runs.jsonl", "throughput.json"}


def test_the_results_do_not_depend_on_the_number_of_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = data.load("funnel", rows=1500)
    threads = torch.get_num_threads()
    run_comparison(plan(), tmp_path / "one", jobs=1)
    with monkeypatch.context() as patch:
        patch.setattr(runner_module.data, "load", lambda *_, **__: made)  # the workers get it, and load nothing
        run_comparison(plan(), tmp_path / "two", jobs=2)
    assert results(tmp_path / "one" / "runs.jsonl") == results(tmp_path / "two" / "runs.jsonl")
    assert torch.get_num_threads() == threads


def test_runs_train_and_are_measured_on_the_device_of_the_settings(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def usable(name: str) -> torch.device:
        asked.append(name)
        return torch.device("cpu")

    monkeypatch.setattr("equipoise.training.loop.usable_device", usable)
    monkeypatch.setattr("equipoise.training.learner.usable_device", usable)
    run_comparison(plan(device="cpu:0"), tmp_path, jobs=1)
    checks, trainings, measurements = len(METHODS_SHORT), 2 * len(METHODS_SHORT), 1 + len(METHODS_SHORT)
    assert asked == ["cpu:0"] * (checks + trainings + measurements)
    with pytest.raises(FolderError, match="device: cpu:0 there, cpu here"):
        run_comparison(plan(), tmp_path, jobs=1)


def test_an_accelerator_trains_one_run_at_a_time_unless_the_user_says_so() -> None:
    assert workers_on("cuda:1") == workers_on("mps") == 1
    assert workers_on("cpu") == cores()


def test_an_interrupted_comparison_goes_on_where_it_was(tmp_path: Path) -> None:
    run_comparison(plan(), tmp_path / "whole", jobs=1)
    with pytest.raises(KeyboardInterrupt):
        run_comparison(plan(), tmp_path / "parts", jobs=1, listener=Interrupting())
    assert len(ResultFolder(tmp_path / "parts").runs()) == 1
    recorder = Recorder()
    run_comparison(plan(), tmp_path / "parts", jobs=1, listener=recorder)
    assert [(job.method, job.seed) for job in recorder.trained] == [
        ("multibalance", 0), ("equal", 1), ("multibalance", 1),
    ]  # fmt: skip
    assert ("Training", 4, 1) in recorder.phases
    assert results(tmp_path / "parts" / "runs.jsonl") == results(tmp_path / "whole" / "runs.jsonl")


def test_an_interrupted_comparison_in_processes_ends_soon_and_keeps_what_is_done(tmp_path: Path) -> None:
    long = plan(seeds=3, epochs=300)  # far longer than the test may take, if the workers did not stop

    class AfterFirstStep(RunListener):
        def steps_done(self, _job: Job, _done: int, _total: int, _left: float | None, /) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_comparison(long, tmp_path, jobs=2, listener=AfterFirstStep())
    assert ResultFolder(tmp_path).runs() == []
    assert json.loads((tmp_path / "plan.json").read_text())["epochs"] == 300


def test_a_worker_that_dies_is_explained_and_what_is_done_is_kept(tmp_path: Path) -> None:
    run_comparison(plan(methods=["equal"], seeds=1), tmp_path, jobs=1)

    class Killing(RunListener):
        def steps_done(self, _job: Job, _done: int, _total: int, _left: float | None, /) -> None:
            multiprocessing.active_children()[0].kill()

    with pytest.raises(SettingError, match="fewer jobs than 2"):
        run_comparison(plan(seeds=40), tmp_path, jobs=2, listener=Killing())
    assert len(ResultFolder(tmp_path).runs()) >= 1


def test_methods_and_seeds_can_be_added(tmp_path: Path) -> None:
    run_comparison(plan(methods=["equal"], seeds=1), tmp_path, jobs=1)
    recorder = Recorder()
    run_comparison(plan(), tmp_path, jobs=1, listener=recorder)
    assert len(recorder.trained) == 3
    assert set(json.loads((tmp_path / "throughput.json").read_text())) == set(METHODS_SHORT)


def test_equal_weights_are_measured_as_the_control_where_they_are_not_compared(tmp_path: Path) -> None:
    run_comparison(plan(methods=["multibalance"], seeds=1), tmp_path, jobs=1)
    assert set(ResultFolder(tmp_path).throughput()) == {"equal", "multibalance"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 2}, "epochs: 1 there, 2 here"),
        ({"data_options": {"rows": 1600}}, "data_options: .*1500.* there, .*1600.* here\n  rows: "),
        ({"loss_scale": {"like": 23}}, "loss_scale"),
        ({"model": "mmoe"}, "model: shared-bottom there, mmoe here"),
    ],
)
def test_runs_with_other_settings_are_not_mixed(tmp_path: Path, change: dict, message: str) -> None:
    run_comparison(plan(methods=["equal"], seeds=1), tmp_path, jobs=1)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(FolderError, match=message):
        run_comparison(plan(**change), tmp_path, jobs=1)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_runs_of_a_method_whose_defaults_changed_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_comparison(plan(methods=["multibalance"], seeds=1), tmp_path, jobs=1)
    changed = replace(METHODS["multibalance"], options={"beta": 0.9}, search={})
    monkeypatch.setitem(METHODS._own, "multibalance", changed)
    with pytest.raises(FolderError, match=r"method multibalance: .* there, .*beta=0\.9.* here"):
        run_comparison(plan(methods=["multibalance"], seeds=1), tmp_path, jobs=1)


def test_validation_rows_of_one_class_are_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = data.load("funnel", rows=1500)
    validation = replace(made.validation, labels=torch.zeros_like(made.validation.labels))
    monkeypatch.setattr(runner_module.data, "load", lambda *_, **__: replace(made, validation=validation))
    with pytest.raises(SettingError, match=r"all the same there \(click: 150 labelled, 0 positive, like:"):
        run_comparison(plan(tune=True), tmp_path / "out", jobs=1)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("[]")
    with pytest.raises(FolderError, match="found something else"):
        run_comparison(plan(), tmp_path, jobs=1)


def test_tuning_gives_every_method_the_rate_and_decay_with_the_lowest_mean_validation_ne(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = {"equal": Rate(1e-2, 0.3), "multibalance": Rate(1e-3, 1.0)}

    def trained(_settings, _dataset, jobs, *_):
        for job in jobs:
            ne = abs(math.log10(job.lr / best[job.method].lr)) + abs(job.table_decay - best[job.method].table_decay)
            status = "diverged" if job.lr == 1e-2 and job.method == "multibalance" else "ok"
            validation = {"click": {"ne": ne + 0.1 * (job.seed % 2)}}
            yield job, Run(job.method, job.seed, job.lr, job.table_decay, status, validation=validation)

    monkeypatch.setattr(runner_module, "run_jobs", trained)
    recorder = Recorder()
    settings = plan(tune=True, tune_seeds=2, decay_grid=[0.0, 0.3, 1.0])
    run_comparison(settings, tmp_path, jobs=1, listener=recorder)
    tuned = [job for job in recorder.trained if job.seed >= 1000]
    assert len(tuned) == 2 * len(settings.grid) * 3 * 2  # methods, rates, decays, seeds: the same budget for each
    assert {job.seed for job in tuned}.isdisjoint(job.seed for job in recorder.trained if job.seed < 1000)
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["rates"] == {name: rate.lr for name, rate in best.items()}
    assert written["table_decays"] == {name: rate.table_decay for name, rate in best.items()}
    assert written["grid"] == settings.grid
    assert {(run.method, rate_of(run)) for run in ResultFolder(tmp_path).runs()} == set(best.items())
    assert len(ResultFolder(tmp_path).tuning_runs()) == len(tuned)
    choice = Choice.model_validate_json((tmp_path / "tuned.json").read_bytes())
    assert choice.chosen == best
    assert json.loads((tmp_path / "tuned.json").read_text())["chosen"]["equal"] == {"lr": 0.01, "table_decay": 0.3}
    assert (choice.grid, choice.decay_grid, choice.seeds) == (settings.grid, [0.0, 0.3, 1.0], [1000, 1001])
    assert choice.recipe["data_options"] == {"rows": 1500}
    assert choice.command.startswith("equipoise compare --epochs 1 --batch-size 256 --data funnel")
    assert "--tune" in choice.command


def test_the_best_trials_are_tried_with_more_seeds_and_the_mean_decides(tmp_path: Path, monkeypatch) -> None:
    lucky = Rate(1e-3, 0.0)  # the best with the first seed, and the worst of the finalists with the others

    def trained(_settings, _dataset, jobs, *_):
        for job in jobs:
            ne = abs(math.log10(job.lr / 1e-2)) + 0.1 * job.table_decay + 0.01 * (job.seed % 1000)
            if Rate(job.lr, job.table_decay) == lucky:
                ne = 2.0 if job.seed % 1000 else -1.0
            yield job, Run(job.method, job.seed, job.lr, job.table_decay, validation={"click": {"ne": ne}})

    monkeypatch.setattr(runner_module, "run_jobs", trained)
    recorder = Recorder()
    settings = plan(
        methods=["single-task", "equal", "multibalance"], tune=True, tune_finalists=2, decay_grid=[0.0, 1.0]
    )
    run_comparison(settings, tmp_path, jobs=1, listener=recorder)
    again = [job for job in recorder.trained if job.seed > 1000]
    best = {lucky, Rate(1e-2, 0.0)}
    assert {(job.method, job.rate, job.seed) for job in again} == {
        (method, rate, seed) for method in ("equal", "multibalance") for rate in best for seed in (1001, 1002)
    }
    chosen = Choice.model_validate_json((tmp_path / "tuned.json").read_bytes()).chosen
    assert chosen["equal"] == chosen["multibalance"] == Rate(1e-2, 0.0)
    assert chosen["single-task"] == lucky  # a method with a model per task has no finalists
    page = write_markdown(tmp_path).read_text()
    assert (
        "over 1 tuning seed that the comparison does not use; the best 2 of each method were trained with two" in page
    )
    recorder.trained.clear()
    run_comparison(settings, tmp_path, jobs=1, listener=recorder)
    assert not recorder.trained


def test_stated_rates_and_decays_win_over_tuned_ones() -> None:
    journey = {"data": "complete-journey", "epochs": 2, "batch_size": 2048}
    assert starting_rate(Settings.of(**journey), "equal").rate.lr == 0.03
    stated = Settings.of(**journey, rates={"equal": 0.5}, decays={"equal": 2.0})
    assert starting_rate(stated, "equal") == ChosenRate(Rate(0.5, 2.0), "")


def test_a_rate_of_the_settings_is_that_of_each_method(tmp_path: Path) -> None:
    settings = Settings.of(
        data="funnel", data_options={"rows": 1500}, epochs=1, batch_size=256, seeds=1, lr=0.02, table_decay=0.5,
        methods=["equal", "multibalance"], rates={"multibalance": 0.04},
    )  # fmt: skip
    run_comparison(settings, tmp_path, jobs=1)
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["rates"] == {"equal": 0.02, "multibalance": 0.04}
    assert plan["table_decays"] == {"equal": 0.5, "multibalance": 0.5}
    assert plan["options"]["rates"] == plan["rates"]  # from which the report writes the command


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ["pcgard"]}, "Expected a method out of"),
        ({"methods": ["equal", "equal"]}, "named once, found equal, equal"),
        ({"model": "no-such-model"}, "Expected a model out of"),
        ({"model_options": {"experts": 3}}, "takes the options"),
        ({"loss_scale": {"share": 2.0}}, "found share"),
        ({"batch_size": 2000}, "at least one batch of 2000 rows, found 1050"),
        ({"tune": True, "rates_from": "earlier"}, "takes the place of tuning, found both"),
    ],
)
def test_what_cannot_be_run_writes_nothing(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        run_comparison(plan(**change), tmp_path / "out", jobs=1)
    assert not (tmp_path / "out").exists()


def test_training_once_leaves_checkpoint_and_run_and_can_be_resumed(tmp_path: Path) -> None:
    once = plan(method="multibalance", rates={"multibalance": 0.01}, seed=1)
    run = train_into(tmp_path, once)
    assert json.loads((tmp_path / "run.json").read_text()) == json.loads(run.to_json())
    assert (run.seed, run.lr) == (1, 0.01)
    again = train_into(tmp_path, once, resume=True)
    assert again.to_json() == run.to_json()


def test_a_training_takes_the_rate_that_a_comparison_has_tuned(tmp_path: Path) -> None:
    tuning = plan(tune=True, grid=[0.004, 0.02], decay_grid=[0.5, 1.0], seeds=1)
    run_comparison(tuning, tmp_path / "compared", jobs=1)
    chosen = json.loads((tmp_path / "compared/tuned.json").read_text())["chosen"]["multibalance"]
    once, listener = plan(method="multibalance", rates_from=str(tmp_path / "compared")), Recorder()
    run = train_into(tmp_path / "run", once, listener=listener)
    assert (run.lr, run.table_decay) == (chosen["lr"], chosen["table_decay"])
    assert chosen["lr"] in {0.004, 0.02}
    assert not any("may not suit" in note for note in listener.notes)
    stated = train_into(tmp_path / "stated", plan(method="multibalance", rates_from=once.rates_from, lr=0.1))
    assert (stated.lr, stated.table_decay) == (0.1, chosen["table_decay"])


def test_a_training_does_not_take_the_default_rate_where_the_named_folder_has_none(tmp_path: Path) -> None:
    run_comparison(plan(tune=True, grid=[0.02], seeds=1), tmp_path / "compared", jobs=1)
    once = plan(method="pub", rates_from=str(tmp_path / "compared"))
    with pytest.raises(SettingError, match=r"expected a rate of pub in .*compared, found those of equal, multibalance"):
        train_into(tmp_path / "run", once)
    assert not (tmp_path / "run").exists()


def test_a_comparison_and_a_training_are_refused_in_a_folder_where_another_writes(tmp_path: Path) -> None:
    once = plan(methods=["equal"])
    with own_folder(tmp_path):
        with pytest.raises(FolderInUseError, match="Another process writes to"):
            run_comparison(once, tmp_path, jobs=1)
        for resume in (False, True):
            with pytest.raises(FolderInUseError, match="Another process writes to"):
                train_into(tmp_path, once, resume=resume)
        assert [path.name for path in tmp_path.iterdir()] == ["owner.json"]
    train_into(tmp_path, once)
    assert not (tmp_path / "owner.json").exists()


def test_a_refused_training_does_not_say_that_it_starts_over(tmp_path: Path) -> None:
    once, listener = plan(methods=["equal"]), Recorder()
    train_into(tmp_path, once)
    with own_folder(tmp_path), pytest.raises(FolderInUseError):
        train_into(tmp_path, once, listener=listener)
    with pytest.raises(SettingError):
        train_into(tmp_path, plan(methods=["equal"], model_options={"bottom": [0]}), listener=listener)
    assert not any("Starting over" in note for note in listener.notes)
    assert not (tmp_path / "checkpoint.before").exists()
    train_into(tmp_path, once, listener=listener)
    assert f"Starting over; earlier checkpoints are moved to {tmp_path / 'checkpoint.before'}" in listener.notes


@pytest.mark.parametrize(
    ("stated", "notes"),
    [
        (
            {},
            [
                "Learning rate 0.003, which may not suit: never tuned on this data set, model and optimizer. "
                "State one: --lr."
            ],
        ),
        ({"lr": 0.01}, []),
        ({"rates": {"equal": 0.01}}, []),
    ],
)
def test_a_training_says_where_its_rate_comes_from_unless_it_was_stated(
    tmp_path: Path, stated: dict, notes: list[str]
) -> None:
    listener = Recorder()
    train_into(tmp_path, plan(method="equal", **stated), listener=listener)
    assert listener.notes == notes


def test_a_comparison_says_that_rates_may_not_suit_and_how_to_choose_them(tmp_path: Path) -> None:
    listener = Recorder()
    run_comparison(plan(methods=["equal"], seeds=1), tmp_path, jobs=1, listener=listener)
    (note,) = listener.notes
    assert note.endswith("never tuned on this data set, model and optimizer. --tune chooses one for each method.")
    assert json.loads((tmp_path / "plan.json").read_text())["rate_doubts"].keys() == {"equal"}


def test_static_weights_are_compared_by_default_where_they_were_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {name: value for name, value in SMALL.items() if name != "methods"} | {"seeds": 1}
    rate = starting_rate

    def searched(settings: Settings, method: str) -> ChosenRate:
        found = rate(settings, method)
        return ChosenRate(Rate(0.01, 0.0, "weights=1-1-2-3"), "") if method == "static" else found

    run_comparison(Settings.of(**small), tmp_path / "unknown", jobs=1, speed=False)
    assert "static" not in {run.method for run in ResultFolder(tmp_path / "unknown").runs()}
    monkeypatch.setattr(runner_module, "starting_rate", searched)
    run_comparison(Settings.of(**small), tmp_path / "searched", jobs=1, speed=False)
    runs = {run.method: run for run in ResultFolder(tmp_path / "searched").results().runs}
    assert runs["static"].options == "weights=1-1-2-3"
    assert runs["static"].test != runs["equal"].test


def test_a_grid_of_rates_does_not_search_weights_and_says_so(tmp_path: Path) -> None:
    recorder = Recorder()
    settings = plan(methods=["equal", "static"], seeds=1, tune=True, grid=[1e-3], decay_grid=[0.0])
    with pytest.MonkeyPatch.context() as patch:  # weights that an earlier search found are not those of this grid
        found = {"static": "weights=1-1-2-3"}
        rate = partial(Rate, 0.01, 0.0)
        patch.setattr(runner_module, "starting_rate", lambda _, name: ChosenRate(rate(found.get(name, "")), ""))
        run_comparison(settings, tmp_path / "grid", jobs=1, listener=recorder, speed=False)
    assert any("search them" in note for note in recorder.notes)
    assert not any(run.options for run in ResultFolder(tmp_path / "grid").runs())
    searching = Recorder()
    searched = settings.model_copy(update={"trials": {"static": 2}})
    run_comparison(searched, tmp_path / "trials", jobs=1, listener=searching, speed=False)
    assert not any("search them" in note for note in searching.notes)


def test_static_weights_without_weights_are_said_to_be_equal_ones(tmp_path: Path) -> None:
    recorder = Recorder()
    run_comparison(plan(methods=["equal", "static"], seeds=1), tmp_path, jobs=1, listener=recorder, speed=False)
    (note,) = [note for note in recorder.notes if "static" in note]
    assert "static:weights=1-1-3" in note
    runs = {run.method: run for run in ResultFolder(tmp_path).runs()}
    assert runs["static"].test == runs["equal"].test
