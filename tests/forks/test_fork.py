"""The fork hands out identity copies, leaves the towers alone and sends Σ w g upstream, whatever the w."""

from collections import namedtuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed._functional_collectives import AsyncCollectiveTensor

from equipoise.forks import fork as fork_module
from equipoise.forks.fork import Fork
from tests.forks.fork_gradients import Fixed, Towers, feed, leaf, random

Experts = namedtuple("Experts", ["outputs", "gate"])

quick = settings(max_examples=40, deadline=None, derandomize=True, database=None)


# --- forward --------------------------------------------------------------------------------------------


def test_tasks_are_a_number_or_names():
    assert Fork(3).tasks == ("0", "1", "2")
    assert Fork(["click", "like"]).tasks == ("click", "like")
    assert len(Fork(["click", "like"])(leaf(2))) == 2


STRUCTURES = {
    "tensor": lambda a, _: a,
    "tuple": lambda a, b: (a, b),
    "list": lambda a, b: [a, b],
    "dict": lambda a, b: {"experts": a, "gate": b},
    "nested": lambda a, b: {"levels": [(a,), {"gate": b}]},
    "namedtuple": Experts,
}


def tensors_in(structure) -> list[Tensor]:
    if isinstance(structure, Tensor):
        return [structure]
    parts = structure.values() if isinstance(structure, dict) else structure
    return [tensor for part in parts for tensor in tensors_in(part)]


@pytest.mark.parametrize("kind", STRUCTURES)
def test_every_branch_has_the_structure_and_the_values_of_the_shared_tensors(kind):
    shared = STRUCTURES[kind](leaf(4, 3), leaf(4, 2, seed=1))
    branches = Fork(3)(shared)
    assert isinstance(branches, tuple)
    assert len(branches) == 3
    for branch in branches:
        assert type(branch) is type(shared)
        if isinstance(shared, dict):
            assert list(branch) == list(shared)
        for copied, original in zip(tensors_in(branch), tensors_in(shared), strict=True):
            assert copied is not original
            assert torch.equal(copied, original)


@pytest.mark.parametrize("kind", STRUCTURES)
def test_the_weighted_gradients_reach_every_tensor_of_a_structure(kind):
    leaves = [leaf(4, 3), leaf(4, 2, seed=1)]
    shared = STRUCTURES[kind](*leaves)
    factors = [2.0, -3.0]
    fork = Fixed([0.5, 4.0])
    losses = [
        factor * sum(tensor.square().sum() for tensor in tensors_in(branch))
        for factor, branch in zip(factors, fork(shared), strict=True)
    ]
    sum(losses).backward()
    for tensor in tensors_in(shared):
        torch.testing.assert_close(tensor.grad, (0.5 * 2.0 + 4.0 * -3.0) * 2 * tensor.detach())


def test_nothing_is_copied_where_no_gradient_is_needed():
    shared = {"a": leaf(2, 3), "b": [leaf(2)]}
    fork = Fixed([1.0, 1.0])
    with torch.no_grad():
        assert all(branch is shared for branch in fork(shared))
    with torch.inference_mode():
        assert all(branch is shared for branch in fork(shared))
    detached = torch.ones(2, 3)
    assert all(branch is detached for branch in fork(detached))
    fork.eval()
    assert all(branch is shared for branch in fork(shared))
    shared["a"].sum().backward()  # eval leaves the graph alone: gradients flow as if there were no fork
    assert fork.told == []


def test_tensors_that_need_no_gradient_pass_through_as_they_are():
    dense, ids, constant = leaf(3, 2), torch.tensor([1, 2, 3]), torch.ones(3)
    mask = torch.tensor([True, False, True])
    fork = Fixed([2.0, 3.0])
    branches = fork((dense, ids, constant, mask))
    for branch in branches:
        assert branch[1] is ids
        assert branch[2] is constant
        assert branch[3] is mask
    (branches[0][0].sum() + branches[1][0][branches[1][3]].sum()).backward()
    torch.testing.assert_close(dense.grad, torch.tensor([[5.0, 5.0], [2.0, 2.0], [5.0, 5.0]]))


@pytest.mark.parametrize(
    ("shared", "found"),
    [
        (None, "NoneType"),
        (3.5, "float"),
        ("z", "str"),
        ([], "nothing"),
        ({}, "nothing"),
        ((1, "z", None), "NoneType, int, str"),
    ],
)
def test_anything_but_tensors_is_refused(shared, found):
    with pytest.raises(TypeError, match=f"tensor, or a tuple, list or dict of tensors; found .*{found}"):
        Fork(2)(shared)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (0, "at least one task"),
        (-2, "at least one task"),
        ([], "at least one task"),
        ("click", r"write \['click'\]"),
        (["click", "click"], "must differ"),
        (["click", ""], "non-empty strings"),
        ([1, 2], "non-empty strings"),
    ],
)
def test_bad_tasks_are_refused_with_what_was_found(tasks, message):
    with pytest.raises(ValueError, match=message):
        Fork(tasks)


