"""The moving average of the weights: made as by a plain loop, evaluated, exported, and no part of the steps."""

import pytest
import torch
from torch import nn

from equipoise.data import Dataset
from equipoise.methods import METHODS
from equipoise.settings import TrainingSettings
from equipoise.training import IncompatibleError, Learner, train

SETTINGS = {"epochs": 3, "batch_size": 64, "lr": 0.05, "evaluations": 3}


@pytest.mark.parametrize("name", ["equal", "multibalance", "single-task", "pub", "uw"])
def test_averages_are_those_of_a_plain_loop_and_predict_while_the_steps_are_the_same(tiny: Dataset, name: str) -> None:
    settings = TrainingSettings.of(lr=0.05, ema=0.8)
    learner, plain = (
        Learner(tiny.schema, METHODS[name], given) for given in (settings, settings.model_copy(update={"ema": None}))
    )
    expected = [[p.detach().double() for p in member.model.parameters()] for member in learner._members]
    batches = list(tiny.train.batches(64))[:10]
    for step, batch in enumerate(batches, start=1):
        assert torch.equal(learner.step(batch), plain.step(batch))
        decay = min(0.8, (1 + step) / (10 + step))
        for averages, member in zip(expected, learner._members, strict=True):
            for place, p in enumerate(member.model.parameters()):
                averages[place] = decay * averages[place] + (1 - decay) * p.detach().double()
    before = plain.logits(batches[0])
    assert not torch.equal(learner.logits(batches[0]), before)
    for averages, member, other in zip(expected, learner._members, plain._members, strict=True):
        for average, found in zip(averages, member.averaged.averages.values(), strict=True):
            torch.testing.assert_close(found.double(), average, rtol=1e-5, atol=1e-6)
        for p, same in zip(member.model.parameters(), other.model.parameters(), strict=True):
            assert torch.equal(p, same)
    predicted = learner.logits(batches[0])
    learner.use_averages()
    torch.testing.assert_close(learner.logits(batches[0]), predicted)
    model = learner.model().eval()
    torch.testing.assert_close(
        torch.stack(model(batches[0].categorical, batches[0].numeric), dim=1).detach(), predicted
    )


def test_a_fork_keeps_its_own_state_which_is_not_averaged(tiny: Dataset) -> None:
    learner = Learner(tiny.schema, METHODS["multibalance"], TrainingSettings.of(ema=0.9))
    (member,) = learner._members
    buffers = {name for name, _ in member.model.named_buffers()}
    assert buffers
    assert not buffers & member.averaged.averages.keys()
    for batch in list(tiny.train.batches(64))[:3]:
        learner.step(batch)
    before = {name: value.clone() for name, value in member.model.named_buffers()}
    learner.use_averages()
    assert all(torch.equal(value, before[name]) for name, value in member.model.named_buffers())


def test_the_metrics_and_the_model_of_a_run_are_those_of_the_averages(tiny: Dataset) -> None:
    models: list[nn.Module] = []
    run = train(tiny, "multibalance", **SETTINGS, ema=0.95, on_trained=models.append)
    plain = train(tiny, "multibalance", **SETTINGS)
    assert run.curve[-1]["train_loss"] == plain.curve[-1]["train_loss"]
    assert run.test["click"]["ne"] != plain.test["click"]["ne"]
    batch = next(tiny.test.batches(len(tiny.test)))
    with torch.no_grad():
        click = models[0](batch.categorical, batch.numeric)[0].double()
    loss = nn.functional.binary_cross_entropy_with_logits(click, batch.labels[:, 0].double())
    assert run.test["click"]["log_loss"] == pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.parametrize("setting", [{"ema": 0.9}, {"stop_on": "ne"}])
def test_weights_that_lie_over_ranks_are_refused_with_a_remedy(
    tiny: Dataset, setting: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    with pytest.raises(IncompatibleError, match=r"keeps a second set of weights whole .* use sharding ddp"):
        Learner(tiny.schema, METHODS["equal"], TrainingSettings.of(sharding="fsdp", **setting))
