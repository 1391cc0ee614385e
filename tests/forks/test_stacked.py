"""The copies of all tasks as one tensor: the fork weighs their gradient as it weighs those of separate copies."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils._python_dispatch import TorchDispatchMode

from equipoise import check, paused, reachability
from equipoise.forks import Fork, GradDrop, MultiBalance
from equipoise.methods.at_fork import AT_FORK
from tests.forks.every_fork import FORKS, TASKS
from tests.forks.fork_gradients import Fixed, Towers, feed, leaf, random

EVERY_FORK: dict[str, Callable[[], Fork]] = FORKS | {
    method.name: lambda make=method.fork: make(TASKS) for method in AT_FORK
}
SHAPE = (40, 32)  # so that each row begins at a line of the cache, as a tensor of its own does: sums are then the same


class Batched(nn.Module):
    """The towers of `Towers`, with the same weights, as batched products; returns the losses."""

    def __init__(self, fork: Fork) -> None:
        super().__init__()
        other = Towers(fork)
        self.bottom, self.fork = other.bottom, fork
        for name, place in (("first", 0), ("last", 2)):
            weights = torch.stack([tower[place].weight.detach().T for tower in other.towers])
            biases = torch.stack([tower[place].bias.detach().unsqueeze(0) for tower in other.towers])
            self.register_parameter(f"{name}_weight", nn.Parameter(weights))
            self.register_parameter(f"{name}_bias", nn.Parameter(biases))

    def read(self, z: Tensor) -> Tensor:
        """Return what the towers read, shape [M, B, 5]."""
        return self.fork.stacked(z)

    def forward(self, x: Tensor) -> list[Tensor]:
        hidden = torch.baddbmm(self.first_bias, self.read(torch.tanh(self.bottom(x))), self.first_weight).tanh()
        logits = torch.baddbmm(self.last_bias, hidden, self.last_weight)
        return [10.0**m * logit.square().mean() for m, logit in enumerate(logits.unbind())]


def feed_stacked(fork: Fork, gradients: Tensor) -> Tensor:
    """Return the gradient sent upstream if that of the stacked copies is `gradients`."""
    shared = torch.zeros(gradients.shape[1:], dtype=gradients.dtype, requires_grad=True)
    fork.stacked(shared).backward(gradients)
    return shared.grad


def state_of(fork: Fork) -> list[Tensor]:
    return [*fork.buffers(), fork.last_gram, fork.last_weights, fork.last_present]


def assert_same_state(found: Fork, expected: Fork) -> None:
    for one, other in zip(state_of(found), state_of(expected), strict=True):
        assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", EVERY_FORK)
def test_every_fork_has_the_same_state_to_the_last_bit_and_sends_the_same_gradient(name, dtype) -> None:
    """Tested with an absent task, and with one that is not finite; the sums differ by their rounding."""
    separate, stacked = EVERY_FORK[name](), EVERY_FORK[name]()
    for step in range(6):
        gradients: list[Tensor | None] = [10.0**m * random(10 * step + m, *SHAPE, dtype=dtype) for m in range(3)]
        rows = torch.stack(gradients)
        if step == 2:
            gradients[1] = None
            rows[1] = 0.0
        if step == 4:
            gradients[0][0, 0] = rows[0, 0, 0] = torch.inf
        expected = feed(separate, gradients)
        found = feed_stacked(stacked, rows)
        assert found.dtype == dtype
        scale = expected.nan_to_num(0.0, 0.0, 0.0).abs().max().item()
        torch.testing.assert_close(found, expected, rtol=0, atol=2 * scale * torch.finfo(dtype).eps, equal_nan=True)
        assert_same_state(stacked, separate)


@pytest.mark.parametrize("make", [MultiBalance, lambda tasks: MultiBalance(tasks, gram_every=2), GradDrop])
def test_batched_towers_train_as_separate_ones(make) -> None:
    separate, stacked = Towers(make(3)), Batched(make(3))
    optimizers = [torch.optim.SGD(model.parameters(), lr=1e-3) for model in (separate, stacked)]
    for step in range(6):
        for model, optimizer in zip((separate, stacked), optimizers, strict=True):
            optimizer.zero_grad()
            losses = model(random(step, 8, 6))
            sum(losses[1:] if step == 3 else losses).backward()
            optimizer.step()
    towers = [[tower[place].weight.T for tower in separate.towers] for place in (0, 2)]
    found = [stacked.bottom.weight, stacked.first_weight, stacked.last_weight]
    expected = [separate.bottom.weight, *(torch.stack(weights) for weights in towers)]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state_of(stacked.fork), state_of(separate.fork), rtol=1e-5, atol=1e-6)


def test_the_gradients_are_not_copied() -> None:
    """The largest tensors of a step, besides the gradients themselves, are as large as what is forked."""
    made = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, operation, _, args=(), kwargs=None):
            found = operation(*args, **kwargs or {})
            given = {tensor.untyped_storage().data_ptr() for tensor in args if isinstance(tensor, Tensor)}
            if isinstance(found, Tensor) and found.untyped_storage().data_ptr() not in given:
                made.append((operation.overloadpacket.__name__, found.untyped_storage().nbytes() // 4))
            return found

    tasks, fork = 8, MultiBalance(8)
    shared = torch.zeros(512, 256, requires_grad=True)
    towers = random(0, tasks, 256, 1)
    with Sizes():
        (torch.bmm(fork.stacked(shared), towers) * random(1, tasks, 512, 1)).sum().backward()
    assert [name for name, size in made if size > shared.numel()] == ["bmm"]
    assert fork.last_present.all()


# --- forward -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["training", "eval", "no_grad", "needs none", "paused"])
def test_each_mode_hands_on_a_view_of_one_shape(mode) -> None:
    fork, z = Fork(3), leaf(4, 2)
    if mode == "eval":
        fork.eval()
    if mode == "needs none":
        z.requires_grad_(False)
    if mode == "paused":
        with paused(fork):
            found = fork.stacked(z)
    else:
        with torch.set_grad_enabled(mode != "no_grad"):
            found = fork.stacked(z)
    assert found.shape == (3, 4, 2)
    assert found.data_ptr() == z.data_ptr()
    assert torch.equal(found[1], z)


@pytest.mark.parametrize("training", [True, False])
def test_every_tensor_of_a_structure_has_a_dimension_of_tasks(training) -> None:
    z, gate, ids = leaf(4, 2), leaf(seed=1), torch.arange(4)
    fork = Fixed([2.0, 3.0]).train(training)
    found = fork.stacked({"z": z, "more": [gate, ids, None, "mean"]})
    assert found["z"].shape == (2, 4, 2)
    assert found["more"][0].shape == (2,)
    assert torch.equal(found["more"][1], torch.stack([ids, ids]))
    assert found["more"][2:] == [None, "mean"]
    if training:
        (found["z"][0].sum() + (found["more"][0] * torch.tensor([1.0, 10.0])).sum()).backward()
        assert z.grad.tolist() == [[2.0, 2.0]] * 4
        assert gate.grad.item() == 32.0
        torch.testing.assert_close(fork.last_gram, torch.tensor([[8.0 + 1.0, 10.0], [10.0, 100.0]]))


@pytest.mark.parametrize("training", [True, False])
def test_a_packed_sequence_is_refused_with_what_to_do(training) -> None:
    packed = pack_sequence([leaf(3, 2), leaf(1, 2)])
    with pytest.raises(TypeError, match=r"no place for a dimension of tasks\. Call the fork itself"):
        Fork(2).train(training).stacked((packed,))


class Served(Batched):
    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.first_bias, self.fork.stacked(self.bottom(x)), self.first_weight)


FORMATS = {
    "torch.fx": lambda model, _: torch.fx.symbolic_trace(model),
    "torch.jit.trace": torch.jit.trace,
    "torch.jit.script": lambda model, _: torch.jit.script(copy.deepcopy(model)),
    "torch.export": lambda model, x: torch.export.export(model, (x,)).module(),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning:torch")
@pytest.mark.parametrize("kind", FORMATS)
def test_a_model_in_eval_mode_gives_the_same_outputs(kind) -> None:
    model, x = Served(MultiBalance(3)).eval(), random(0, 8, 6)
    torch.testing.assert_close(FORMATS[kind](model, x)(x), model(x))


# --- backward ------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::FutureWarning:torch")
def test_a_compiled_model_trains_as_the_eager_one() -> None:
    eager, model = Batched(MultiBalance(3)), Batched(MultiBalance(3))
    call = torch.compile(model, fullgraph=True, backend="aot_eager")
    for step in range(3):
        for run in (eager, call):
            losses = run(random(step, 8, 6))
            sum(losses[1:] if step == 1 else losses).backward()
    torch.testing.assert_close(state_of(model.fork), state_of(eager.fork), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.bottom.weight.grad, eager.bottom.weight.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_grad_scaler_is_taken_out(autocast) -> None:
    """Gradients times 2^66 are far from the end of float32, their squares are beyond it."""
    plain, scaled = Batched(MultiBalance(3)), Batched(MultiBalance(3))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        sum(plain(random(0, 8, 6))).backward()
        torch.amp.GradScaler("cpu", init_scale=2.0**66).scale(sum(scaled(random(0, 8, 6)))).backward()
    assert scaled.fork.last_present.all()
    torch.testing.assert_close(state_of(scaled.fork), state_of(plain.fork), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"overlap": True}, {"gram_every": 4}])
def test_one_loss_at_a_time_is_refused(options) -> None:
    """So it is in a fork's first step at the latest, because that measures."""
    model = Batched(MultiBalance(TASKS, **options))
    losses = model(random(0, 8, 6))
    losses[0].backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"It has seen a in a first backward over this graph, and now c\. Sum the"):
        losses[2].backward(retain_graph=True)


