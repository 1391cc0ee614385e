"""The losses of tasks: masked means, exact zeros, no path from one task to another."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from equipoise.ranking.losses import labelled_rows, task_losses
from equipoise.schema import Task

NAN = float("nan")
# The same examples every time, and no failure because the machine is busy.
steady = settings(deadline=None, derandomize=True)


def binary_losses(logits: Sequence[torch.Tensor], labels: torch.Tensor) -> list[torch.Tensor]:
    return task_losses(logits, labels, [Task(f"task {place}") for place in range(len(logits))])


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
    losses = binary_losses(logits, labels)
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
    losses = binary_losses((absent, other), labels)
    sum(losses).backward()
    assert losses[0].item() == 0.0
    assert absent.grad is not None
    assert torch.equal(absent.grad, torch.zeros(3))
    alone = other.detach().requires_grad_()
    binary_losses((alone,), labels[:, 1:])[0].backward()
    assert torch.equal(other.grad, alone.grad)


def test_a_loss_has_no_path_to_another_tasks_logits() -> None:
    logits, labels = batch(0, 6, 3)
    for task, loss in enumerate(binary_losses(logits, labels)):
        gradients = torch.autograd.grad(loss, logits, allow_unused=True)
        assert [gradient is not None for gradient in gradients] == [other == task for other in range(3)]


def test_half_precision_logits_are_summed_in_the_precision_of_the_labels() -> None:
    logits = tuple(column.detach().bfloat16().requires_grad_() for column in batch(1, 4096, 2)[0])
    labels = batch(1, 4096, 2)[1].float()
    losses = binary_losses(logits, labels)
    expected = binary_losses([logit.float() for logit in logits], labels)
    assert all(loss.dtype == torch.float32 for loss in losses)
    assert all(torch.equal(loss, other) for loss, other in zip(losses, expected, strict=True))
    sum(losses).backward()
    assert all(logit.grad.dtype == torch.bfloat16 for logit in logits)


def test_nothing_depends_on_values_so_no_step_waits_for_the_device() -> None:
    # Under fake tensors, which have no values, .item() and bool(tensor) raise.
    with FakeTensorMode():
        logits = (torch.randn(8, requires_grad=True), torch.randn(8, requires_grad=True))
        sum(binary_losses(logits, torch.randint(0, 2, (8, 2)).float())).backward()
    assert all(logit.grad is not None for logit in logits)


@pytest.mark.parametrize(
    ("shapes", "labels"),
    [([(4,)], (4, 2)), ([(4,), (4,)], (4,)), ([(4, 1), (4, 1)], (4, 2)), ([(4,), (3,)], (4, 2))],
)
def test_mismatched_shapes_are_named(shapes: list[tuple[int, ...]], labels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"per task and labels of shape \[B, number of tasks\], found . tasks"):
        binary_losses([torch.zeros(shape) for shape in shapes], torch.zeros(labels))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [300, 5_000, 70_000])
def test_half_precision_labels_give_the_loss_of_wide_ones_however_many_rows(dtype: torch.dtype, rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (rows, 2), generator=generator).float()
    labels[::3, 1] = NAN
    logits = torch.randn(2, rows, generator=generator).requires_grad_()
    found = torch.autograd.grad(sum(binary_losses(logits.unbind(), labels.to(dtype))), logits)
    expected = torch.autograd.grad(sum(binary_losses(logits.unbind(), labels)), logits)
    assert torch.equal(found[0], expected[0])
    assert all(loss.dtype == torch.float32 for loss in binary_losses(logits.half().unbind(), labels.to(dtype)))


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool, torch.float16, torch.float64]
)
def test_labels_of_every_real_type_give_the_same_loss(dtype: torch.dtype) -> None:
    logits, labels = torch.tensor([3.0, 2.0, -1.0]), torch.tensor([[1.0], [0.0], [1.0]])
    (loss,) = binary_losses((logits,), labels.to(dtype))
    assert loss.item() == pytest.approx(binary_losses((logits,), labels)[0].item(), rel=1e-6)


def test_complex_labels_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"real numbers or booleans, found torch\.complex64: pass their real part"):
        binary_losses((torch.zeros(2),), torch.zeros(2, 1, dtype=torch.complex64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.int8])
def test_minus_one_is_a_missing_label(dtype: torch.dtype) -> None:
    logits = torch.tensor([3.0, 2.0, -1.0, 4.0]).requires_grad_()
    labels = torch.tensor([[1], [-1], [0], [-1]])
    (loss,) = binary_losses((logits,), labels.to(dtype))
    (expected,) = binary_losses((logits,), torch.tensor([[1.0], [NAN], [0.0], [NAN]]))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    assert logits.grad[1] == logits.grad[3] == 0


@pytest.mark.parametrize("wrong", [2.0, 0.5, -2.0, -0.5, math.inf, -math.inf, 1e30, 255])
def test_any_other_label_makes_its_tasks_loss_and_gradient_nan_and_no_other(wrong: float) -> None:
    logits = torch.zeros(2, 3).requires_grad_()
    labels = torch.tensor([[1.0, 0.0], [0.0, wrong], [NAN, 1.0]])
    losses = binary_losses(logits.unbind(), labels)
    assert losses[0].item() == pytest.approx(math.log(2))
    assert math.isnan(losses[1].item())
    sum(losses).backward()
    assert logits.grad[0].isfinite().all()
    assert not logits.grad[1].isfinite().all()


def test_unsigned_labels_of_255_which_minus_one_becomes_do_not_look_fine() -> None:
    assert binary_losses((torch.zeros(2),), torch.tensor([[255], [1]], dtype=torch.uint8))[0].isnan()


KINDS = [
    Task("click", positive_weight=7.5),
    Task("watch", kind="regression", mean=40.0, scale=25.0),
    Task("spend", kind="regression", loss="log", mean=1.5, scale=0.7),
    Task("rating", kind="regression", loss="huber", mean=3.0, scale=0.5),
    Task("like"),
]


def mixed(seed: int, rows: int) -> tuple[tuple[torch.Tensor, ...], torch.Tensor, torch.Tensor]:
    """Return outputs and labels of all kinds of tasks, and the importance of the rows."""
    outputs, labels = batch(seed, rows, len(KINDS))
    generator = torch.Generator().manual_seed(seed + 1)
    numbers = torch.rand(rows, len(KINDS), generator=generator, dtype=torch.float64) * 80 - torch.tensor(
        [0, 1, 0, 40, 0]
    )
    binary = torch.tensor([task.binary for task in KINDS])
    labels = labels.where(binary | labels.isnan(), numbers)
    importance = torch.rand(rows, generator=generator, dtype=torch.float64) * 3
    importance[torch.rand(rows, generator=generator) < 0.2] = 0.0
    return outputs, labels, importance


def loss_and_slope(task: Task, output: float, label: float) -> tuple[float, float]:
    """Return one row's loss and its derivative, by the definitions in the papers."""
    if task.binary:
        chance = 1 / (1 + math.exp(-output))
        if label:
            return -task.positive_weight * math.log(chance), task.positive_weight * (chance - 1)
        return -math.log1p(-chance), chance
    value = math.log(1 + label) if task.loss == "log" else label
    error = output - (value - task.mean) / task.scale
    if task.loss == "huber":
        return (error**2 / 2, error) if abs(error) <= 1 else (abs(error) - 0.5, math.copysign(1.0, error))
    return error**2, 2 * error


