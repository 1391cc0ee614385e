import json
import math
import os
import zlib
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_structure

from equipoise.data import Dataset, Split, load
from equipoise.data.cache import read_dataset, write_dataset
from equipoise.methods import MethodError
from equipoise.ranking.metrics import auc, normalized_entropy
from equipoise.schema import Batch, Schema
from equipoise.settings import TrainingSettings
from equipoise.training import (
    METHODS,
    CheckpointError,
    FolderInUseError,
    Learner,
    NonFiniteError,
    Run,
    SettingError,
    World,
    count_steps,
    evaluation,
    train,
)
from equipoise.training import loop as loop_module
from equipoise.training.checkpoint.folder import last_checkpoint, load_checkpoint
from equipoise.training.faults.folder_owner import OWNER_FILE
from equipoise.training.reproducibility import why_irreproducible

SETTINGS = {"epochs": 3, "batch_size": 64, "lr": 1e-2, "evaluations": 4}


def saved_learner(folder: Path) -> dict:
    content = json.loads(json.loads((last_checkpoint(folder) / "state.json").read_text())["content"])
    return load_checkpoint(folder, content["settings"])["learner"]


def comparable(run: Run) -> dict:
    return json.loads(run.to_json()) | {"seconds": 0, "examples_per_second": 0}


ON_PARAMETERS = {name for name in METHODS if METHODS[name].jacobian is not None} - {"mgda-parameters"}
"""Slow, and alike to a training: of these the catalogue's tests, and one resumed run each, are enough."""


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ON_PARAMETERS])
def test_every_method_learns(tiny: Dataset, name: str) -> None:
    run = train(tiny, METHODS[name], **SETTINGS)
    assert run.status == "ok"
    assert run.test["click"]["auc"] > 0.75
    first, last = run.curve[0]["train_loss"]["click"], run.curve[-1]["train_loss"]["click"]
    assert last < first


def test_the_record_says_the_settings_that_decide_the_results(tiny: Dataset) -> None:
    stated = SETTINGS | {"clip_norm": 5.0, "model_options": {"bottom": [8, 4]}, "loss_scale": {"like": 2.0}}
    run = train(tiny, METHODS["equal"], **stated)
    assert stated.items() <= run.settings.items()
    assert run.settings["table_lr"] is None
    assert "device" not in run.settings
    again = train(tiny, METHODS["equal"], **run.settings)
    assert comparable(again) == comparable(run)
    assert Run.from_json(run.to_json()).settings == run.settings


def test_the_record_of_a_run_is_complete(tiny: Dataset) -> None:
    run = train(tiny, METHODS["multibalance"], **SETTINGS, monitor_reads=10)
    assert (run.method, run.seed, run.lr, run.steps) == ("multibalance", 0, 1e-2, 3 * (700 // 64))
    assert [point["step"] for point in run.curve] == [8, 15, 23, 30]
    assert [point["examples"] for point in run.curve] == [8 * 64, 15 * 64, 23 * 64, 30 * 64]
    assert set(run.curve[0]["validation"]["like"]) == {"auc", "ne"}
    assert set(run.test["like"]) == set(run.test_natural["like"]) == {"auc", "ne", "log_loss", "calibration"}
    assert [point["step"] for point in run.monitor] == list(range(3, 31, 3))
    weights = [value for key, value in run.monitor[-1].items() if "/weight/" in key]
    assert len(weights) == 2
    assert run.examples_per_second == pytest.approx(run.steps * 64 / run.seconds)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ON_PARAMETERS])
def test_two_runs_with_the_same_seed_are_identical(tiny: Dataset, name: str) -> None:
    runs = []
    for unrelated in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(unrelated)  # what else the process draws has no part in it
            runs.append(comparable(train(tiny, METHODS[name], **SETTINGS, seed=5)))
    assert runs[0] == runs[1]
    assert runs[0]["irreproducible"] == ""


def test_another_seed_gives_another_run(tiny: Dataset) -> None:
    runs = [train(tiny, METHODS["equal"], **SETTINGS, seed=seed) for seed in (5, 6)]
    assert runs[0].test != runs[1].test


