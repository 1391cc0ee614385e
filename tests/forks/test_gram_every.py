"""A fork that measures the Gram matrix in one step out of several, and reuses its weights between."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor

import equipoise.forks.fork as fork_module
from equipoise.forks import Bargaining, Fork, MultiBalance
from tests.forks.fork_gradients import Fixed, Towers, feed, random


class Counted(Fork):
    """Weighs by the number of the step that measured."""

    def __init__(self, tasks: int, gram_every: int, overlap: bool = False):
        super().__init__(tasks, gram_every=gram_every, overlap=overlap)
        self.steps, self.measured = 0, []

    def weigh(self, gram: Tensor, present: Tensor, /) -> Tensor:
        self.measured.append(self.steps)
        return torch.full_like(gram[0], 2.0 + self.steps)

    def step(self, gradients: list[Tensor | None]) -> Tensor:
        sent = feed(self, gradients)
        self.steps += 1
        return sent


def gradients(seed: int, tasks: int = 3) -> list[Tensor]:
    return [10.0**task * random(10 * seed + task, 4, 5) for task in range(tasks)]


@pytest.mark.parametrize("every", [2, 3, 4, 10])
def test_one_step_of_each_block_measures_and_all_places_get_their_turn(every: int) -> None:
    fork = Counted(1, every)
    for step in range(60 * every):
        fork.step([random(step, 2)])
    assert fork.measured[0] == 0
    assert [step // every for step in fork.measured] == list(range(60))
    turns = [sum(step % every == place for step in fork.measured) for place in range(every)]
    assert min(turns) >= 60 / every - 2
    assert max(turns) <= 60 / every + 2


def test_steps_between_send_the_sum_by_the_weights_of_the_last_measured_step() -> None:
    fork = Counted(3, 4)
    for step in range(12):
        arrived = gradients(step)
        sent = fork.step(arrived)
        weight = 2.0 + fork.measured[-1]
        torch.testing.assert_close(sent, weight * (arrived[0] + arrived[1] + arrived[2]))
        assert fork.last_weights.tolist() == [weight] * 3
    assert len(fork.measured) == 3


def test_steps_between_compute_no_inner_product(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    whole = fork_module.gram_matrix
    monkeypatch.setattr(fork_module, "gram_matrix", lambda *given: made.append(0) or whole(*given))
    fork = MultiBalance(3, gram_every=4)
    for step in range(40):
        feed(fork, gradients(step))
    assert len(made) == 10


def test_gradients_of_constant_length_are_weighed_as_by_a_fork_that_measures_always() -> None:
    always, seldom = (MultiBalance(3, direction="none", gram_every=every) for every in (1, 4))
    for _ in range(9):
        torch.testing.assert_close(feed(seldom, gradients(0)), feed(always, gradients(0)))


def test_averages_move_in_measured_steps_alone() -> None:
    fork = MultiBalance(2, gram_every=2, gamma=1.0)
    lengths = []
    for step in range(8):
        feed(fork, [torch.full((4,), step + 1.0), torch.ones(4)])
        lengths.append(fork.magnitudes[0].item() / 2)
    assert lengths == pytest.approx([1, 1, 1, 4, 5, 5, 5, 8])  # steps 0, 3, 4 and 7 measure


@pytest.mark.parametrize("every", [2, 3, 5])
def test_tasks_that_take_turns_are_all_measured(every: int) -> None:
    fork = MultiBalance(every, gram_every=every)
    for step in range(10 * every):
        feed(fork, [random(step, 4) if task == step % every else None for task in range(every)])
    assert bool(fork.magnitudes.isfinite().all())


def test_a_task_that_no_measured_step_has_seen_keeps_the_weight_1() -> None:
    fork = Counted(2, 4)
    first, second = random(0, 3), random(1, 3)
    fork.step([first, None])
    torch.testing.assert_close(fork.step([first, second]), 2 * first + second)


def test_an_overflow_between_measured_steps_flows_on() -> None:
    fork = MultiBalance(2, gram_every=4)
    feed(fork, [random(0, 3), random(1, 3)])
    overflowed = feed(fork, [random(0, 3), torch.full((3,), torch.inf)])
    assert not bool(overflowed.isfinite().any())
    assert bool(fork.magnitudes.isfinite().all())


def test_a_second_backward_over_one_graph_is_not_counted() -> None:
    fork = Counted(3, 2)
    model = Towers(fork)
    for _ in range(4):
        loss = sum(model(random(0, 8, 6)))
        loss.backward(retain_graph=True)
        loss.backward()
        fork.steps += 1
    assert fork.measured == [0, 3]


@pytest.mark.parametrize("stop", range(1, 8))
@pytest.mark.parametrize(
    "make", [lambda: MultiBalance(3, gram_every=3), lambda: MultiBalance(3, gram_every=3, overlap=True)]
)
def test_a_run_stopped_after_any_step_goes_on_bit_for_bit(stop: int, make) -> None:
    whole, before, after = make(), make(), make()
    expected, shown = [], []
    for step in range(12):
        expected.append(feed(whole, gradients(step)))
        shown.append(whole.last_gram.clone())
    for step in range(stop):
        feed(before, gradients(step))
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    copied = copy.deepcopy(before)
    for fork in (after, copied):
        for step in range(stop, 12):
            assert torch.equal(feed(fork, gradients(step)), expected[step])
            assert torch.equal(fork.last_gram, shown[step])
            assert torch.equal(fork.last_present, shown[step].diagonal() > 0)


def test_the_option_may_be_switched_on_and_off_between_runs() -> None:
    always, seldom = MultiBalance(3), MultiBalance(3, gram_every=3)
    for fork in (always, seldom):
        for step in range(5):
            feed(fork, gradients(step))
    assert set(seldom.state_dict()) - set(always.state_dict()) == {"known_weights", "known_gram", "backwards"}
    on, off = MultiBalance(3, gram_every=3), MultiBalance(3)
    off.load_state_dict(seldom.state_dict())
    assert torch.equal(off.averages, seldom.averages)
    on.load_state_dict(always.state_dict())
    assert torch.equal(on.averages, always.averages)


def test_with_overlap_a_measured_step_weighs_by_the_one_before() -> None:
    fork, plain = (MultiBalance(3, direction="none", magnitude="own", gram_every=2, overlap=o) for o in (True, False))
    weights = []
    for step in range(8):
        feed(fork, gradients(step))
        feed(plain, gradients(step))
        weights.append((fork.last_weights.clone(), plain.last_weights.clone()))
    measured = [0, 3, 4, 7]
    for before, now in itertools.pairwise(measured):
        torch.testing.assert_close(weights[now][0], weights[before][1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("fork", [MultiBalance, Bargaining], ids=lambda fork: fork.__name__)
def test_a_compiled_fork_measures_in_every_step(fork) -> None:
    model, always = Towers(fork(3, gram_every=4)), Towers(fork(3))
    call = torch.compile(model, fullgraph=True, backend="aot_eager")
    for step in range(3):
        for run in (call, always):
            sum(run(random(step, 8, 6))).backward()
    torch.testing.assert_close(model.fork.last_gram, always.fork.last_gram)
    torch.testing.assert_close(model.bottom.weight.grad, always.bottom.weight.grad)


def test_a_fork_measures_in_every_step_that_a_cuda_graph_captures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    fork = Counted(3, 4)
    for step in range(3):
        fork.step(gradients(step))
    assert fork.measured == [0, 1, 2]


@pytest.mark.parametrize("every", [0, -1, 2.0, True, "4"])
def test_what_is_no_number_of_steps_is_refused(every) -> None:
    with pytest.raises(ValueError, match="gram_every must be a whole number of at least 1"):
        MultiBalance(2, gram_every=every)


def test_clip_is_refused_because_steps_between_do_not_see_a_spike() -> None:
    with pytest.raises(ValueError, match="clip cannot hold back a spike with gram_every=4"):
        MultiBalance(2, clip=2.0, gram_every=4)


def test_the_option_is_shown() -> None:
    assert "gram_every=4" in repr(MultiBalance(2, gram_every=4))
    assert "gram_every" not in repr(Fixed([1.0, 1.0]))