@pytest.mark.parametrize("options", [{}, {"overlap": True}, {"gram_every": 4}])
def test_a_second_backward_over_all_or_some_of_the_losses_reuses_the_weights(options) -> None:
    model = Batched(MultiBalance(3, **options))
    for step in range(3):
        losses = model(random(step, 8, 6))
        model.zero_grad()
        sum(losses).backward(retain_graph=True)
        first, before = model.bottom.weight.grad.clone(), [tensor.clone() for tensor in state_of(model.fork)]
        sum(losses).backward(retain_graph=True)
        torch.testing.assert_close(model.bottom.weight.grad, 2 * first)
        losses[1].backward()
        torch.testing.assert_close(state_of(model.fork), before, rtol=0, atol=0)


def test_an_overflow_in_both_backwards_is_not_taken_for_a_task_that_comes_late() -> None:
    fork, shared = Fork(2), torch.zeros(3, requires_grad=True)
    stacked = fork.stacked(shared)
    for _ in range(2):
        stacked.backward(torch.tensor([[torch.inf, 0.0, 0.0], [1.0, 1.0, 1.0]]), retain_graph=True)
    assert fork.last_present.tolist() == [False, True]


@pytest.mark.parametrize("tasks", [3, 6])
def test_a_second_backward_may_record_its_gradients(tasks) -> None:
    fork, shared = MultiBalance(tasks), leaf(4, 2)
    losses = fork.stacked(shared).pow(3).sum((1, 2)) * torch.arange(1.0, tasks + 1)
    (first,) = torch.autograd.grad(losses.sum(), shared, retain_graph=True)
    (second,) = torch.autograd.grad(losses.sum(), shared, create_graph=True)
    torch.testing.assert_close(second, first)
    second.sum().backward()
    assert shared.grad.count_nonzero() == shared.numel()