def test_an_accelerator_is_said_to_make_runs_differ_unless_it_is_told_not_to() -> None:
    assert "use_deterministic_algorithms" in why_irreproducible(torch.device("cuda"))
    torch.use_deterministic_algorithms(True)
    try:
        assert why_irreproducible(torch.device("cuda")) == ""
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_data_file_that_vanishes_in_mid_run_changes_nothing(tmp_path: Path) -> None:
    source = tmp_path / "set.parquet"
    write_dataset(load("funnel", rows=1000), source)
    settings = SETTINGS | {"epochs": 1}
    whole = train(read_dataset(source), METHODS["equal"], **settings)
    gone = train(read_dataset(source), METHODS["equal"], **settings, on_step=lambda *_: source.unlink(missing_ok=True))
    assert not source.exists()
    assert comparable(gone) == comparable(whole)


def test_the_seed_decides_both_weights_and_batches(tiny: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    step = Learner.step

    def spy(learner: Learner, batch: Batch) -> torch.Tensor:
        seen.append((learner.state_dict()["models"][0]["bottom.0.weight"].clone(), batch.numeric))
        return step(learner, batch)

    monkeypatch.setattr(Learner, "step", spy)
    for seed in (5, 6):
        train(tiny, METHODS["equal"], batch_size=700, seed=seed)
    assert not torch.equal(seen[0][0], seen[1][0])
    assert not torch.equal(seen[0][1], seen[1][1])


def test_losses_are_the_mean_over_the_steps_since_the_evaluation_point_before(
    tiny: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = []
    step = Learner.step
    monkeypatch.setattr(Learner, "step", lambda learner, batch: (losses.append(step(learner, batch)), losses[-1])[1])
    run = train(tiny, METHODS["equal"], batch_size=64, evaluations=2)
    for point, window in zip(run.curve, (losses[:5], losses[5:]), strict=True):
        assert list(point["train_loss"].values()) == pytest.approx(torch.stack(window).mean(0).tolist())


def test_before_the_first_step_every_method_has_the_same_losses(tiny: Dataset) -> None:
    batch = next(tiny.train.batches(64))
    found = {
        name: Learner(tiny.schema, method, TrainingSettings.of(lr=1e-2, seed=0)).step(batch)
        for name, method in METHODS.usable().items()
    }
    for losses in found.values():
        torch.testing.assert_close(losses, found["equal"])


def test_training_leaves_the_global_random_state_alone(tiny: Dataset) -> None:
    before = torch.get_rng_state()
    train(tiny, METHODS["multibalance"], **SETTINGS)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_method_sees_the_same_batches_from_the_same_weights(
    tiny: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list] = {}
    step = Learner.step

    def spy(learner: Learner, batch: Batch) -> torch.Tensor:
        record = seen.setdefault(learner.method.name, [])
        if not record:
            record.append([value.clone() for value in learner.state_dict()["models"][0].values()])
        record.append(batch.categorical.clone())
        return step(learner, batch)

    monkeypatch.setattr(Learner, "step", spy)
    for name in ("single-task", "equal", "multibalance"):
        train(tiny, METHODS[name], **SETTINGS, seed=3)
    weights, *batches = seen["equal"]
    for name in ("single-task", "multibalance"):
        own_weights, *own_batches = seen[name]
        shared = len(weights)  # a fork adds buffers of its own behind or between
        assert all(any(torch.equal(weight, own) for own in own_weights) for weight in weights[:shared])
        assert len(batches) == len(own_batches) == 30
        assert all(map(torch.equal, batches, own_batches))


def test_two_epochs_have_different_orders(tiny: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    step = Learner.step
    monkeypatch.setattr(Learner, "step", lambda learner, batch: (seen.append(batch.numeric), step(learner, batch))[1])
    train(tiny, METHODS["equal"], epochs=2, batch_size=64)
    assert not torch.equal(seen[0], seen[10])


def test_the_first_step_of_equal_weights_is_adam_on_the_sum_of_losses(tiny: Dataset) -> None:
    learner = Learner(tiny.schema, METHODS["equal"], TrainingSettings.of(lr=1e-2, seed=0))
    twin = Learner(tiny.schema, METHODS["equal"], TrainingSettings.of(lr=1e-2, seed=0))._members[0].model
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-2)
    batch = next(tiny.train.batches(64))
    losses = learner.step(batch)

    logits = twin(batch.categorical, batch.numeric)
    entropy = nn.functional.binary_cross_entropy_with_logits
    known = ~batch.labels[:, 1].isnan()
    expected = [entropy(logits[0], batch.labels[:, 0]), entropy(logits[1][known], batch.labels[known, 1])]
    sum(expected).backward()
    optimizer.step()
    torch.testing.assert_close(losses, torch.stack(expected).detach())
    for own, other in zip(learner._members[0].model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize("name", ["equal", "pub", "single-task"])
@pytest.mark.parametrize(("schedule", "expected"), [("linear", [1.0, 0.75, 0.5, 0.25]), ("constant", [1.0] * 4)])
def test_the_learning_rate_follows_the_schedule(
    tiny: Dataset, monkeypatch: pytest.MonkeyPatch, name: str, schedule: str, expected: list[float]
) -> None:
    seen = []
    step = Learner.step

    def spy(learner: Learner, batch: Batch) -> torch.Tensor:
        seen.append([group["lr"] for member in learner._members for group in member.optimizer.param_groups])
        return step(learner, batch)

    monkeypatch.setattr(Learner, "step", spy)
    train(tiny, METHODS[name], epochs=4, batch_size=len(tiny.train), lr=1e-2, schedule=schedule)
    for found, factor in zip(seen, expected, strict=True):
        assert found == pytest.approx([1e-2 * factor] * len(found))


def test_single_task_training_of_a_task_is_training_on_its_loss_alone(tiny: Dataset) -> None:
    """Scaling the other task's loss changes nothing, while it does in joint training."""
    for name, same in (("single-task", True), ("equal", False)):
        plain = train(tiny, METHODS[name], **SETTINGS)
        scaled = train(tiny, METHODS[name], **SETTINGS, loss_scale={"like": 23})
        assert (plain.test["click"] == scaled.test["click"]) is same


def test_pivrg_learns_from_each_point_of_the_learning_curve(tiny: Dataset, tmp_path: Path) -> None:
    run = train(tiny, METHODS["pivrg"], **SETTINGS, checkpoint=tmp_path / "checkpoint")
    (model,) = saved_learner(tmp_path / "checkpoint")["models"]
    last = [100 * run.curve[-1]["validation"][task]["ne"] for task in tiny.schema.task_names]
    (scores,) = (value for name, value in model.items() if name.endswith("fork.scores"))
    assert scores.tolist() == pytest.approx(last)


def test_a_scaled_loss_is_reported_unscaled(tiny: Dataset) -> None:
    plain = train(tiny, METHODS["equal"], batch_size=64, evaluations=10)
    scaled = train(tiny, METHODS["equal"], batch_size=64, evaluations=10, loss_scale={"like": 23})
    assert plain.curve[0]["step"] == 1
    assert plain.curve[0]["train_loss"] == scaled.curve[0]["train_loss"]


def test_metrics_are_those_of_the_whole_split_and_weighted_back_to_the_natural_rate(tiny: Dataset, tmp_path) -> None:
    file = tmp_path / "checkpoint"
    run = train(tiny, METHODS["equal"], **SETTINGS, checkpoint=file)
    learner = Learner(tiny.schema, METHODS["equal"], TrainingSettings.of(lr=1e-2, seed=9), total_steps=30)
    learner.load_state_dict(saved_learner(file))
    logits = learner.logits(next(tiny.test.batches(len(tiny.test))))[:, 0]
    labels, weight = tiny.test.labels[:, 0], tiny.test.weight
    assert run.test["click"]["auc"] == pytest.approx(float(auc(logits, labels)))
    assert run.test["click"]["ne"] == pytest.approx(float(normalized_entropy(logits, labels)))
    assert run.test_natural["click"]["ne"] == pytest.approx(float(normalized_entropy(logits, labels, weight)))


def test_evaluation_points_use_at_most_the_rows_asked_for_and_the_last_evaluation_all(
    tiny: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    predict = evaluation.predict
    monkeypatch.setattr(
        evaluation, "predict", lambda learner, split: (sizes.append(len(split)), predict(learner, split))[1]
    )
    train(tiny, METHODS["equal"], **SETTINGS, evaluation_rows=100)
    assert sizes == [100] * 4 + [300, 400]


def test_a_run_that_diverges_ends_there_and_says_so(tiny: Dataset) -> None:
    with pytest.raises(NonFiniteError, match=r"not finite.*lower the learning rate") as caught:
        train(tiny, METHODS["equal"], **SETTINGS | {"lr": 1e30})
    run = caught.value.run
    assert run.status == "diverged"
    assert 0 < run.steps < 30
    assert run.test == run.validation == {}
    assert run.mean_validation_ne == math.inf
    assert "NaN" not in run.to_json()


class _InterruptedError(Exception):
    pass


@pytest.mark.parametrize(
    ("at", "name"),
    [(at, name) for at in (9, 17) for name in METHODS if at == 17 or name not in ON_PARAMETERS]
    + [(10, "multibalance:gram_every=4"), (9, "multibalance:gram_every=4"), (9, "pub:solve_on=last")],
)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(tiny: Dataset, tmp_path, name: str, at: int) -> None:
    def interrupt(done: int, total: int) -> None:
        assert total == 30
        if done == at:
            raise _InterruptedError

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    uninterrupted = train(tiny, name, **SETTINGS, checkpoint=whole)
    with pytest.raises(_InterruptedError):
        train(tiny, name, **SETTINGS, checkpoint=parts, on_step=interrupt)
    resumed = train(tiny, name, **SETTINGS, checkpoint=parts, resume=True)
    assert comparable(resumed) == comparable(uninterrupted)
    expected, found = (saved_learner(folder) for folder in (whole, parts))
    assert tree_structure(found) == tree_structure(expected)
    for value, other in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other


RECIPES = {
    "momentum": {"optimizer": "sgd", "optimizer_options": {"momentum": 0.9}, "weight_decay": 1e-3, "clip_norm": 0.5},
    "row-wise": {"table_optimizer": "rowwise-adagrad", "table_decay": 0.1, "warmup": 0.2, "schedule": "cosine"},
    "row-wise-sparse": {"table_optimizer": "rowwise-adagrad", "model_options": {"sparse": True}, "clip_norm": 0.5},
    "decays": {"optimizer": "adamw", "weight_decay": 0.1, "table_decay": 0.3, "table_lr": 0.03, "warmup": 0.5},
    "fused": {"optimizer_options": {"fused": True}},
    "averaged": {"ema": 0.9, "stop_on": "ne", "lr": 0.05, "evaluations": 10, "patience": 10},
}


@pytest.mark.parametrize("method", ["single-task", "uw"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_resumed_run_of_any_recipe_is_the_uninterrupted_one_to_the_bit(
    tiny: Dataset, tmp_path: Path, method: str, recipe: str
) -> None:
    def interrupt(done: int, _: int) -> None:
        if done == 17:
            raise _InterruptedError

    settings, folder = SETTINGS | RECIPES[recipe], tmp_path / "parts"
    uninterrupted = train(tiny, METHODS[method], **settings, checkpoint=tmp_path / "whole")
    with pytest.raises(_InterruptedError):
        train(tiny, METHODS[method], **settings, checkpoint=folder, on_step=interrupt)
    resumed = train(tiny, METHODS[method], **settings, checkpoint=folder, resume=True)
    assert comparable(resumed) == comparable(uninterrupted)
    expected, found = (tree_leaves(saved_learner(part)) for part in (tmp_path / "whole", folder))
    for value, other in zip(found, expected, strict=True):
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other


def test_what_ends_in_mid_move_goes_back_to_the_last_of_the_checkpoints_every_so_many_steps(
    tiny: Dataset, tmp_path, monkeypatch
) -> None:
    whole = train(tiny, METHODS["multibalance"], **SETTINGS)
    settings, steps, step = SETTINGS | {"checkpoint": tmp_path, "checkpoint_every": 5}, [], torch.optim.Adam.step

    def fail(optimizer: torch.optim.Adam) -> None:
        steps.append(None)
        if len(steps) == 19:
            raise MemoryError
        step(optimizer)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", fail)
        with pytest.raises(MemoryError):
            train(tiny, METHODS["multibalance"], **settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-15"]
    assert comparable(train(tiny, METHODS["multibalance"], **settings, resume=True)) == comparable(whole)


def test_resuming_a_finished_run_gives_its_result_without_training(tiny: Dataset, tmp_path) -> None:
    file = tmp_path / "checkpoint"
    finished = train(tiny, METHODS["equal"], **SETTINGS, checkpoint=file)
    steps = []
    again = train(
        tiny, METHODS["equal"], **SETTINGS, checkpoint=file, resume=True,
        on_step=lambda done, _: steps.append(done),
    )  # fmt: skip
    assert steps == []
    assert asdict(again) == asdict(finished)


def test_beginning_anew_puts_what_an_earlier_training_has_left_aside(tiny: Dataset, tmp_path) -> None:
    folder, settings = tmp_path / "checkpoint", SETTINGS | {"checkpoint": tmp_path / "checkpoint"}
    train(tiny, METHODS["equal"], **settings)
    left = {path.name for path in folder.iterdir()}

    def interrupt(done: int, _: int) -> None:
        if done == 3:
            raise _InterruptedError

    with pytest.raises(_InterruptedError):
        train(tiny, METHODS["equal"], **settings, on_step=interrupt)
    assert [path.name for path in folder.iterdir()] == ["step-3"]
    assert {path.name for path in (tmp_path / "checkpoint.before").iterdir()} == left


def test_ranks_that_are_started_anew_go_on_by_themselves_but_not_from_another_training(tiny: Dataset, tmp_path) -> None:
    settings = SETTINGS | {"checkpoint": tmp_path / "checkpoint", "checkpoint_every": 5}
    world, made = World(restarted=True), []

    def progress(step: int, _: int) -> None:
        made.append(step)
        if len(made) == 7:
            raise _InterruptedError

    with pytest.raises(_InterruptedError):
        train(tiny, METHODS["equal"], **settings, on_step=progress)
    whole = train(tiny, METHODS["equal"], **SETTINGS)
    found = train(tiny, METHODS["equal"], **settings, world=world, on_step=progress)
    assert made[7] in {6, 8}  # one after a checkpoint
    assert found.test == whole.test
    assert not (tmp_path / "checkpoint.before").exists()
    made.clear()
    with pytest.raises(_InterruptedError):
        train(tiny, METHODS["equal"], **settings | {"lr": 0.02}, world=world, on_step=progress)
    assert made[0] == 1
    assert (tmp_path / "checkpoint.before" / f"step-{whole.steps}").is_dir()


def test_a_checkpoint_of_other_settings_is_refused(tiny: Dataset, tmp_path) -> None:
    file = tmp_path / "checkpoint"
    train(tiny, METHODS["equal"], **SETTINGS, checkpoint=file)
    with pytest.raises(CheckpointError, match=r"lr: 0\.01 there, 0\.02 here"):
        train(tiny, METHODS["equal"], **SETTINGS | {"lr": 0.02}, checkpoint=file, resume=True)
    with pytest.raises(CheckpointError, match="method"):
        train(tiny, METHODS["multibalance"], **SETTINGS, checkpoint=file, resume=True)
    labels = tiny.train.labels.clone()
    labels[0, 0] = 1 - labels[0, 0]
    other = replace(tiny, train=replace(tiny.train, labels=labels))
    with pytest.raises(CheckpointError, match=r"data: .* there, .* here"):
        train(other, METHODS["equal"], **SETTINGS, checkpoint=file, resume=True)


@pytest.mark.parametrize("place", ["learner", "learner/models", "non_finite", "window/sums", "rng", "run/seconds"])
def test_a_checkpoint_that_lacks_a_part_is_refused_in_one_sentence(tiny: Dataset, tmp_path, place: str) -> None:
    settings = SETTINGS | {"checkpoint": tmp_path / "checkpoint"}
    train(tiny, METHODS["multibalance"], **settings)
    path = last_checkpoint(tmp_path / "checkpoint") / "state.json"
    content = json.loads(json.loads(path.read_text())["content"])
    *above, last = place.split("/")
    found = content["state"]
    for name in above:
        found = found[name]
    found[f"{last}-of-another-version"] = found.pop(last)
    text = json.dumps(content)
    path.write_text(json.dumps({"crc": zlib.crc32(text.encode()), "content": text}))
    with pytest.raises(
        CheckpointError, match=rf"should be a dict of .*, found no {last} and unknown {last}-of-another.*without resume"
    ):
        train(tiny, METHODS["multibalance"], **settings, resume=True)


def test_the_order_in_which_options_are_stated_does_not_matter(tiny: Dataset, tmp_path) -> None:
    settings = SETTINGS | {"checkpoint": tmp_path / "checkpoint"}
    first = train(tiny, METHODS["equal"], **settings, loss_scale={"click": 2.0, "like": 3.0})
    again = train(tiny, METHODS["equal"], **settings, loss_scale={"like": 3.0, "click": 2.0}, resume=True)
    assert again.test == first.test


def test_to_resume_takes_a_folder(tiny: Dataset) -> None:
    with pytest.raises(SettingError, match=r"expected checkpoint=\.\.\., found none"):
        train(tiny, METHODS["equal"], **SETTINGS, resume=True)


def test_impossible_settings_are_named(tiny: Dataset) -> None:
    with pytest.raises(SettingError, match="at least one batch of 701 rows, found 700"):
        train(tiny, METHODS["equal"], batch_size=701)
    for name in ("epochs", "batch_size", "evaluations", "evaluation_rows", "monitor_reads"):
        with pytest.raises(SettingError, match=f"{name}: input should be greater than or equal to 1; found 0"):
            train(tiny, METHODS["equal"], **{"batch_size": 64, name: 0})
    with pytest.raises(SettingError, match="lr: input should be greater than 0; found 0"):
        train(tiny, METHODS["equal"], batch_size=64, lr=0.0)
    with pytest.raises(SettingError, match="tasks out of click, like; found share"):
        train(tiny, METHODS["equal"], batch_size=64, loss_scale={"share": 2})
    with pytest.raises(SettingError, match=r"model out of shared-bottom, mmoe, ple.*found 'dlrm'"):
        train(tiny, METHODS["equal"], batch_size=64, model="dlrm")
    with pytest.raises(SettingError, match=r"takes the options embedding_dim.*found dropout"):
        train(tiny, METHODS["equal"], batch_size=64, model_options={"dropout": 0.1})


def test_a_batch_that_ranks_cannot_share_equally_is_refused(tiny: Dataset) -> None:
    with pytest.raises(SettingError, match="batch_size must be a multiple of the 3 ranks that share it, found 64"):
        train(tiny, METHODS["equal"], batch_size=64, world=World(0, 3))


def test_model_options_are_checked_against_the_kind_of_their_defaults(tiny: Dataset) -> None:
    run = train(tiny, METHODS["equal"], batch_size=64, model_options={"bottom": [8, 4], "tower": 3})
    assert run.status == "ok"
    with pytest.raises(SettingError, match=r"bottom: should be a number.* list of whole numbers; found \[0\.5\]"):
        train(tiny, METHODS["equal"], batch_size=64, model_options={"bottom": [0.5]})
    for wrong in ("wide", True):
        with pytest.raises(SettingError, match="bottom: expected whole numbers such as 128-64"):
            train(tiny, METHODS["equal"], batch_size=64, model_options={"bottom": wrong})
    with pytest.raises(SettingError, match=r"embedding_dim: expected a value like 8, found 0\.5"):
        train(tiny, METHODS["equal"], batch_size=64, model_options={"embedding_dim": 0.5})
    with pytest.raises(SettingError, match="embedding dimension must be at least 1, found 0"):
        train(tiny, METHODS["equal"], batch_size=64, model_options={"embedding_dim": 0})


def test_steps_leave_out_the_last_short_batch_of_each_epoch(tiny: Dataset) -> None:
    assert count_steps(tiny, epochs=3, batch_size=64) == 30


def test_a_task_without_labels_in_validation_has_no_metrics_there_and_does_not_end_the_run(
    tiny: Dataset,
) -> None:
    labels = tiny.validation.labels.clone()
    labels[:, 1] = torch.nan
    validation = Split(tiny.validation.categorical, tiny.validation.numeric, labels, tiny.validation.weight)
    run = train(replace(tiny, validation=validation), METHODS["equal"], **SETTINGS)
    assert run.status == "ok"
    assert math.isnan(run.validation["like"]["auc"])
    assert json.loads(run.to_json())["validation"]["like"]["auc"] is None


def test_a_second_training_into_the_folder_of_checkpoints_is_refused_while_the_first_runs(
    tiny: Dataset, tmp_path
) -> None:
    refused = []

    def start_another(done: int, _: int) -> None:
        if done == 10:
            for resume in (False, True):
                with pytest.raises(FolderInUseError, match=f"process {os.getpid()} on"):
                    train(tiny, METHODS["equal"], **SETTINGS, checkpoint=tmp_path, resume=resume)
                refused.append(resume)

    disturbed = train(tiny, METHODS["equal"], **SETTINGS, checkpoint=tmp_path, on_step=start_another)
    assert refused == [False, True]
    assert comparable(disturbed) == comparable(train(tiny, METHODS["equal"], **SETTINGS))
    assert not (tmp_path / OWNER_FILE).exists()


@pytest.mark.parametrize("name", ["multibalance", "pub", "adatask"])
def test_a_checkpoint_of_tasks_in_another_order_is_refused_and_both_orders_are_named(
    tiny: Dataset, tmp_path, name: str
) -> None:
    train(tiny, METHODS[name], **SETTINGS, checkpoint=tmp_path)
    other = Schema(tiny.schema.categorical, tiny.schema.numeric, tiny.schema.tasks[::-1])
    splits = {
        part: replace(getattr(tiny, part), labels=getattr(tiny, part).labels.flip(1))
        for part in ("train", "validation", "test")
    }
    with pytest.raises(CheckpointError, match="tasks: click, like there, like, click here"):
        train(replace(tiny, schema=other, **splits), METHODS[name], **SETTINGS, checkpoint=tmp_path, resume=True)


def test_a_split_that_fits_is_copied_to_the_device_once_and_gives_the_same_batches(tiny: Dataset) -> None:
    """The meta device stands for an accelerator, on which no number can be looked at."""
    device, size = torch.device("meta"), 700 * (2 * 4 + 2 * 4 + 2 * 4 + 4)
    assert loop_module._on_device(tiny.train, device, 2 * size).labels.is_meta
    assert loop_module._on_device(tiny.train, device, 2 * size - 1) is tiny.train
    batches = list(loop_module._stream(loop_module._on_device(tiny.train, device, 2 * size), 64, 0, 2, done=3))
    assert [step for step, _ in batches] == list(range(4, 21))
    assert all(batch.categorical.is_meta and len(batch) == 64 for _, batch in batches)


def test_on_a_cpu_the_batches_are_those_of_the_split_itself(tiny: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Split, "to", lambda *_: pytest.fail("the split was copied"))
    train(tiny, METHODS["equal"], **SETTINGS)


def test_each_model_of_single_task_training_may_have_a_rate_of_its_own(tiny: Dataset) -> None:
    settings = {"epochs": 1, "batch_size": 64, "evaluations": 1}
    slow, fast = (train(tiny, "single-task", lr=lr, **settings) for lr in (1e-3, 1e-2))
    mixed = train(tiny, "single-task:rates=0.001-0.01", lr=5e-2, **settings)
    assert mixed.test == {"click": slow.test["click"], "like": fast.test["like"]}
    for wrong in ("rates=0.1-0.1-0.1", "decays=0.1", "rates=0-0.1"):
        with pytest.raises(MethodError, match="2 numbers"):
            train(tiny, f"single-task:{wrong}", lr=1e-3, **settings)
