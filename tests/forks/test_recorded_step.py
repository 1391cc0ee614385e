"""A fork's step from a recording is the step as written, also after a change of options or of memory.

Recordings are CUDA graphs; here one is a function that puts the recorded options back and makes the step as written.
``tests/accelerator/`` runs the same forks on a device, where they are recorded.
"""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from equipoise import replaying
from equipoise.forks import PIVRG, Bargaining, Fork, MinNorm, Weighted, multibalance, recorded_step
from tests.forks.every_fork import FORKS, TASKS
from tests.made_up_device import DEVICE, DeviceTensor, the_device

FACTORS = [1.0, 3.0, 0.1]


class Recorder:
    """Makes recordings without a device, and notes each of them and each replay."""

    def __init__(self) -> None:
        self.made: list[Fork] = []
        self.replays = 0

    def __call__(self, _: object, function: Any, inputs: list[Tensor], reads: list[Tensor]) -> replaying._Recording:
        fork: Fork = function.__self__
        self.made.append(fork)
        own = torch.empty_like(inputs[0])
        found = torch.empty_like(fork.last_weights), torch.empty_like(fork.last_present)
        options = {name: value for name, value in vars(fork).items() if isinstance(value, int | float | str)}
        buffers, last = dict(fork._buffers), (fork.last_gram, fork.last_weights, fork.last_present)
        held = weakref.ref(fork)  # a graph holds tensors alone

        def replay() -> None:
            self.replays += 1
            fork = held()
            vars(fork).update({name: value for name, value in options.items() if name != "_backwards"})
            fork._buffers.update(buffers)
            fork.last_gram, fork.last_weights, fork.last_present = last
            for place, value in zip(found, fork.find_step(own), strict=True):
                place.copy_(value)

        return replaying._Recording(replay, [own], found, reads, [])


@pytest.fixture
def recorder(monkeypatch):
    made = Recorder()
    monkeypatch.setattr(replaying, "_recorded", made)
    for module in (replaying, recorded_step):
        monkeypatch.setattr(module, "recordable", lambda *_: True)
    return made


