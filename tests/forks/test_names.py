"""A fork's state goes by its tasks' names: order, tasks that come and go, state dicts from before the fork."""

import copy
import io

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from equipoise.forks import Fork, GradDrop, MultiBalance, Weighted
from tests.forks.fork_gradients import Towers, feed, random

quick = settings(max_examples=40, deadline=None, derandomize=True, database=None)
NAMES = ("click", "buy", "share", "hide")


def trained(tasks: list[str], **options) -> MultiBalance:
    """Three steps in which a task's gradient depends on its name alone."""
    fork = MultiBalance(tasks, **({"gamma": 0.3, "beta": 0.5} | options))
    for step in range(3):
        feed(fork, gradients_of(tasks, step))
    return fork


def gradients_of(tasks: list[str], step: int) -> list[Tensor]:
    return [10.0 ** NAMES.index(task) * random(10 * step + NAMES.index(task), 30) for task in tasks]


def by_task(fork: MultiBalance) -> dict[str, tuple[float, float, float]]:
    rows = zip(fork.tasks, *fork.averages.tolist(), fork.balance.tolist(), strict=True)
    return {task: numbers for task, *numbers in rows}


@quick
@given(tasks=st.permutations(NAMES), order=st.permutations(NAMES), overlap=st.booleans())
def test_another_order_permutes_the_state_and_training_goes_on(tasks, order, overlap):
    fork, other = trained(tasks, overlap=overlap), MultiBalance(order, gamma=0.3, beta=0.5, overlap=overlap)
    other.load_state_dict(fork.state_dict())
    assert by_task(other) == by_task(fork)
    found, expected = (feed(f, gradients_of(f.tasks, 7)) for f in (other, fork))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    place = [fork.tasks.index(task) for task in other.tasks]
    torch.testing.assert_close(other.last_weights, fork.last_weights[place], rtol=1e-4, atol=1e-7)


def test_a_new_task_starts_fresh_also_in_a_strict_load():
    fork, other = trained(["click", "buy"]), MultiBalance(["share", "buy", "click"])
    assert not other.load_state_dict(fork.state_dict()).missing_keys
    before, after = by_task(fork), by_task(other)
    for task in ("click", "buy"):
        assert after[task][:2] == before[task][:2]
    assert after["share"][:2] == [0.0, 0.0]
    assert other.magnitudes[0].isnan()
    assert other.balance.sum().item() == pytest.approx(1.0)
    assert after["click"][2] / after["buy"][2] == pytest.approx(before["click"][2] / before["buy"][2])
    assert after["share"][2] == pytest.approx(0.25)  # 1/3 beside what sums to 1


def test_a_lost_task_is_named_in_a_strict_load_and_dropped_in_another():
    fork = trained(["click", "buy", "share"])
    with pytest.raises(RuntimeError, match="the saved task 'share' is none of buy, click"):
        MultiBalance(["buy", "click"]).load_state_dict(fork.state_dict())
    model = nn.ModuleDict({"fork": MultiBalance(["buy", "click"])})
    found = model.load_state_dict(nn.ModuleDict({"fork": fork}).state_dict(), strict=False)
    assert found.unexpected_keys == ["fork.tasks: the saved task 'share' is none of buy, click"]
    assert by_task(model["fork"])["buy"][:2] == by_task(fork)["buy"][:2]
    assert model["fork"].balance.sum().item() == pytest.approx(1.0)


def test_a_state_dict_from_before_the_fork_leaves_the_reset_state():
    before, model = Towers(None), Towers(trained(list(NAMES[:3])))
    fresh = MultiBalance(NAMES[:3])
    model.load_state_dict(before.state_dict())
    assert by_task(model.fork) == by_task(fresh)
    assert torch.equal(model.bottom.weight, before.bottom.weight)


@pytest.mark.parametrize("overlap", [False, True])
def test_overlap_may_be_switched_on_and_off_between_runs(overlap):
    fork, other = trained(["click", "buy"], overlap=overlap), trained(["click", "buy"], overlap=not overlap)
    found = other.load_state_dict(fork.state_dict())
    assert not found.missing_keys
    assert not found.unexpected_keys
    assert by_task(other) == by_task(fork)
    if other.overlap:
        assert not other.arriving.any()
        assert other.known_weights.tolist() == [1.0, 1.0]


def test_state_without_names_is_refused():
    state = trained(["click", "buy"]).state_dict()
    del state["_extra_state"]
    with pytest.raises(RuntimeError, match=r"names of its tasks are missing.*leave out all of the fork's entries"):
        MultiBalance(["click", "buy"]).load_state_dict(state)


@pytest.mark.parametrize("names", [None, 3, torch.tensor([255, 0], dtype=torch.uint8), torch.tensor([0.5]), ["click"]])
def test_damaged_names_are_refused(names):
    state = trained(["click", "buy"]).state_dict() | {"_extra_state": names}
    with pytest.raises(RuntimeError, match="expected the names of a fork's tasks as bytes"):
        MultiBalance(["click", "buy"]).load_state_dict(state)


def test_entries_of_another_size_than_their_names_are_refused():
    state = trained(["click", "buy", "share"]).state_dict() | {"_extra_state": MultiBalance(["a"]).get_extra_state()}
    with pytest.raises(RuntimeError, match=r"'balance' has the shape \[3\] for 1 tasks"):
        MultiBalance(["click", "buy"]).load_state_dict(state)