@steady
@given(seed=st.integers(0, 2**31), rows=st.integers(0, 12), weighted=st.booleans())
def test_losses_of_every_kind_are_weighted_means_over_the_labelled_rows(seed: int, rows: int, weighted: bool) -> None:
    outputs, labels, importance = mixed(seed, rows)
    counts = importance if weighted else torch.ones(rows)
    losses = task_losses(outputs, labels, KINDS, importance=importance if weighted else None)
    sum(losses).backward()
    for task, output, loss, column in zip(KINDS, outputs, losses, labels.unbind(1), strict=True):
        seen = [row for row in range(rows) if not math.isnan(column[row])]
        terms = {row: loss_and_slope(task, output[row].item(), column[row].item()) for row in seen}
        whole = sum(counts[row].item() for row in seen) or 1.0
        assert loss.item() == pytest.approx(sum(counts[row].item() * terms[row][0] for row in seen) / whole, rel=1e-9)
        expected = torch.zeros_like(output)
        for row in seen:
            expected[row] = counts[row] * terms[row][1] / whole
        torch.testing.assert_close(output.grad, expected)


def test_regressions_are_the_losses_of_torch_on_standardised_labels() -> None:
    outputs, labels, _ = mixed(5, 300)
    losses = task_losses(outputs, labels, KINDS)
    for place, measure in ((1, functional.mse_loss), (2, functional.mse_loss), (3, functional.huber_loss)):
        task, here = KINDS[place], ~labels[:, place].isnan()
        wanted = labels[here, place].log1p() if task.loss == "log" else labels[here, place]
        expected = measure(outputs[place][here], (wanted - task.mean) / task.scale)
        torch.testing.assert_close(losses[place], expected)
    here = ~labels[:, 0].isnan()
    expected = functional.binary_cross_entropy_with_logits(
        outputs[0][here], labels[here, 0], pos_weight=torch.tensor(7.5)
    )
    torch.testing.assert_close(losses[0], expected)