def step(fork: Fork, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    z = torch.ones(6, requires_grad=True)
    directions = torch.randn(len(TASKS), 6, generator=generator)
    losses = [factor * (own @ d) for own, d, factor in zip(fork(z), directions, FACTORS, strict=True)]
    sum(losses).backward()
    return z.grad


def state(fork: Fork) -> list[Tensor]:
    return [*fork.buffers(), fork.last_gram, fork.last_weights, fork.last_present]


@pytest.mark.parametrize("name", FORKS)
def test_replayed_steps_are_the_steps_as_written(name, recorder, monkeypatch):
    monkeypatch.setattr(multibalance, "kernels_for", lambda _: None)  # its usual step is one kernel of its own
    found, expected = FORKS[name](), FORKS[name]()
    for number in range(18):
        assert step(found, number).equal(as_written(expected, number))
        assert all(map(torch.equal, state(found), state(expected)))
    assert recorder.made == [found]
    assert recorder.replays >= 2


def as_written(fork: Fork, seed: int) -> Tensor:
    before = recorded_step.recordable
    recorded_step.recordable = lambda *_: False
    try:
        return step(fork, seed)
    finally:
        recorded_step.recordable = before


def test_a_changed_option_is_obeyed_at_once_and_recorded_later_each_time(recorder):
    fork, expected = Bargaining(TASKS), Bargaining(TASKS)
    for number in range(26):
        if number in {6, 14}:
            fork.exponent = expected.exponent = fork.exponent + 1.0
        assert step(fork, number).equal(as_written(expected, number))
        assert len(recorder.made) == sum(number >= made for made in (2, 6 + 4, 14 + 8))


def test_other_memory_is_recorded_anew(recorder):
    fork, expected = PIVRG(TASKS), PIVRG(TASKS)
    for number in range(30):
        if number == 8:
            for own in (fork, expected):
                own.scores = torch.tensor([10.0, 20.0, 90.0])
        if number == 16:
            for own in (fork, expected):
                own.preferences = own.preferences * torch.tensor([1.0, 2.0, 3.0])
        assert step(fork, number).equal(as_written(expected, number))
    assert len(recorder.made) == 3


def test_a_second_backward_keeps_the_weights_of_its_first(recorder):
    fork = MinNorm(TASKS)
    step(fork, 0)
    step(fork, 1)
    z = torch.ones(6, requires_grad=True)
    loss = sum(own @ torch.randn(6) for own in fork(z))
    loss.backward(retain_graph=True)
    first, z.grad = z.grad, None
    step(fork, 99)
    loss.backward()
    assert z.grad.equal(first)
    assert recorder.replays == 2


def test_copies_record_for_themselves_and_a_fork_is_freed(recorder):
    fork = Bargaining(TASKS)
    for number in range(3):
        step(fork, number)
    for other in (copy.deepcopy(fork), pickle.loads(pickle.dumps(fork))):
        step(other, 0)
        assert recorder.made == [fork]
    recorder.made.clear()
    count = len(replaying._calls_of)
    del fork, other
    gc.collect()
    assert len(replaying._calls_of) < count


@pytest.mark.parametrize("name", FORKS)
def test_a_subclass_is_not_replayed_unless_it_says_so(name, recorder, monkeypatch):
    monkeypatch.setattr(multibalance, "kernels_for", lambda _: None)
    fork = FORKS[name]()
    fork.__class__ = type("Own", (type(fork),), {})
    for number in range(9):
        step(fork, number)
    assert not recorder.made


class OnTensors(Fork):
    """Says that it may be replayed."""

    power = 1.0
    replayable = True

    def weigh(self, gram: Tensor, present: Tensor) -> Tensor:
        return gram.diagonal().clamp(min=1e-6).pow(-self.power / 2)


class Looking(OnTensors):
    """Looks at a value."""

    replayable = True

    def weigh(self, gram: Tensor, present: Tensor) -> Tensor:
        return torch.ones_like(gram[0]) * float(gram[0, 0])


def with_attribute(value: object) -> Fork:
    fork = OnTensors(TASKS)
    fork.own = value
    return fork


def patched() -> Fork:
    fork = OnTensors(TASKS)
    fork.weigh = lambda gram, _: gram[0]
    return fork


def with_a_function() -> Fork:
    return Weighted(TASKS, lambda gram: gram[0])


def test_a_class_that_says_so_is_replayed(recorder):
    fork = OnTensors(TASKS)
    for number in range(3):
        step(fork, number)
    assert recorder.made == [fork]


@pytest.mark.parametrize(
    "fork",
    [
        with_a_function,
        patched,
        lambda: Looking(TASKS),
        lambda: with_attribute({"power": 2.0}),
        lambda: with_attribute([[1.0]]),
        lambda: with_attribute(torch.nn.Parameter(torch.ones(3))),
        lambda: with_attribute(torch.nn.Linear(3, 3)),
        lambda: with_attribute(torch.ones(3, device="meta")),
    ],
)
def test_where_a_change_might_go_unseen_nothing_is_recorded(fork, recorder):
    made = fork()
    for number in range(4):
        step(made, number)
    assert not recorder.made


def test_another_function_in_place_of_weigh_is_obeyed_at_once(recorder, monkeypatch):
    fork = Bargaining(TASKS)
    for number in range(4):
        step(fork, number)
    monkeypatch.setattr(Bargaining, "weigh", lambda _, gram, __: torch.full_like(gram[0], 7.0))
    step(fork, 3)
    assert fork.last_weights.tolist() == [7.0] * 3
    assert recorder.replays == 2


@pytest.mark.parametrize("name", FORKS)
def test_no_operation_of_a_step_keeps_it_from_being_recorded(name, monkeypatch):
    monkeypatch.setattr(multibalance, "kernels_for", lambda _: None)
    with the_device():
        fork = FORKS[name]().to(DEVICE)
        gram = DeviceTensor(torch.tensor([[4.0, 1.0, 0.0], [1.0, 2.0, -1.0], [0.0, -1.0, 3.0]]))
        with torch.no_grad(), replaying._Watch() as watch:
            fork.find_step(gram)
    assert not watch.waited
    assert vars(type(fork))["replayable"]


def test_on_a_cpu_nothing_is_recorded(monkeypatch):
    made = Recorder()
    monkeypatch.setattr(replaying, "_recorded", made)
    fork = Bargaining(TASKS)
    for number in range(4):
        step(fork, number)
    assert not made.made
    assert replaying.recording_of(fork) is None