def test_a_subclass_must_say_which_dimensions_run_over_tasks():
    class Counting(Fork):
        def __init__(self, tasks) -> None:
            super().__init__(tasks)
            self.register_buffer("steps", torch.zeros(len(self.tasks)))

    state = Counting(["click", "buy"]).state_dict()
    Counting(["click", "buy"]).load_state_dict(state)
    with pytest.raises(RuntimeError, match="'steps' is not in the fork's task_dims"):
        Counting(["buy", "click"]).load_state_dict(state)


def test_the_state_of_a_module_in_a_fork_cannot_change_its_order():
    def weighted(tasks: list[str]) -> Weighted:
        return Weighted(tasks, nn.BatchNorm1d(2))

    state = weighted(["click", "buy"]).state_dict()
    weighted(["click", "buy"]).load_state_dict(state)
    with pytest.raises(
        RuntimeError, match=r"saved for click, buy and is for buy, click, and 'weighting.*list the same"
    ):
        weighted(["buy", "click"]).load_state_dict(state)


def test_a_fork_without_state_saves_nothing():
    assert Fork(["a"]).state_dict() == Weighted(["a"], [1.0]).state_dict() == {}
    Towers(Fork(3)).load_state_dict(Towers(None).state_dict())


def test_names_of_any_letters_go_through_a_file_that_runs_no_code():
    names = ["clic ✓", 'a "quoted" one', "x.y/z"]
    fork = MultiBalance(names)
    feed(fork, [random(m, 5) for m in range(3)])
    file = io.BytesIO()
    torch.save(fork.state_dict(), file)
    file.seek(0)
    other = MultiBalance(names[::-1])
    other.load_state_dict(torch.load(file, weights_only=True))
    assert by_task(other) == by_task(fork)


def test_a_draw_has_no_dimension_over_tasks():
    fork = GradDrop(["click", "buy"])
    feed(fork, [random(0, 5), random(1, 5)])
    other = GradDrop(["buy", "click"])
    other.load_state_dict(fork.state_dict())
    assert other.draws == 1


@pytest.mark.parametrize("overlap", [False, True])
def test_a_fork_may_be_given_its_own_state(overlap):
    fork = trained(["click", "buy"], overlap=overlap)
    before = by_task(fork)
    fork.load_state_dict(fork.state_dict())
    assert by_task(fork) == before


@pytest.mark.parametrize("value", [3, None, "averages", torch.zeros(3)])
def test_an_entry_that_is_no_tensor_or_of_another_shape_is_refused(value):
    fork = trained(["click", "buy"])
    with pytest.raises(RuntimeError, match="averages"):
        fork.load_state_dict(fork.state_dict() | {"averages": value})


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_distributed_checkpoint_keeps_the_names(tmp_path):
    def model(tasks: list[str]) -> nn.Module:
        return nn.ModuleDict({"bottom": nn.Linear(3, 2), "fork": MultiBalance(tasks)})

    fork, other = model(["click", "buy"]), model(["click", "buy"])
    fork["fork"].load_state_dict(trained(["click", "buy"]).state_dict())
    dcp.save({"model": get_model_state_dict(fork)}, checkpoint_id=tmp_path)
    into = {"model": get_model_state_dict(other)}
    dcp.load(into, checkpoint_id=tmp_path)
    set_model_state_dict(other, into["model"])
    assert by_task(other["fork"]) == by_task(fork["fork"])
    turned = model(["buy", "click"])
    set_model_state_dict(turned, into["model"])
    assert by_task(turned["fork"]) == by_task(fork["fork"])


# --- what is no state ----------------------------------------------------------------------------------


@pytest.mark.parametrize("multi_avg_fn", [None, get_ema_multi_avg_fn(0.5)], ids=["swa", "ema"])
@pytest.mark.parametrize(
    "fork",
    [MultiBalance(3), MultiBalance(3, overlap=True), MultiBalance(3, gram_every=2), GradDrop(3), Fork(3)],
    ids=repr,
)
def test_averaged_models_take_forks_with_their_buffers(fork, multi_avg_fn):
    model = Towers(copy.deepcopy(fork))
    averaged = AveragedModel(model, multi_avg_fn=multi_avg_fn, use_buffers=True)
    for step in range(3):
        sum(model(random(step, 8, 6))).backward()
        averaged.update_parameters(model)
    assert int(averaged.n_averaged) == 3
    if isinstance(fork, MultiBalance):
        assert averaged.module.fork.balance.sum().item() == pytest.approx(1.0)
    sum(averaged.module(random(0, 8, 6))).backward()  # and it can be trained on


def test_what_a_step_looked_like_is_no_buffer_and_moves_with_the_module():
    fork = MultiBalance(["click", "buy"], task_weights=[1, 3])
    assert [name for name, _ in fork.named_buffers()] == ["balance", "averages"]
    feed(fork, [random(0, 5), random(1, 5)])
    kept = ("last_gram", "last_weights", "last_present", "preferences")
    for twin in (copy.deepcopy(fork), fork):
        for name in kept:
            assert torch.equal(getattr(twin, name), getattr(fork, name))
    before = fork.last_weights.clone()
    fork.to(torch.bfloat16)
    assert torch.equal(fork.last_weights, before)
    fork.to(torch.float64)
    assert {getattr(fork, name).dtype for name in kept} == {torch.float64, torch.bool}
    fork.to("meta")
    assert all(getattr(fork, name).is_meta for name in kept)


def test_what_a_step_looked_like_follows_the_gradients_where_an_engine_moves_buffers_alone():
    fork = MultiBalance(2)
    for name, buffer in fork.named_buffers():
        setattr(fork, name, buffer.to("meta"))
    shared = torch.zeros(3, device="meta", requires_grad=True)
    sum(branch.sum() for branch in fork(shared)).backward()
    assert fork.last_gram.is_meta
    assert fork.preferences.is_meta