@pytest.mark.parametrize("tasks", [2.0, None])
def test_tasks_of_a_wrong_type_are_refused_with_what_was_expected(tasks):
    with pytest.raises((TypeError, ValueError), match="number or a list of names"):
        Fork(tasks)


@pytest.mark.parametrize("tasks", [["click", "like"], ["click"], 3])
def test_repr_reads_like_the_constructor(tasks):
    fork = Fork(tasks)
    assert eval(repr(fork)).tasks == fork.tasks


# --- one backward ---------------------------------------------------------------------------------------


def test_towers_keep_the_gradient_of_their_own_loss_to_the_last_bit():
    forked, plain = Towers(Fixed([0.1, -7.0, 1e5])), Towers(None)
    x = random(3, 8, 6)
    sum(forked(x)).backward()
    sum(plain(x)).backward()
    for found, expected in zip(forked.towers.parameters(), plain.towers.parameters(), strict=True):
        assert torch.equal(found.grad, expected.grad)
    assert not torch.allclose(forked.bottom.weight.grad, plain.bottom.weight.grad)


def test_the_base_class_is_ordinary_training():
    forked, plain = Towers(Fork(3)), Towers(None)
    x = random(3, 8, 6)
    sum(forked(x)).backward()
    sum(plain(x)).backward()
    torch.testing.assert_close(forked.bottom.weight.grad, plain.bottom.weight.grad)
    assert Fork(3).state_dict() == {}


@quick
@given(
    weights=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=6),
    absent=st.sets(st.integers(0, 5)),
    seed=st.integers(0, 1000),
)
def test_upstream_flows_the_weighted_sum_of_the_gradients_for_any_weights(weights, absent, seed):
    gradients = [None if m in absent else random(seed + m, 3, 4) for m in range(len(weights))]
    here = [m for m, gradient in enumerate(gradients) if gradient is not None]
    if not here:
        return
    found = feed(Fixed(weights), gradients)
    expected = sum(weights[m] * gradients[m].double() for m in here)
    size = sum(abs(weights[m]) * gradients[m].norm().item() for m in here)
    assert (found - expected).norm().item() <= 1e-6 * size


def test_weigh_is_told_the_gram_matrix_and_who_is_present_once_per_backward():
    gradients = [random(1, 4, 3), None, random(2, 4, 3), torch.zeros(4, 3), random(3, 4, 3)]
    fork = Fixed([1.0] * 5)
    feed(fork, gradients)
    ((gram, present, grad_enabled),) = fork.told
    flat = torch.stack([torch.zeros(12) if g is None else g.flatten() for g in gradients])
    torch.testing.assert_close(gram, flat @ flat.T)
    assert gram.dtype == torch.float32
    assert present.tolist() == [True, False, True, False, True]
    assert not grad_enabled
    torch.testing.assert_close(fork.last_gram, gram)
    assert torch.equal(fork.last_present, present)


def test_the_gram_matrix_spans_all_pieces_of_a_structure_and_missing_pieces_count_as_zero():
    fork = Fixed([1.0, 1.0])
    a, b = leaf(2, 3), leaf(4, seed=1)
    (a0, b0), (_, b1) = fork((a, b))
    ((a0 * 2).sum() + (b0 * 3).sum() + (b1 * 5).sum()).backward()
    expected = torch.tensor([[6 * 4.0 + 4 * 9.0, 4 * 15.0], [4 * 15.0, 4 * 25.0]])
    torch.testing.assert_close(fork.last_gram, expected)
    torch.testing.assert_close(a.grad, torch.full((2, 3), 2.0))
    torch.testing.assert_close(b.grad, torch.full((4,), 8.0))


