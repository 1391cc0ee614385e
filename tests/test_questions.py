"""The scripts behind docs/questions.md: each runs in a tiny form, and the page shows what is committed."""

import dataclasses
import importlib
import itertools
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from equipoise import data
from equipoise.comparison.suite import Suite, run_suite
from equipoise.forks.kernel_choice import LIBRARY
from equipoise.methods import parse_method
from equipoise.settings import TrainingSettings
from equipoise.training import Learner, train

REPOSITORY = Path(__file__).parents[1]
SCRIPTS = REPOSITORY / "benchmarks" / "questions"
NAMES = (
    "records",
    "many_tasks",
    "static_weights",
    "at_the_fork",
    "updates",
    "drift",
    "timing",
    "uncertainty",
    "backbones",
    "rare_task",
    "gram_every",
    "pub_last_layer",
    "arithmetic",
    "page",
)
FUNNEL = {"rows": 3000, "click_rate": 0.4, "conversion_rate": 0.2}  # frequent enough for an NE everywhere


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    """Import a script by name; its modules are forgotten afterwards, since their names are common ones."""
    monkeypatch.syspath_prepend(SCRIPTS)
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def funnel() -> data.Dataset:
    return dataclasses.replace(data.load("funnel", **FUNNEL), batch_size=256)


def run(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", [module.__name__, *words])
    module.main()


def test_the_page_shows_the_committed_results(script) -> None:
    page = script("page")
    text = page.PAGE.read_text()
    assert page.with_tables(text, page.tables(page.RESULTS)) == text


def test_a_table_that_is_not_there_yet_is_said_to_be_so_and_one_without_a_place_is_refused(script) -> None:
    page = script("page")
    text = "<!-- begin of one -->\nold\n<!-- end of one -->\n<!-- begin of two -->\n<!-- end of two -->\n"
    assert page.with_tables(text, {"one": ["new"]}) == (
        "<!-- begin of one -->\n\nnew\n\n<!-- end of one -->\n"
        f"<!-- begin of two -->\n\n{page.NOT_YET}\n\n<!-- end of two -->\n"
    )
    with pytest.raises(ValueError, match="found none for three"):
        page.with_tables(text, {"three": ["new"]})


def test_searched_weights_are_tested_with_seeds_that_chose_nothing(
    script, monkeypatch: pytest.MonkeyPatch, funnel: data.Dataset, tmp_path: Path
) -> None:
    module = script("static_weights")
    scores, tasks = itertools.cycle([0.9, 0.5, 0.7, 0.4]), funnel.schema.task_names

    def made_up(*_: object) -> dict[str, object]:
        ne = dict.fromkeys(tasks, next(scores))
        return {"status": "ok", "validation_ne": ne, "test_ne": ne, "weights": dict.fromkeys(tasks, 1.0)}

    monkeypatch.setattr(module, "record", made_up)
    monkeypatch.setattr(module, "SEEDS", 1)
    records = module.Records(tmp_path / "found.jsonl")
    for chosen in module.searches((2, 4), 1):
        scores = itertools.cycle([0.9, 0.5, 0.7, 0.4])
        module.search(records, funnel, chosen)
    made = [json.loads(line) for line in records.path.read_text().splitlines()]
    assert {row["seed"] for row in made} == {module.SEARCH_SEED, 0}
    searched = [row for row in made if row["search"] == "static weights" and row["seed"] == module.SEARCH_SEED]
    for row in searched:
        assert sum(row["settings"]["loss_scale"].values()) / len(tasks) == pytest.approx(1)
    tested = {(name, point): rows for name, point, rows in module.tested_rows(made, (2, 4), 1)}
    assert [row["settings"] for row in tested["static weights", 2]] == [searched[1]["settings"]]
    assert [row["settings"] for row in tested["static weights", 4]] == [searched[3]["settings"]]
    assert len(module.tables(made, (2, 4), 1)["static weights"]) == 6
    monkeypatch.setattr(module, "record", None)
    again = module.Records(records.path)
    for chosen in module.searches((2, 4), 1):
        module.search(again, funnel, chosen)  # nothing is trained twice
    assert again.rows == made


@pytest.mark.parametrize("method", ["multibalance", "pub"])
def test_weights_of_a_balanced_training_have_the_mean_one(script, funnel: data.Dataset, method: str) -> None:
    found = script("static_weights").record(funnel, method, 0, {"lr": 0.01})
    assert found["status"] == "ok"
    assert list(found["weights"]) == list(funnel.schema.task_names)
    assert sum(found["weights"].values()) / 4 == pytest.approx(1)


def test_cosines_at_the_fork_are_those_of_the_combined_vector(script) -> None:
    module = script("at_the_fork")
    gradients = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).numpy()
    weight = dict(zip("abc", (0.5, 2.0, 1.0), strict=True))
    units = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
    reading = {f"fork/fork/norm/{task}": float(np.linalg.norm(g)) for task, g in zip("abc", gradients, strict=True)}
    reading |= {f"fork/fork/weight/{task}": value for task, value in weight.items()}
    for one, other in itertools.combinations(range(3), 2):
        reading[f"fork/fork/cosine/{'abc'[one]}/{'abc'[other]}"] = float(units[one] @ units[other])
    found = module.step_values(reading, "abc")
    for kind, weights in (("before", np.ones(3)), ("after", np.array(list(weight.values())))):
        combined = weights @ gradients
        expected = units @ combined / np.linalg.norm(combined)
        assert list(found[kind].values()) == pytest.approx(expected)
    assert found["balanced"]["b"] == pytest.approx(2 * np.linalg.norm(gradients[1]))