def test_the_gradient_of_a_penalty_crosses_the_fork_as_through_separate_copies() -> None:
    found = []
    for model in (Towers(MultiBalance(3)), Batched(MultiBalance(3))):
        model.double()
        loss = sum(model(random(0, 8, 6, dtype=torch.float64)))
        (gradient,) = torch.autograd.grad(loss, model.bottom.weight, create_graph=True)
        (loss + gradient.square().sum()).backward()
        found.append(model.bottom.weight.grad)
    torch.testing.assert_close(*found)


def test_functional_gradients_are_those_of_backward() -> None:
    model, twin = Batched(MultiBalance(3)), Batched(MultiBalance(3))
    x = random(0, 8, 6)
    sum(twin(x)).backward()
    values = {name: value.detach() for name, value in model.named_parameters()}
    found = torch.func.grad(lambda given: sum(torch.func.functional_call(model, given, (x,))))(values)
    torch.testing.assert_close(found["bottom.weight"], twin.bottom.weight.grad)
    torch.testing.assert_close(state_of(model.fork), state_of(twin.fork))


def test_gradients_in_batches_are_refused() -> None:
    model = Batched(Fork(3))
    with pytest.raises(RuntimeError, match=r"there is no batch"):
        torch.autograd.grad(
            model(random(0, 8, 6)), model.bottom.weight, grad_outputs=list(torch.eye(3)), is_grads_batched=True
        )