def test_gradients_in_any_memory_layout_count_in_full():
    fork = Fixed([2.0, 3.0])
    shared = leaf(4, 6)
    branches = fork(shared)
    (branches[0].sum() + (branches[1].T.reshape(3, 8) * torch.arange(24.0).reshape(3, 8)).sum()).backward()
    second = torch.arange(24.0).reshape(6, 4).T
    torch.testing.assert_close(shared.grad, 2.0 + 3.0 * second)
    torch.testing.assert_close(fork.last_gram[0], torch.tensor([24.0, second.sum().item()]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("M", [1, 3, 6, 18])
@pytest.mark.parametrize("shape", [(3, 7), (64, 1024), (1, 400_003), ()])
def test_the_gram_matrix_of_any_number_and_size_agrees_with_float64(M, shape, dtype):
    gradients = [random(m, *shape).to(dtype) + m % 2 for m in range(M)]
    fork = Fixed([1.0] * M)
    found = feed(fork, gradients)
    flat = torch.stack([gradient.flatten().double() for gradient in gradients])
    exact = flat @ flat.T
    norms = exact.diagonal().sqrt()
    assert ((fork.last_gram - exact) / torch.outer(norms, norms)).abs().max() < 1e-5
    torch.testing.assert_close(
        found.flatten(), flat.sum(0).to(dtype), rtol=1e-2 if dtype.itemsize == 2 else 1e-5, atol=1e-5
    )


@pytest.mark.parametrize("M", [1, 3, 6, 18])
def test_an_empty_batch_has_no_present_task(M):
    fork = Fixed([2.0] * M)
    assert feed(fork, [torch.zeros(0, 4)] * M).shape == (0, 4)
    assert not fork.last_present.any()


# --- absent, zero and non-finite gradients --------------------------------------------------------------


def test_a_task_that_is_not_present_has_the_weight_one_and_no_row():
    gradients = [random(1, 3), None, torch.zeros(3), torch.tensor([1.0, torch.nan, 0.0])]
    fork = Fixed([5.0, 6.0, 7.0, 8.0])
    feed(fork, gradients)
    assert fork.last_weights.tolist() == [5.0, 1.0, 1.0, 1.0]
    assert fork.last_present.tolist() == [True, False, False, False]
    assert fork.last_gram[1:].count_nonzero() == fork.last_gram[:, 1:].count_nonzero() == 0


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_a_value_that_is_not_finite_reaches_the_shared_layers_and_spares_the_other_entries(bad):
    spoilt = torch.tensor([1.0, bad, 2.0])
    fork = Fixed([3.0, 0.0])
    found = feed(fork, [torch.ones(3), spoilt])
    torch.testing.assert_close(found, torch.tensor([4.0, bad, 5.0]), equal_nan=True)
    assert torch.isfinite(fork.last_gram).all()


def test_all_gradients_zero_or_not_finite_is_defined():
    fork = Fixed([3.0, 4.0])
    assert feed(fork, [torch.zeros(3), torch.zeros(3)]).tolist() == [0.0, 0.0, 0.0]
    assert feed(fork, [torch.full((3,), torch.inf), torch.zeros(3)]).tolist() == [torch.inf] * 3
    assert fork.last_weights.tolist() == [1.0, 1.0]


def test_weights_of_tasks_that_are_not_present_may_be_anything():
    found = feed(Fixed([2.0, torch.nan]), [torch.ones(2), None])
    assert found.tolist() == [2.0, 2.0]


def test_a_single_task():
    gradient = random(1, 4, 3)
    assert torch.equal(feed(Fork(["click"]), [gradient]), gradient)


# --- precision ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_have_float32_statistics(dtype):
    # Squares of these leave the range of float16 at either end; their sum needs more than 8 bits of mantissa.
    gradients = [torch.full((100, 100), 3e-6, dtype=dtype), torch.full((100, 100), 3.0, dtype=dtype)]
    fork = Fixed([1e6, 1.0])
    shared = torch.zeros(100, 100, dtype=dtype, requires_grad=True)
    branches = fork(shared)
    torch.autograd.backward(list(branches), gradients)
    assert fork.last_gram.dtype == torch.float32
    flat = torch.stack([gradient.flatten().double() for gradient in gradients])
    torch.testing.assert_close(fork.last_gram.double(), flat @ flat.T, rtol=1e-5, atol=0)
    assert shared.grad.dtype == dtype
    expected = (1e6 * gradients[0].double() + gradients[1].double()).to(dtype)
    assert torch.equal(shared.grad, expected)


def test_sums_of_half_precision_gradients_are_rounded_once():
    # 256 + 1 is 256 in bfloat16: adding one by one would lose every single task.
    gradients = [torch.full((4,), 256.0, dtype=torch.bfloat16)] + [torch.ones(4, dtype=torch.bfloat16)] * 8
    found = feed(Fork(9), gradients)
    assert found.tolist() == [264.0] * 4


def test_float64_gradients_keep_their_precision():
    gradients = [random(m, 5, 4, dtype=torch.float64) / 3 for m in range(2)]
    fork = Fixed([1.0, 1.0]).double()
    feed(fork, gradients)
    flat = torch.stack([gradient.flatten() for gradient in gradients])
    torch.testing.assert_close(fork.last_gram, flat @ flat.T, rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_cast_to_another_precision_trains_with_statistics_no_coarser_than_float32(dtype):
    model = Towers(Fixed([1.0, 2.0, 3.0])).to(dtype)
    sum(model(random(3, 8, 6, dtype=dtype))).backward()
    assert torch.isfinite(model.bottom.weight.grad).all()
    assert torch.finfo(model.fork.last_gram.dtype).eps <= torch.finfo(torch.float32).eps


def test_the_sum_over_ranks_is_a_plain_tensor_that_kernels_take(monkeypatch):
    monkeypatch.setattr(fork_module, "all_reduce", lambda gram, *_: AsyncCollectiveTensor(2 * gram))
    found = fork_module._summed(torch.eye(2), None)
    assert type(found) is torch.Tensor
    assert found.equal(2 * torch.eye(2))
