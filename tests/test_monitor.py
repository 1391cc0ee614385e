"""The monitor: names, values against closed forms, no waiting for the device, TensorBoard."""

import math

import pytest
import torch
from torch import nn

from equipoise import PUB, Fork, GradDrop, Monitor, MultiBalance, Weighted


class Ranker(nn.Module):
    def __init__(self, fork: Fork) -> None:
        super().__init__()
        self.bottom = nn.Linear(4, 3)
        self.shared = fork

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.shared(self.bottom(x))


def backward_with(fork: Fork, gradients: list[list[float] | None]) -> None:
    """One backward through the fork in which task m's gradient is exactly gradients[m]."""
    shared = torch.zeros(len(next(g for g in gradients if g is not None)), requires_grad=True)
    branches = fork(shared)
    pairs = zip(branches, gradients, strict=True)
    sum((branch * torch.tensor(g)).sum() for branch, g in pairs if g is not None).backward()


def test_every_quantity_has_its_stable_name_and_value() -> None:
    fork = MultiBalance(["click", "like"], direction="none")
    backward_with(fork, [[3.0, 0.0], [2.0, 2.0]])
    scalars = Monitor(fork).read().scalars()
    mean = (3 + math.sqrt(8)) / 2
    assert scalars == pytest.approx(
        {
            "fork/root/norm/click": 3.0,
            "fork/root/norm/like": math.sqrt(8),
            "fork/root/weight/click": mean / 3,
            "fork/root/weight/like": mean / math.sqrt(8),
            "fork/root/magnitude/click": 3.0,
            "fork/root/magnitude/like": math.sqrt(8),
            "fork/root/balance/click": 0.5,
            "fork/root/balance/like": 0.5,
            "fork/root/cosine/click/like": math.sqrt(0.5),
            # the shortest point between two unit vectors at 45 degrees
            "fork/root/stationarity": math.cos(math.pi / 8),
        },
        rel=1e-5,
    )


@pytest.mark.parametrize(
    ("second", "stationarity"), [([-5.0, 0.0], 0.0), ([7.0, 0.0], 1.0), ([0.0, 1.0], math.sqrt(0.5))]
)
def test_stationarity_is_zero_for_opposed_and_one_for_agreeing_gradients(
    second: list[float], stationarity: float
) -> None:
    fork = Fork(2)
    backward_with(fork, [[3.0, 0.0], second])
    assert Monitor(fork).read().scalars()["fork/root/stationarity"] == pytest.approx(stationarity, abs=1e-6)


def test_absent_tasks_are_left_out() -> None:
    fork = MultiBalance(["click", "like", "buy"])
    backward_with(fork, [[3.0, 0.0], None, [0.0, 1.0]])
    names = Monitor(fork).read().scalars()
    assert not [name for name in names if "like" in name]
    assert names["fork/root/cosine/click/buy"] == pytest.approx(0.0)


def test_nothing_to_say_before_the_first_step() -> None:
    assert Monitor(MultiBalance(3)).read().scalars() == {}


def test_a_fork_is_named_after_its_place_whatever_wraps_the_model() -> None:
    wrapped = nn.Sequential()
    wrapped.add_module("_orig_mod", nn.ModuleDict({"module": Ranker(Fork(["a", "b"]))}))
    model = Ranker(Fork(["a", "b"]))
    for module in (model, wrapped):
        inner = model if module is model else wrapped._orig_mod["module"]
        sum(branch.sum() for branch in inner(torch.ones(2, 4))).backward()
        assert "fork/shared/weight/a" in Monitor(module).read().scalars()


def test_a_reading_keeps_its_step_and_reading_does_not_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    fork = MultiBalance(2, direction="none")
    backward_with(fork, [[1.0, 0.0], [0.0, 1.0]])
    monitor = Monitor(fork)
    with monkeypatch.context() as patch:
        for sync in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__"):
            patch.setattr(torch.Tensor, sync, lambda *_: pytest.fail("read() waited for the device"))
        reading = monitor.read()
    backward_with(fork, [[9.0, 0.0], [0.0, 9.0]])
    assert reading.scalars()["fork/root/norm/0"] == pytest.approx(1.0)
    assert monitor.read().scalars()["fork/root/norm/0"] == pytest.approx(9.0)


def test_pub_is_read_under_its_tasks_names() -> None:
    shared = nn.Parameter(torch.ones(2))
    optimizer = PUB(torch.optim.SGD([shared], lr=0.1), shared=[shared], update_every=1, tasks=["click", "like"])
    monitor = Monitor(nn.Linear(1, 1), optimizer)
    optimizer.zero_grad()
    optimizer.backward([shared[0] * 2, shared[1] * 3])
    optimizer.step()
    scalars = monitor.read().scalars()
    assert scalars["pub/norm/click"] == pytest.approx(2.0)
    assert scalars["pub/cosine/click/like"] == pytest.approx(0.0)
    assert scalars["pub/weight/click"] > scalars["pub/weight/like"] > 0


COMMON = {"norm/a", "norm/b", "cosine/a/b", "stationarity"}
KINDS = {
    "the base class": (Fork(["a", "b"]), {"weight/a", "weight/b"}),
    "MultiBalance": (
        MultiBalance(["a", "b"]),
        {f"{quantity}/{task}" for quantity in ("weight", "magnitude", "balance") for task in "ab"},
    ),
    "a function": (Weighted(["a", "b"], lambda gram: gram.diagonal()), {"weight/a", "weight/b"}),
    "fixed numbers": (Weighted(["a", "b"], [1.0, 2.0]), {"weight/a", "weight/b"}),
    "element by element": (GradDrop(["a", "b"]), set()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_forks_of_every_kind_are_read(kind: str) -> None:
    fork, own = KINDS[kind]
    backward_with(fork, [[3.0, 0.0], [2.0, 2.0]])
    scalars = Monitor(fork).read().scalars()
    assert scalars.keys() == {f"fork/root/{name}" for name in COMMON | own}
    assert scalars["fork/root/norm/a"] == pytest.approx(3.0)


def test_tensorboard_gets_every_scalar(tmp_path: object) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    fork = Fork(["click", "like"])
    backward_with(fork, [[3.0, 0.0], [0.0, 1.0]])
    with SummaryWriter(str(tmp_path)) as writer:
        Monitor(fork).read().write(writer, step=7)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]} == {
        name: [(7, pytest.approx(value))] for name, value in Monitor(fork).read().scalars().items()
    }


def test_nothing_to_read_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="Put a fork between"):
        Monitor(nn.Linear(1, 1), torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1))