def test_in_a_pause_losses_go_backward_one_by_one() -> None:
    model, plain = Batched(MultiBalance(3)), Towers(None)
    x = random(0, 8, 6)
    losses = model(x)
    with paused(model):
        for loss, other in zip(losses, plain(x), strict=True):
            (found,) = torch.autograd.grad(loss, model.bottom.weight, retain_graph=True)
            (expected,) = torch.autograd.grad(other, plain.bottom.weight, retain_graph=True)
            torch.testing.assert_close(found, expected)
        in_batches = torch.autograd.grad(
            losses, model.bottom.weight, list(torch.eye(3)), retain_graph=True, is_grads_batched=True
        )
        each = [torch.autograd.grad(loss, model.bottom.weight, retain_graph=True)[0] for loss in losses]
        torch.testing.assert_close(in_batches[0], torch.stack(each))
    assert not model.fork.last_present.any()


# --- check ---------------------------------------------------------------------------------------------


def test_check_follows_every_task_to_its_row() -> None:
    model = Batched(MultiBalance(TASKS))
    report = check(model, dict(zip(TASKS, model(random(0, 8, 6)), strict=True)))
    assert report.ok, report
    assert set(report.shared) == {"bottom.weight", "bottom.bias"}
    assert set(report.sliced) == {"first_weight", "first_bias", "last_weight", "last_bias"}


def test_check_finds_a_row_that_another_task_reads() -> None:
    class Mixed(Batched):
        def read(self, z: Tensor) -> Tensor:
            rows = self.fork.stacked(z)
            return torch.stack([rows[0], rows[0], rows[2]])

    model = Mixed(MultiBalance(TASKS))
    report = check(model, dict(zip(TASKS, model(random(0, 8, 6)), strict=True)))
    (problem,) = report.problems
    assert problem.startswith("The loss of 'b' reads branch 'a' of fork 'fork' instead of its own: ")
    assert "No loss reads branch 'b'" in problem


def test_check_does_not_blame_a_tensor_that_is_too_large_to_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reachability, "_LARGEST_MASK", 20)
    model = Batched(MultiBalance(TASKS))
    report = check(model, dict(zip(TASKS, model(random(0, 8, 6)), strict=True)))
    assert report.problems == []
    (unseen,) = report.unseen
    assert "or through a tensor of more than 16 million numbers" in unseen


def test_check_says_where_it_cannot_tell_the_rows_apart() -> None:
    class Normed(Batched):
        def read(self, z: Tensor) -> Tensor:
            return nn.functional.layer_norm(self.fork.stacked(z), (5,))

    model = Normed(MultiBalance(TASKS))
    report = check(model, dict(zip(TASKS, model(random(0, 8, 6)), strict=True)))
    assert report.problems == []
    (unseen,) = report.unseen
    assert unseen.startswith(
        "which task reads which of the stacked copies of fork 'fork'. It cannot be followed through"
    )
    assert "NativeLayerNorm" in unseen
