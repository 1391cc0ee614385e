"""The losses of tasks: masked means, exact zeros, no path from one task to another."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from equipoise.ranking.losses import task_losses

NAN = float("nan")
# The same examples every time, and no failure because the machine is busy.
steady = settings(deadline=None, derandomize=True)


def batch(seed: int, rows: int, tasks: int) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, tasks, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(0, 2, (rows, tasks), generator=generator).double()
    labels[torch.rand(rows, tasks, generator=generator) < 0.4] = NAN
    return tuple(column.clone().requires_grad_() for column in logits.unbind(1)), labels


@steady
@given(seed=st.integers(0, 2**31), rows=st.integers(0, 12), tasks=st.integers(1, 4))
def test_each_loss_and_its_gradient_are_the_mean_over_the_labelled_rows(seed: int, rows: int, tasks: int) -> None:
    logits, labels = batch(seed, rows, tasks)
    losses = task_losses(logits, labels)
    sum(losses).backward()
    for logit, loss, column in zip(logits, losses, labels.unbind(1), strict=True):
        seen = [row for row in range(rows) if not math.isnan(column[row])]
        chances = [1 / (1 + math.exp(-logit[row].item())) for row in seen]
        truths = [column[row].item() for row in seen]
        terms = [-math.log(p if y else 1 - p) for p, y in zip(chances, truths, strict=True)]
        assert loss.item() == pytest.approx(sum(terms) / max(len(seen), 1), rel=1e-9)
        expected = torch.zeros_like(logit)
        for row, p, y in zip(seen, chances, truths, strict=True):
            expected[row] = (p - y) / len(seen)
        torch.testing.assert_close(logit.grad, expected)


def test_a_task_without_labels_has_exactly_zero_loss_and_gradients_and_leaves_the_others_alone() -> None:
    absent = torch.tensor([40.0, -40.0, 0.0], requires_grad=True)
    other = torch.tensor([1.0, -2.0, 0.5], requires_grad=True)
    labels = torch.tensor([[NAN, 1.0], [NAN, NAN], [NAN, 0.0]])
    losses = task_losses((absent, other), labels)
    sum(losses).backward()
    assert losses[0].item() == 0.0
    assert absent.grad is not None
    assert torch.equal(absent.grad, torch.zeros(3))
    alone = other.detach().requires_grad_()
    task_losses((alone,), labels[:, 1:])[0].backward()
    assert torch.equal(other.grad, alone.grad)


def test_a_loss_has_no_path_to_another_tasks_logits() -> None:
    logits, labels = batch(0, 6, 3)
    for task, loss in enumerate(task_losses(logits, labels)):
        gradients = torch.autograd.grad(loss, logits, allow_unused=True)
        assert [gradient is not None for gradient in gradients] == [other == task for other in range(3)]


def test_half_precision_logits_are_summed_in_the_precision_of_the_labels() -> None:
    logits = tuple(column.detach().bfloat16().requires_grad_() for column in batch(1, 4096, 2)[0])
    labels = batch(1, 4096, 2)[1].float()
    losses = task_losses(logits, labels)
    expected = task_losses([logit.float() for logit in logits], labels)
    assert all(loss.dtype == torch.float32 for loss in losses)
    assert all(torch.equal(loss, other) for loss, other in zip(losses, expected, strict=True))
    sum(losses).backward()
    assert all(logit.grad.dtype == torch.bfloat16 for logit in logits)


def test_nothing_depends_on_values_so_no_step_waits_for_the_device() -> None:
    # Under fake tensors, which have no values, .item() and bool(tensor) raise.
    with FakeTensorMode():
        logits = (torch.randn(8, requires_grad=True), torch.randn(8, requires_grad=True))
        sum(task_losses(logits, torch.randint(0, 2, (8, 2)).float())).backward()
    assert all(logit.grad is not None for logit in logits)


@pytest.mark.parametrize(
    ("shapes", "labels"),
    [([(4,)], (4, 2)), ([(4,), (4,)], (4,)), ([(4, 1), (4, 1)], (4, 2)), ([(4,), (3,)], (4, 2))],
)
def test_mismatched_shapes_are_named(shapes: list[tuple[int, ...]], labels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"per task and labels of shape \[B, number of tasks\], found logits"):
        task_losses([torch.zeros(shape) for shape in shapes], torch.zeros(labels))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [300, 5_000, 70_000])
def test_half_precision_labels_give_the_loss_of_wide_ones_however_many_rows(dtype: torch.dtype, rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (rows, 2), generator=generator).float()
    labels[::3, 1] = NAN
    logits = torch.randn(2, rows, generator=generator).requires_grad_()
    found = torch.autograd.grad(sum(task_losses(logits.unbind(), labels.to(dtype))), logits)
    expected = torch.autograd.grad(sum(task_losses(logits.unbind(), labels)), logits)
    assert torch.equal(found[0], expected[0])
    assert all(loss.dtype == torch.float32 for loss in task_losses(logits.half().unbind(), labels.to(dtype)))


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool, torch.float16, torch.float64]
)
def test_labels_of_every_real_type_give_the_same_loss(dtype: torch.dtype) -> None:
    logits, labels = torch.tensor([3.0, 2.0, -1.0]), torch.tensor([[1.0], [0.0], [1.0]])
    (loss,) = task_losses((logits,), labels.to(dtype))
    assert loss.item() == pytest.approx(task_losses((logits,), labels)[0].item(), rel=1e-6)


def test_complex_labels_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"real numbers or booleans, found torch\.complex64: pass their real part"):
        task_losses((torch.zeros(2),), torch.zeros(2, 1, dtype=torch.complex64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.int8])
def test_minus_one_is_a_missing_label(dtype: torch.dtype) -> None:
    logits = torch.tensor([3.0, 2.0, -1.0, 4.0]).requires_grad_()
    labels = torch.tensor([[1], [-1], [0], [-1]])
    (loss,) = task_losses((logits,), labels.to(dtype))
    (expected,) = task_losses((logits,), torch.tensor([[1.0], [NAN], [0.0], [NAN]]))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    assert logits.grad[1] == logits.grad[3] == 0


@pytest.mark.parametrize("wrong", [2.0, 0.5, -2.0, -0.5, math.inf, -math.inf, 1e30, 255])
def test_any_other_label_makes_its_tasks_loss_and_gradient_nan_and_no_other(wrong: float) -> None:
    logits = torch.zeros(2, 3).requires_grad_()
    labels = torch.tensor([[1.0, 0.0], [0.0, wrong], [NAN, 1.0]])
    losses = task_losses(logits.unbind(), labels)
    assert losses[0].item() == pytest.approx(math.log(2))
    assert math.isnan(losses[1].item())
    sum(losses).backward()
    assert logits.grad[0].isfinite().all()
    assert not logits.grad[1].isfinite().all()


def test_unsigned_labels_of_255_which_minus_one_becomes_do_not_look_fine() -> None:
    assert task_losses((torch.zeros(2),), torch.tensor([[255], [1]], dtype=torch.uint8))[0].isnan()
