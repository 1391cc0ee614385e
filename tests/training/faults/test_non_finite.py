"""One bad batch: its task is named and left out, and nothing else changes."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from equipoise.data import Dataset
from equipoise.settings import TrainingSettings
from equipoise.training import (
    METHODS,
    IncompatibleError,
    Learner,
    NonFiniteError,
    StoppedError,
    World,
    parse_method,
    train,
)
from equipoise.training import learner as learner_module
from equipoise.training.compatibility import Combination, check_compatible
from equipoise.training.ranks.parallel import Sharding

SETTINGS = {"epochs": 3, "batch_size": 64, "lr": 1e-2, "evaluations": 3, "monitor_reads": 30}
BAD = (12, 17)


@pytest.fixture(params=["loss", "gradient"])
def bad_batches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The loss of `like`, or its gradient alone, is NaN in two steps of every training that starts after this."""
    losses, steps = learner_module.task_losses, [0]

    def spoilt(*given: object, **options: object) -> list[Tensor]:
        steps[0] += 1
        found = losses(*given, **options)
        if steps[0] not in BAD:
            return found
        nothing = (found[1] - found[1].detach()).sqrt()  # a 0 with a gradient of 0 * inf
        return [found[0], found[1] * torch.nan if request.param == "loss" else found[1] + 0 * nothing]

    monkeypatch.setattr(learner_module, "task_losses", spoilt)
    return steps


def test_by_default_the_task_and_the_step_are_named_and_the_last_checkpoint_is_from_before(
    tiny: Dataset, bad_batches: list[int], tmp_path
) -> None:
    with pytest.raises(NonFiniteError, match=r"first of like in step 12: lower the learning rate") as caught:
        train(tiny, METHODS["multibalance"], **SETTINGS, checkpoint=tmp_path)
    assert caught.value.run.non_finite == {"like": 1}
    assert caught.value.run.steps == bad_batches[0] == 12
    assert [path.name for path in tmp_path.iterdir()] == ["step-10"]


def test_a_training_that_was_ended_goes_on_from_its_checkpoint_without_the_task(
    tiny: Dataset, bad_batches: list[int], tmp_path
) -> None:
    whole = train(tiny, METHODS["multibalance"], **SETTINGS, non_finite="skip-task")
    bad_batches[0] = 0
    with pytest.raises(NonFiniteError):
        train(tiny, METHODS["multibalance"], **SETTINGS, checkpoint=tmp_path)
    bad_batches[0] = 10
    run = train(tiny, METHODS["multibalance"], **SETTINGS, checkpoint=tmp_path, resume=True, non_finite="skip-task")
    assert run.test == whole.test
    assert run.non_finite == whole.non_finite == {"like": 2}


@pytest.mark.parametrize("name", ["equal", "multibalance", "pub", "adatask"])
@pytest.mark.parametrize("policy", ["skip-task", "skip-step"])
def test_a_skipped_task_or_step_is_counted_and_spoils_nothing(
    tiny: Dataset, bad_batches: list[int], name: str, policy: str
) -> None:
    run = train(tiny, METHODS[name], **SETTINGS, non_finite=policy)
    assert run.status == "ok"
    assert run.non_finite == {"like": 2}
    assert run.skipped_steps == (2 if policy == "skip-step" else 0)
    assert run.test["click"]["auc"] > 0.75
    assert run.curve[0]["train_loss"]["like"] < 1
    assert bad_batches[0] == run.steps


@pytest.mark.parametrize("name", ["equal", "multibalance", "pub", "adatask", "single-task"])
@pytest.mark.parametrize("policy", ["skip-task", "skip-step"])
def test_an_infinite_feature_spoils_no_parameter(tiny: Dataset, name: str, policy: str) -> None:
    learner = Learner(
        tiny.schema,
        METHODS[name],
        TrainingSettings.of(lr=0.01, seed=0, non_finite=policy, model_options={"bottom": [8], "tower": [4]}),
    )
    for step, batch in enumerate(tiny.train.batches(64)):
        numeric = batch.numeric.clone()
        numeric[5, 1] = torch.inf if step == 3 else 1.0
        losses = learner.step(replace(batch, numeric=numeric))
        assert bool(losses.isnan().all() if step == 3 else losses.isfinite().all())