def test_a_jump_is_the_deviation_of_independent_values_and_ignores_a_slow_trend(script) -> None:
    jump = script("at_the_fork").jump
    noise = np.random.default_rng(0).standard_normal(20_000)
    assert jump(noise) == pytest.approx(1, rel=0.03)
    assert jump(noise + np.linspace(0, 50, len(noise))) == pytest.approx(1, rel=0.03)


def test_the_plain_variant_at_the_fork_is_equal_weights(script, funnel: data.Dataset) -> None:
    module = script("at_the_fork")
    found = module.record(funnel, module.PLAIN, 0, {"lr": 0.01})
    equal = train(funnel, "equal", lr=0.01, evaluations=1)
    assert found["test_ne"] == pytest.approx({task: metrics["ne"] for task, metrics in equal.test.items()}, rel=1e-4)
    assert all(part["before"] == part["after"] for part in found["parts"])


def test_the_update_that_is_measured_is_adams(script, monkeypatch: pytest.MonkeyPatch, funnel: data.Dataset) -> None:
    """Momentum and √v̂, followed beside the optimizer, give the direction in which the parameters moved."""
    module = script("updates")
    monkeypatch.setattr(module, "SETTINGS", module.SETTINGS | {"batch_size": 128})
    parts = module.record(funnel, "equal", 0)["parts"]
    assert [part["update and Adam's formula"] for part in parts] == pytest.approx([1.0] * len(parts), abs=1e-4)


def test_task_gradients_add_up_to_that_of_the_step(script, funnel: data.Dataset) -> None:
    module = script("updates")
    learner = Learner(funnel.schema, parse_method("equal"), TrainingSettings.of(lr=0.01))
    shared = module.SharedParameters(learner)
    batch = next(iter(funnel.train.batches(256)))
    rows = shared.task_gradients(batch)
    learner.step(batch)
    torch.testing.assert_close(rows.sum(0), shared.gradient(), rtol=1e-4, atol=1e-7)


def test_ne_of_a_window_is_loss_over_the_entropy_of_its_rate(script) -> None:
    module = script("drift")
    losses, rates = torch.full((40, 1), 0.3), torch.full((40, 1), 0.1)
    entropy = -(0.1 * math.log(0.1) + 0.9 * math.log(0.9))
    assert module.mean_ne(losses, rates) == pytest.approx([0.3 / entropy] * module.WINDOWS)