def test_without_importance_and_positive_weight_binary_losses_are_to_the_bit_those_of_torch_alone() -> None:
    logits, labels = batch(7, 500, 3)
    for logit, loss, column in zip(logits, binary_losses(logits, labels), labels.unbind(1), strict=True):
        there = (~column.isnan()).double()
        expected = functional.binary_cross_entropy_with_logits(
            logit, column.nan_to_num(0.0), there / there.sum(), reduction="sum"
        )
        assert torch.equal(loss, expected)


def test_tasks_of_every_kind_without_labels_have_zero_loss_and_gradients() -> None:
    outputs, labels, importance = mixed(3, 6)
    for given_importance, given_labels in ((None, torch.full_like(labels, NAN)), (importance * 0, labels)):
        for output in outputs:
            output.grad = None
        losses = task_losses(outputs, given_labels, KINDS, importance=given_importance)
        sum(losses).backward()
        assert [loss.item() for loss in losses] == [0.0] * len(KINDS)
        assert all(torch.equal(output.grad, torch.zeros_like(output)) for output in outputs)


def test_minus_one_is_a_number_of_a_regression() -> None:
    task = Task("change", kind="regression")
    (loss,) = task_losses((torch.zeros(2),), torch.tensor([[-1.0], [NAN]]), [task])
    assert loss.item() == 1.0


@pytest.mark.parametrize(("place", "wrong"), [(1, math.inf), (1, -math.inf), (2, -1.0), (2, -1.5), (3, math.inf)])
def test_a_label_that_a_regression_does_not_allow_makes_its_loss_nan_and_no_other(place: int, wrong: float) -> None:
    outputs, labels, _ = mixed(2, 8)
    labels[4, place] = wrong
    found = task_losses(outputs, labels, KINDS)
    assert [bool(loss.isnan()) for loss in found] == [other == place for other in range(len(KINDS))]


@steady
@given(seed=st.integers(0, 2**31), ranks=st.integers(1, 4), weighted=st.booleans())
def test_the_mean_over_ranks_is_the_loss_of_the_global_batch(seed: int, ranks: int, weighted: bool) -> None:
    outputs, labels, importance = mixed(seed, 12)
    importance = importance if weighted else None
    expected = task_losses(outputs, labels, KINDS, importance=importance)
    labelled = labelled_rows(labels, KINDS, importance=importance) / ranks
    shares = [
        task_losses(
            [output[rank::ranks] for output in outputs],
            labels[rank::ranks],
            KINDS,
            labelled=labelled,
            importance=None if importance is None else importance[rank::ranks],
        )
        for rank in range(ranks)
    ]
    for place, loss in enumerate(expected):
        torch.testing.assert_close(sum(share[place] for share in shares) / ranks, loss)


def test_nothing_depends_on_the_values_of_any_kind_of_task() -> None:
    with FakeTensorMode():
        outputs = tuple(torch.randn(8, requires_grad=True) for _ in KINDS)
        losses = task_losses(outputs, torch.randn(8, len(KINDS)), KINDS, importance=torch.rand(8))
        sum(losses).backward()
    assert all(output.grad is not None for output in outputs)


def test_another_number_of_tasks_is_named() -> None:
    with pytest.raises(ValueError, match="found 1 tasks, outputs of shapes"):
        task_losses((torch.zeros(4), torch.zeros(4)), torch.zeros(4, 2), KINDS[:1])
