"""The fork over several backwards, and as a module like any other: copies, state, devices."""

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

from equipoise.forks.fork import Fork
from equipoise.forks.multibalance import MultiBalance
from tests.forks.fork_gradients import Fixed, Towers, leaf, random

# --- several backwards ----------------------------------------------------------------------------------


def test_a_double_backward_crosses_the_fork_with_the_weights_of_the_first_as_constants():
    theta = torch.tensor([0.5, -1.5, 2.0], dtype=torch.float64, requires_grad=True)
    weights, factors = [0.25, 3.0], [2.0, 5.0]
    fork = Fixed(weights).double()
    losses = [c * branch.pow(3).sum() for c, branch in zip(factors, fork(theta.square()), strict=True)]
    (gradient,) = torch.autograd.grad(sum(losses), theta, create_graph=True)
    # z = θ², L_m = c_m Σ z_m³: the balanced gradient is 2θ Σ_m w_m c_m 3 z_m².
    once = sum(w * c for w, c in zip(weights, factors, strict=True))
    torch.testing.assert_close(gradient, 6 * once * theta**5)
    # Its derivative by the first θ is 2 Σ_m w_m c_m 3 z_m². That by z_m, 2θ w_m c_m 6 z_m, flows on
    # through the fork with the weight w_m, as all that crosses it does.
    twice = sum(w * w * c for w, c in zip(weights, factors, strict=True))
    gradient.sum().backward()
    torch.testing.assert_close(theta.grad, (6 * once + 24 * twice) * theta.detach() ** 4)
    assert len(fork.told) == 1


def test_a_gradient_penalty_at_weights_of_one_is_the_true_derivative():
    model = Towers(Fork(3)).double()
    x = random(3, 8, 6, dtype=torch.float64)

    def penalty(model: Towers) -> Tensor:
        (gradient,) = torch.autograd.grad(sum(model(x)), model.bottom.weight, create_graph=True)
        return gradient.square().sum()

    penalty(model).backward()
    step = random(9, 5, 6, dtype=torch.float64)
    sides = []
    for sign in (1e-6, -1e-6):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            moved.bottom.weight.add_(step, alpha=sign)
        sides.append(penalty(moved).item())
    numeric = (sides[0] - sides[1]) / 2e-6
    assert (model.bottom.weight.grad * step).sum().item() == pytest.approx(numeric, rel=1e-6)


def test_a_second_backward_over_the_same_graph_reuses_the_weights():
    model = Towers(Fixed([1.0, 2.0, 0.5]))
    losses = model(random(3, 8, 6))
    sum(losses).backward(retain_graph=True)
    first = model.bottom.weight.grad.clone()
    model.fork.weights = torch.tensor([7.0, 7.0, 7.0])
    sum(losses).backward(retain_graph=True)
    torch.testing.assert_close(model.bottom.weight.grad, 2 * first)
    losses[1].backward()  # a part of what was weighed before keeps its weight as well
    assert len(model.fork.told) == 1


@pytest.mark.parametrize("retain_graph", [True, False])
def test_one_loss_at_a_time_is_an_error_that_says_what_to_do(retain_graph):
    fork = Fork(["click", "like"])
    z = leaf(4, 3)
    for_click, for_like = fork(z * 2)
    for_click.sum().backward(retain_graph=retain_graph)
    with pytest.raises(RuntimeError, match=r"(?s)click.*now like.*sum\(losses\)\.backward\(\)"):
        for_like.sum().backward()


def test_several_forwards_before_one_backward_are_weighed_each():
    fork = Fixed([1.0, 2.0])
    a, b = leaf(3), leaf(3, seed=1)
    (sum(branch.sum() for branch in fork(a)) + sum(branch.square().sum() for branch in fork(b))).backward()
    assert len(fork.told) == 2
    torch.testing.assert_close(a.grad, torch.full((3,), 3.0))
    torch.testing.assert_close(b.grad, 6 * b.detach())


def test_two_forks_in_a_row_each_weigh_what_arrives():
    outer, inner = Fixed([2.0, 3.0]), Fixed([5.0, 7.0])
    z = leaf(3)
    for_one, rest = outer(z)
    for_two, for_three = inner(rest * 1.0)
    (for_one + 10 * for_two + 100 * for_three).sum().backward()
    torch.testing.assert_close(z.grad, torch.full((3,), 2.0 * 1 + 3.0 * (5.0 * 10 + 7.0 * 100)))
    torch.testing.assert_close(outer.last_gram[1, 1], torch.tensor(3 * 750.0**2))


