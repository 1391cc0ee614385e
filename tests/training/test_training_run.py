import json
import math

from equipoise.training import Run


def full_run() -> Run:
    return Run(
        "pub", 3, 1e-3, steps=7, test={"click": {"auc": math.nan, "ne": 0.5}},
        validation={"click": {"ne": 0.5}, "like": {"ne": 0.7}},
        curve=[{"step": 1, "examples": 64, "train_loss": {"click": math.inf}, "validation": {}}], monitor=[{"step": 1}],
    )  # fmt: skip


def test_a_run_survives_json_with_numbers_that_do_not_exist() -> None:
    line = full_run().to_json()
    assert "\n" not in line
    assert json.loads(line)["curve"][0]["train_loss"]["click"] is None
    back = Run.from_json(line)
    assert back.to_json() == line
    assert math.isnan(back.test["click"]["auc"])
    assert back.peak_memory_bytes is None


def test_keys_of_the_line_that_are_not_the_runs_are_left_out() -> None:
    line = json.dumps({"phase": "tune", **json.loads(full_run().to_json())})
    assert Run.from_json(line).method == "pub"


def test_mean_validation_ne_tells_undefined_from_diverged() -> None:
    run = full_run()
    assert run.mean_validation_ne == 0.6
    run.status = "diverged"
    assert run.mean_validation_ne == math.inf
    assert Run("equal", 0, 1e-3, validation={"a": {"ne": math.nan}, "b": {"ne": 0.5}}).mean_validation_ne == 0.5
    assert math.isnan(Run("equal", 0, 1e-3, validation={"a": {"ne": math.nan}}).mean_validation_ne)
    assert math.isnan(Run("equal", 0, 1e-3).mean_validation_ne)
