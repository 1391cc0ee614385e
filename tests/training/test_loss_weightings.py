"""A learner with a loss weighting trains as a plain loop with torchjd's scalarization does."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchjd.scalarization import DWA, FAMO, UW, Scalarizer

from equipoise.data import Dataset
from equipoise.methods import CATALOGUE, METHODS, Method, MethodError
from equipoise.methods.from_torchjd import famo
from equipoise.ranking.losses import task_losses
from equipoise.ranking.models import build_model
from equipoise.schema import Batch
from equipoise.settings import TrainingSettings
from equipoise.training import Learner, train
from equipoise.training.checkpoint.plain_state import decode, encode
from equipoise.training.state_checks import UnexpectedStateError

SCALARIZERS = {"uw": lambda: UW(2), "dwa": DWA, "famo": lambda: FAMO(2)}
STEPS, EPOCH = 30, 6


def batches(dataset: Dataset) -> list[Batch]:
    found: list[Batch] = []
    while len(found) < STEPS:
        found += dataset.train.batches(64, generator=torch.Generator().manual_seed(len(found)))
    return found[:STEPS]


def learner(dataset: Dataset, name: str, **settings) -> Learner:
    return Learner(dataset.schema, METHODS[name], TrainingSettings.of(lr=0.02, seed=1, **settings), epoch_steps=EPOCH)


@pytest.mark.parametrize("scale", [1, 7])
@pytest.mark.parametrize("name", SCALARIZERS)
def test_a_training_is_that_of_a_plain_loop(tiny: Dataset, name: str, scale: float) -> None:
    trained = learner(tiny, name, loss_scale={"like": float(scale)})
    torch.manual_seed(1)
    model = build_model("shared-bottom", tiny.schema)
    scalarizer: Scalarizer = SCALARIZERS[name]()
    learned = list(scalarizer.parameters()) if name == "uw" else []
    optimizer = torch.optim.Adam([*model.parameters(), *learned], lr=0.02)

    def losses(batch: Batch) -> Tensor:
        found = task_losses(model(batch.categorical, batch.numeric), batch.labels, tiny.schema.tasks)
        return torch.stack(found) * torch.tensor([1.0, scale])

    for step, batch in enumerate(batches(tiny), start=1):
        trained.step(batch)
        optimizer.zero_grad()
        scalarizer(losses(batch)).backward()
        optimizer.step()
        if name == "famo":
            scalarizer.update(losses(batch))
        if name == "dwa" and step % EPOCH == 0:
            scalarizer.step()
    (member,) = trained._members
    assert member.weighting is not None
    for own, other in zip(member.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4)
    for own, other in zip(member.weighting.scalarizer.parameters(), scalarizer.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(member.weighting.last_weights[0], member.weighting.last_weights[1], rtol=1e-3)


def test_learned_weights_have_the_models_rate_and_no_decay_of_the_tables(tiny: Dataset) -> None:
    trained = Learner(
        tiny.schema, METHODS["uw"], TrainingSettings.of(lr=0.02, table_decay=0.5), total_steps=10, epoch_steps=5
    )
    (member,) = trained._members
    (parameter,) = member.weighting.learned_parameters()
    trained.step(batches(tiny)[0])
    (group,) = [group for group in member.optimizer.param_groups if any(p is parameter for p in group["params"])]
    assert group["weight_decay"] == 0
    assert group["lr"] == member.optimizer.param_groups[0]["lr"] < 0.02
    assert parameter.abs().min() > 0.01  # one step of Adam


def test_weights_are_in_the_record_of_a_run(tiny: Dataset) -> None:
    run = train(tiny, METHODS["uw"], lr=0.02, epochs=2, batch_size=64, evaluations=2, monitor_reads=5)
    assert all({"loss/weight/click", "loss/weight/like"} <= reading.keys() for reading in run.monitor)
    assert run.monitor[-1]["loss/weight/click"] != run.monitor[0]["loss/weight/click"]


def test_dwa_weighs_from_the_third_epoch_on(tiny: Dataset) -> None:
    run = train(tiny, METHODS["dwa"], lr=0.02, epochs=4, batch_size=100, evaluations=2, monitor_reads=28)
    weights = [reading["loss/weight/click"] for reading in run.monitor]
    assert len(weights) == 28
    assert set(weights[:14]) == {1.0}
    assert all(weight != 1.0 for weight in weights[14:])
    assert len(set(weights)) == 3  # one for each of the last two epochs


@pytest.mark.parametrize(("name", "passes"), [("famo", 2), ("famo-next-batch", 1)])
def test_famo_on_the_next_batch_saves_the_second_forward_pass(tiny: Dataset, name: str, passes: int) -> None:
    trained = learner(tiny, name)
    first, *others = batches(tiny)[:4]
    trained.step(first)
    calls: list[None] = []
    trained._members[0].module.register_forward_hook(lambda *_: calls.append(None))
    for batch in others:
        trained.step(batch)
    assert len(calls) == passes * len(others)


LOSS_ROWS = [method.name for method in CATALOGUE if method.loss_weighting is not None]


@pytest.mark.parametrize("name", LOSS_ROWS)
def test_a_resumed_training_goes_on_to_the_last_bit(tiny: Dataset, name: str) -> None:
    whole, first, second = (learner(tiny, name) for _ in range(3))
    steps = batches(tiny)[:16]  # epochs end after 6 and 12
    for batch in steps[:7]:
        first.step(batch)
    tensors: dict[str, Tensor] = {}
    plain = encode(first.state_dict(), tensors)
    torch.manual_seed(5)
    second.load_state_dict(decode(plain, {key: value.clone() for key, value in tensors.items()}))
    losses = torch.stack([whole.step(batch) for batch in steps])
    assert torch.equal(torch.stack([second.step(batch) for batch in steps[7:]]), losses[7:])
    weights = [trained._members[0].weighting.last_weights for trained in (whole, second)]
    assert torch.equal(*weights)


@pytest.mark.parametrize("name", LOSS_ROWS)
def test_a_loss_of_0_leaves_the_weights_finite(name: str) -> None:
    """A batch without a positive label has such a loss where the model is sure of it: float32 holds no smaller one."""
    weighting = METHODS[name].build_loss_weighting(["click", "like"])
    for loss in (0.7, 0.0, 0.5):
        losses = torch.tensor([0.4, loss])
        weights = weighting.weigh(losses, losses > -1)
        assert weights.isfinite().all()
        weighting.after_backward(weights.square().diag() * losses)
        weighting.after_step(losses, losses > -1)
        weighting.after_epoch()
    assert (weights > 0).all()


def test_a_weighting_whose_needs_are_not_stated_is_refused() -> None:
    with pytest.raises(MethodError, match="learns from that: expected needs with 'forward after step'; found"):
        Method("own", loss_weighting=famo).build_loss_weighting(["a", "b"])
    with pytest.raises(MethodError, match="does not learn from that: expected needs without 'epochs'"):
        Method("own", loss_weighting=famo, needs={"forward after step", "epochs"}).build_loss_weighting(["a", "b"])


@pytest.mark.parametrize("name", ["uw", "equal", "pub", "single-task"])
def test_the_state_of_tasks_in_another_order_is_refused_by_name(tiny: Dataset, name: str) -> None:
    """The optimizer's state goes by the places of its parameters, be they a weighting's or those of towers."""
    trained = learner(tiny, name)
    trained.step(batches(tiny)[0])
    reordered = Learner(replace(tiny.schema, tasks=tiny.schema.tasks[::-1]), METHODS[name], TrainingSettings(lr=0.02))
    before = copy.deepcopy(reordered.state_dict())
    with pytest.raises(UnexpectedStateError, match="the tasks in the order like, click, found click, like"):
        reordered.load_state_dict(trained.state_dict())
    torch.testing.assert_close(reordered.state_dict()["models"], before["models"])
    learner(tiny, name).load_state_dict(trained.state_dict())