def test_changing_a_branch_in_place_is_an_error_and_leaves_the_others_alone():
    z = leaf(4, 3)
    shared = z * 1.0
    before = shared.detach().clone()
    for_click, for_like = Fork(2)(shared)
    with pytest.raises(RuntimeError, match=r"modified inplace|in-place"):
        for_click.relu_()
    assert torch.equal(for_like, before)
    assert torch.equal(shared, before)


# --- a module like any other ----------------------------------------------------------------------------


def duplicates(model: nn.Module) -> dict[str, nn.Module]:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return {
        "deepcopy": copy.deepcopy(model),
        "pickle": pickle.loads(pickle.dumps(model)),
        "torch.save": torch.load(buffer, weights_only=False),
    }


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_a_copy_trains_on_by_itself(how):
    model = Towers(Fork(["click", "like", "share"]))
    x = random(3, 8, 6)
    twin = duplicates(model)[how]
    assert twin.fork.tasks == model.fork.tasks
    sum(twin(x)).backward()
    assert model.bottom.weight.grad is None
    assert model.fork.last_gram.count_nonzero() == 0
    sum(model(x)).backward()
    assert torch.equal(twin.bottom.weight.grad, model.bottom.weight.grad)
    assert torch.equal(twin.fork.last_gram, model.fork.last_gram)
    torch.amp.GradScaler("cpu", init_scale=1024.0).scale(sum(twin(x))).backward()  # copies hear of the scale too
    torch.testing.assert_close(twin.fork.last_gram, model.fork.last_gram)


def test_a_second_backward_keeps_the_weights_that_a_subclass_has_moved_since():
    class Doubling(Fork):
        def __init__(self, tasks):
            super().__init__(tasks)
            self.register_buffer("state", torch.ones(len(self.tasks)))

        def weigh(self, *_):
            return self.state.mul_(2)

    fork, z = Doubling(2), torch.ones(3, requires_grad=True)
    first = sum(branch.sum() for branch in fork(z))
    (before,) = torch.autograd.grad(first, z, retain_graph=True)
    torch.autograd.grad(sum(branch.sum() for branch in fork(z)), z)
    assert torch.equal(torch.autograd.grad(first, z)[0], before)


@pytest.mark.parametrize("tasks", [2, 6])
def test_a_step_without_any_gradient_is_a_step_with_nobody_present(tasks):
    class Stop(torch.autograd.Function):
        @staticmethod
        def forward(_, x):
            return x.clone()

        @staticmethod
        def backward(*_):
            return None

    fork, z = Fork(tasks), torch.ones(3, requires_grad=True)
    sum(Stop.apply(branch).sum() for branch in fork(z * 1.0)).backward()
    assert z.grad is None or not z.grad.any()
    assert not fork.last_present.any()


def test_complex_tensors_are_refused():
    with pytest.raises(TypeError, match="found a complex one"):
        Fork(2)(torch.ones(3, dtype=torch.complex64, requires_grad=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_state_is_float32_or_wider_whatever_the_default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        fork = MultiBalance(3)
        expected = torch.promote_types(dtype, torch.float32)
        assert {buffer.dtype for buffer in fork.buffers() if buffer.is_floating_point()} == {expected}
        plain = MultiBalance(3, magnitude="none", direction="none")
        sum(
            (task + 1) * branch.sum() for task, branch in enumerate(plain(torch.ones(3, requires_grad=True)))
        ).backward()
        assert plain.last_weights.tolist() == [1.0, 1.0, 1.0]
    finally:
        torch.set_default_dtype(before)


def test_a_module_made_on_the_meta_device_starts_from_its_reset_state():
    made = MultiBalance(3, task_weights=[1, 2, 3])
    with torch.device("meta"):
        late = MultiBalance(3, task_weights=[1, 2, 3])
    late.to_empty(device="cpu").reset_parameters()
    for (name, found), expected in zip(late.named_buffers(), made.buffers(), strict=True):
        assert torch.equal(found, expected), name


@pytest.mark.parametrize("tasks", [2, 6])
def test_a_compiled_fork_can_be_copied_and_pickled(tasks):
    fork = MultiBalance(tasks)
    fork.compile(backend="eager")
    for twin in (copy.deepcopy(fork), pickle.loads(pickle.dumps(fork))):
        sum(branch.sum() for branch in twin(torch.ones(3, requires_grad=True))).backward()
        assert twin.last_present.all()
        assert not fork.last_present.any()