@pytest.mark.parametrize("policy", ["raise", "skip-task", "skip-step"])
def test_a_gradient_that_overflows_in_a_tasks_own_layers_is_named_and_counted(
    tiny: Dataset, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    """The loss and the gradient at its logits are finite there."""
    step, calls = Learner.step, []

    def overflowing(learner: Learner, batch: object) -> Tensor:
        calls.append(None)
        weight = next(learner._members[0].model.heads[1].parameters())
        hook = weight.register_hook(lambda gradient: gradient * 1e30 * 1e30 if len(calls) in BAD else None)
        try:
            return step(learner, batch)
        finally:
            hook.remove()

    monkeypatch.setattr(Learner, "step", overflowing)
    if policy == "raise":
        with pytest.raises(NonFiniteError, match="first of like in step 12"):
            train(tiny, METHODS["multibalance"], **SETTINGS)
        return
    run = train(tiny, METHODS["multibalance"], **SETTINGS, non_finite=policy)
    assert run.status == "ok"
    assert run.non_finite == {"like": 2}
    assert run.skipped_steps == (2 if policy == "skip-step" else 0)


@pytest.mark.parametrize("policy", ["skip-task", "skip-step"])
def test_counts_go_on_where_a_training_is_stopped_between_two_evaluations(
    tiny: Dataset, bad_batches: list[int], tmp_path, policy: str
) -> None:
    settings = SETTINGS | {"checkpoint": tmp_path, "non_finite": policy}
    whole = train(tiny, METHODS["multibalance"], **SETTINGS, non_finite=policy)
    bad_batches[0] = 0
    with pytest.raises(StoppedError):
        train(tiny, METHODS["multibalance"], **settings, stop=lambda: bad_batches[0] == 14)
    found = train(tiny, METHODS["multibalance"], **settings, resume=True)
    assert found.non_finite == whole.non_finite == {"like": 2}
    assert found.skipped_steps == whole.skipped_steps == (2 if policy == "skip-step" else 0)
    assert found.test == whole.test


@pytest.mark.usefixtures("bad_batches")
def test_in_a_step_that_is_skipped_the_fork_does_not_move_either(tiny: Dataset) -> None:
    learner = Learner(
        tiny.schema, METHODS["multibalance"], TrainingSettings.of(lr=0.01, seed=0, non_finite="skip-step")
    )
    batches = tiny.train.batches(32)
    for step in range(1, 14):
        before = learner.state_dict()["models"][0]
        before = {name: value.clone() for name, value in before.items()}
        learner.step(next(batches))
        after = learner.state_dict()["models"][0]
        moved = [name for name, value in after.items() if not torch.equal(value, before[name])]
        assert bool(moved) == (step not in BAD)


def test_without_a_bad_batch_a_policy_changes_nothing(tiny: Dataset) -> None:
    runs = [
        train(tiny, METHODS["multibalance"], **SETTINGS, non_finite=policy)
        for policy in ("raise", "skip-task", "skip-step")
    ]
    assert runs[0].test == runs[1].test == runs[2].test
    assert not any(run.non_finite or run.skipped_steps for run in runs)


@pytest.mark.parametrize(
    ("method", "sharding", "options", "policy", "message"),
    [
        ("equal", "fsdp", {}, "raise", "found a process by itself: launch with torchrun"),
        ("pub", "fsdp", {}, "raise", "needs every task's whole gradient"),
        ("adatask", "data-parallel", {}, "raise", "shard them table-, row- or column-wise"),
        ("equal", "ddp", {"sparse": True}, "raise", "sparse gives the table sparse gradients"),
        ("pub", "ddp", {"sparse": True}, "raise", "sparse gives the table sparse gradients"),
        ("clippy", "table-wise", {}, "raise", "step in their backward pass"),
        ("equal", "row-wise", {}, "skip-step", "tables have made theirs in the backward pass"),
    ],
)
def test_what_excludes_each_other_is_refused_with_reason_and_remedy(
    method: str, sharding: Sharding, options: dict, policy: str, message: str
) -> None:
    settings = TrainingSettings.of(sharding=sharding, model_options=options, non_finite=policy)
    with pytest.raises(IncompatibleError, match=message):
        check_compatible(Combination(parse_method(method), settings, World(size=2)))


def test_without_torchrec_its_shardings_are_refused_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(IncompatibleError, match=r"needs TorchRec, which is not installed: pip install fbgemm-gpu-cpu"):
        check_compatible(Combination(parse_method("equal"), TrainingSettings.of(sharding="row-wise"), World(size=2)))


def test_what_goes_together_passes_every_check() -> None:
    for name in METHODS:
        check_compatible(Combination(parse_method(name), TrainingSettings.of(sharding="ddp"), World()))
        check_compatible(
            replace(Combination(parse_method(name), TrainingSettings.of(sharding="ddp"), World()), world=World(size=2))
        )