def test_a_drifting_stream_is_trained_with_a_rate_chosen_on_other_data(
    script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = script("drift")
    monkeypatch.setattr(module, "METHODS", {"equal": "equal weights", "multibalance": "MultiBalance"})
    monkeypatch.setattr(module, "RATES", (0.01, 0.03))
    monkeypatch.setattr(module, "SHOWN", (0.01,))
    monkeypatch.setattr(module, "KINDS", {"sudden": module.KINDS["sudden"]})
    run(module, monkeypatch, "--out", str(tmp_path / "drift.jsonl"), "--rows", "12000", "--seeds", "1")
    assert "| MultiBalance | 0.01" in capsys.readouterr().out
    assert {row["seed"] for row in module.Records(tmp_path / "drift.jsonl").rows} == {1000, 0}


def test_each_task_of_many_has_its_rate(script) -> None:
    dataset = script("many_tasks").load(tasks=5, rows=20_000)
    rates = dataset.train.labels.mean(0)
    assert len(dataset.schema.tasks) == 5
    assert (rates > 0.005).all()
    assert (rates < 0.25).all()
    assert [len(split) for split in (dataset.train, dataset.validation, dataset.test)] == [14_000, 2_000, 4_000]


def test_the_suite_can_be_read_and_its_results_fill_the_tables(script, tmp_path: Path) -> None:
    page = script("page")
    shown = {name for names, *_ in page.COMPARISONS.values() for name in names}
    assert set(Suite.read(SCRIPTS / "suite.yaml").settings) == shown
    tiny = {"data": "funnel", "data_options": FUNNEL, "batch_size": 512, "seeds": 2, "evaluations": 1}
    suite = {"title": "Tiny", "settings": {"one": tiny | {"title": "One", "methods": ["equal", "multibalance"]}}}
    run_suite(Suite.of(suite), tmp_path, speed=False, jobs=1)
    (tmp_path / "all.json").write_text('{"earlier": {}}')
    page.take_over(tmp_path, tmp_path / "all.json")
    found = json.loads((tmp_path / "all.json").read_text())
    assert list(found) == ["earlier", "one"]
    assert found["one"]["title"] == "One"
    assert len(found["one"]["runs"]) == 4
    equal, multibalance = page.comparison(found, ("one", "two"), ("multibalance", "pub"))[2:]
    assert equal.startswith("| One | equal weights | 0.003, 0 | 2 |")
    assert multibalance.startswith("| One | MultiBalance | 0.003, 0 | 2 |")


def test_costs_are_measured_against_equal_weights(
    script, monkeypatch: pytest.MonkeyPatch, funnel: data.Dataset
) -> None:
    module = script("timing")
    monkeypatch.setattr(module.data, "load", lambda *_, **__: funnel)
    monkeypatch.setattr(module, "ratios", lambda *_: {module.NOISE: [1.0, 0.9, 1.1], "MultiBalance": [0.9, 0.8, 1.0]})
    tables = module.tables(module.measure((2,), (256,), 5000, 0.0))
    assert tables["cost by number of tasks"][-1] == "| 2 | × 1.000 (0.900 to 1.100) | × 0.900 (0.800 to 1.000) |"


def test_the_parts_of_uncertainty_weighting_multiply_to_its_weights(script) -> None:
    module = script("uncertainty")
    losses, present = torch.tensor([0.1, 2.0, 0.5]), torch.ones(3, dtype=torch.bool)

    def weights(name: str) -> torch.Tensor:
        weighting = module.variants()[name].loss_weighting(["a", "b", "c"])
        with torch.no_grad():
            weighting.scalarizer.log_var.copy_(torch.tensor([-1.0, 0.5, 0.0]))
        return weighting.weigh(losses, present)

    total, shares, whole = map(weights, ("their total alone", "their shares alone", "uncertainty weighting"))
    assert total.tolist() == [total[0].item()] * 3
    torch.testing.assert_close(total * shares, whole)


def test_every_variant_beside_uncertainty_weighting_is_trained_and_shown(
    script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = script("uncertainty")
    monkeypatch.setattr(module, "SETTINGS", {"opposed": module.SETTINGS["opposed"]})
    run(module, monkeypatch, "--out", str(tmp_path / "found.jsonl"), "--rows", "4000", "--seeds", "1")
    rows = script("records").Records(tmp_path / "found.jsonl").rows
    assert len(rows) == 2 * len(module.variants())
    assert len(module.tables(rows)["uncertainty weighting"]) == 2 + len(rows)


def test_every_method_is_trained_with_every_model_at_every_pair_of_rate_and_decay(
    script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, funnel: data.Dataset
) -> None:
    module = script("backbones")
    monkeypatch.setattr(module, "SETTINGS", {model: module.SETTINGS[model] for model in ("mmoe", "ple")})
    monkeypatch.setattr(module.SettingWithRates, "load", lambda *_: funnel)
    monkeypatch.setattr(module, "gain", lambda rows, reference, _task: script("records").gain(rows, reference, "click"))
    run(module, monkeypatch, "--out", str(tmp_path / "found.jsonl"), "--seeds", "1")
    rows = script("records").Records(tmp_path / "found.jsonl").rows
    assert len(rows) == 2 * len(module.RATES) * len(module.variants())
    for variant in module.variants():
        assert len({row["test_ne"]["click"] for row in rows if row["variant"] == variant}) == 2 * len(module.RATES)
    assert len(module.tables(rows)["models"]) == 2 + len(rows)


def test_a_rare_task_is_trained_at_every_batch_size(script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = script("rare_task")
    monkeypatch.setattr(module, "METHODS", {"equal": "equal weights", "multibalance": "MultiBalance"})
    monkeypatch.setattr(module, "RATE", 0.05)
    run(module, monkeypatch, "--out", str(tmp_path / "found.jsonl"), "--rows", "12000", "--seeds", "2")
    rows = module.Records(tmp_path / "found.jsonl").rows
    assert len(rows) == 2 * 2 * len(module.BATCH_SIZES)
    table = module.tables(rows)["rare task"]
    assert len(table) == 2 + 2 * len(module.BATCH_SIZES)
    assert "+" in table[3] or "−" in table[3]


def test_forks_that_measure_seldom_are_set_against_one_that_always_does(
    script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = script("gram_every")
    monkeypatch.setattr(module, "SETTINGS", {"opposed": module.SETTINGS["opposed"]})
    run(module, monkeypatch, "--out", str(tmp_path / "found.jsonl"), "--rows", "12000", "--seeds", "2")
    rows = script("records").Records(tmp_path / "found.jsonl").rows
    assert len(rows) == 2 * len(module.VARIANTS)
    assert len({row["test_ne"]["click"] for row in rows if row["seed"] == 0}) == len(module.VARIANTS)
    assert len(module.tables(rows)["gram_every"]) == 2 + len(module.VARIANTS)


def test_pub_is_trained_with_both_ways_to_solve(script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = script("pub_last_layer")
    monkeypatch.setattr(module, "SETTINGS", {"opposed": module.SETTINGS["opposed"]})
    run(module, monkeypatch, "--out", str(tmp_path / "found.jsonl"), "--rows", "4000", "--seeds", "2")
    rows = script("records").Records(tmp_path / "found.jsonl").rows
    assert len(rows) == 2 * len(module.VARIANTS)
    table = module.tables(rows)["last shared layer"]
    assert len(table) == 2 + len(module.VARIANTS)
    assert [line.count("%") for line in table[2:]] == [0, 1, 2, 2, 2]


@pytest.mark.skipif(not LIBRARY.exists(), reason="built without a C compiler")
def test_trainings_of_the_suite_are_made_again_with_their_rates_and_seeds(
    script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = script("arithmetic")
    suite = {"title": "t", "common": {"methods": ["equal", "multibalance"], "seeds": 2, "epochs": 1,
                        "rates": {"equal": 0.02, "multibalance": 0.02}},
             "settings": {"one": {"data": "funnel", "data_options": FUNNEL, "batch_size": 256}}}  # fmt: skip
    (tmp_path / "suite.yaml").write_text(json.dumps(suite))
    run_suite(Suite.of(suite), tmp_path / "evidence", jobs=1, speed=False)
    for name, value in {
        "SUITE": tmp_path / "suite.yaml",
        "RESULTS": tmp_path / "evidence",
        "SETTINGS": ("one",),
    }.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "METHODS", {"equal": "equal weights", "multibalance": "MultiBalance"})
    monkeypatch.setenv("MKL_CBWR", "COMPATIBILITY")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    out = str(tmp_path / "again.jsonl")
    with pytest.raises(SystemExit, match="--this-machine"):
        run(module, monkeypatch, "--this-machine", "--out", out)
    run(module, monkeypatch, "--part", "1", "2", "--out", out)
    assert len(module.Records(tmp_path / "again.jsonl").rows) == 2  # half of them
    run(module, monkeypatch, "--out", out)
    rows = module.Records(tmp_path / "again.jsonl").rows
    assert sorted((row["variant"], row["seed"]) for row in rows) == [
        (m, s) for m in ("equal", "multibalance") for s in (0, 1)
    ]
    assert {row["arithmetic"] for row in rows} == {module.OLDEST}
    before = module.of_suite("one")
    for row in rows:
        expected = next(found for found in before[row["variant"]] if found["seed"] == row["seed"])
        assert row["test_ne"] == pytest.approx(expected["test_ne"], rel=1e-2)
    monkeypatch.delenv("MKL_CBWR")
    run(module, monkeypatch, "--this-machine", "--out", out)
    both = module.Records(tmp_path / "again.jsonl").rows
    assert len(both) == 8
    heads, _, equal, multibalance = module.tables(both)["another arithmetic"]
    assert module.cpu_name() in heads
    assert [line.count("%") for line in (equal, multibalance)] == [2, 3]
