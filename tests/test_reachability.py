"""Reachability against autograd's own gradients, on random graphs and on common models."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from equipoise import Fork
from equipoise.reachability import leaves_reached, shared_leaves

BATCH, WIDTH, TASKS = 4, 3, 3


def ids(leaves):
    return {id(leaf) for leaf in leaves}


def asked(losses, leaves, *, nonzero=False):
    """Return the leaves for which `torch.autograd.grad` finds a gradient other than zero."""
    found = []
    for loss in losses:
        gradients = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
        pairs = zip(leaves, gradients, strict=True)
        found.append({id(leaf) for leaf, g in pairs if g is not None and (not nonzero or bool(g.any()))})
    return found


OPERATIONS = {
    "add": lambda a, b: [a + b],
    "multiply": lambda a, b: [(a * b).tanh()],
    "tanh of one, the other detached": lambda a, b: [a.tanh(), b.detach()],
    "matrix product": lambda a, b: [(a @ b.T @ a).tanh()],
    "columns of both": lambda a, b: [torch.cat([a, b], 1)[:, ::2]],
    "the second half": lambda a, b: [torch.cat([a, b], 0)[BATCH:]],
    "stack and take apart": lambda a, b: list(torch.stack([a, b], 2).sigmoid().unbind(2)),
    "split": lambda a, b: list(torch.cat([a, b], 1).sigmoid().split(WIDTH, dim=1)),
}


@given(st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_reaches_what_autograd_finds_a_gradient_for(seed):
    choice = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    leaves = [torch.randn(BATCH, WIDTH, generator=generator, requires_grad=True) for _ in range(choice.randint(2, 5))]
    values: list[Tensor] = list(leaves)
    for _ in range(choice.randint(1, 12)):
        values += OPERATIONS[choice.choice(list(OPERATIONS))](*choice.choices(values, k=2))
    losses = [value.square().mean() for value in choice.choices(values, k=TASKS)]
    found = [ids(leaves) for leaves in leaves_reached(losses)]
    for task, loss in enumerate(losses):
        if loss.requires_grad:
            (structural,), (valued,) = asked([loss], leaves), asked([loss], leaves, nonzero=True)
            assert valued <= found[task] <= structural
        else:
            assert found[task] == set()
    assert all(leaf.grad is None for leaf in leaves)


class Stacked(nn.Module):
    """Towers whose logits are put into one tensor in the way that `join` says."""

    def __init__(self, join):
        super().__init__()
        self.join = join
        self.bottom = nn.Linear(5, 4)
        self.towers = nn.ModuleList(nn.Sequential(nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 1)) for _ in range(TASKS))

    def forward(self, x):
        z = self.bottom(x).tanh()
        return self.join([tower(z) for tower in self.towers])


def written_in_place(logits):
    out = logits[0].new_zeros(len(logits[0]), len(logits))
    for task, logit in enumerate(logits):
        out[:, task] = logit.squeeze(1)
    return out


JOINS = {
    "cat": lambda logits: torch.cat(logits, 1),
    "stack": lambda logits: torch.stack([logit.squeeze(1) for logit in logits], 1),
    "probabilities": lambda logits: torch.cat(logits, 1).sigmoid(),
    "transposed": lambda logits: torch.stack(logits).squeeze(2).T,
    "written in place": written_in_place,
}
SPLITS = {
    "column": lambda out, labels: [(out[:, m] - labels[:, m]).square().mean() for m in range(TASKS)],
    "unbind": lambda out, _: [column.square().mean() for column in out.unbind(1)],
    "split": lambda out, _: [column.exp().mean() for column in out.split(1, dim=1)],
    "losses by column": lambda out, labels: list((out - labels).square().mean(0)),
    "cross entropy by column": lambda out, labels: list(
        nn.functional.binary_cross_entropy_with_logits(out, labels, reduction="none").mean(0).unbind()
    ),
    "weighted": lambda out, labels: list((torch.tensor([1.0, 2.0, 3.0]) * (out - labels).square()).sum(0)),
    "some rows": lambda out, labels: [out[:, m][labels[:, m] >= 0].square().sum() for m in range(TASKS)],
}


@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize("split", SPLITS)
def test_towers_stay_apart_in_one_tensor_of_logits(join, split):
    model = Stacked(JOINS[join])
    labels = torch.rand(8, TASKS)
    losses = SPLITS[split](model(torch.randn(8, 5)), labels)
    parameters = list(model.parameters())
    assert [ids(leaves) for leaves in leaves_reached(losses)] == asked(losses, parameters, nonzero=True)
    assert ids(shared_leaves(losses)) == ids(model.bottom.parameters())


def test_towers_of_one_batched_product_read_their_own_branches():
    towers = nn.Parameter(torch.randn(TASKS, WIDTH, 1))
    pieces = [torch.randn(BATCH, WIDTH, requires_grad=True) for _ in range(TASKS)]
    logits = torch.bmm(torch.stack(pieces), towers).squeeze(2)
    losses = [logits[task].square().mean() for task in range(TASKS)]
    assert [ids(leaves) for leaves in leaves_reached(losses)] == [{id(piece), id(towers)} for piece in pieces]
    assert shared_leaves(losses) == []
    assert ids(shared_leaves([*losses, logits[1:, 0].sum()])) == {id(pieces[1]), id(pieces[2]), id(towers)}


def test_a_parameter_with_an_element_per_task_is_not_shared():
    z, uncertainty = torch.ones(4, requires_grad=True), torch.zeros(TASKS, requires_grad=True)
    losses = [z.sum() * (-uncertainty[m]).exp() + uncertainty[m] for m in range(TASKS)]
    assert ids(shared_leaves(losses)) == {id(z)}


def test_a_head_with_an_output_per_task_is_shared():
    head = nn.Linear(5, TASKS)
    logits = head(torch.randn(8, 5))
    assert ids(shared_leaves([logits[:, m].sum() for m in range(TASKS)])) == ids(head.parameters())


def test_a_fork_leads_every_piece_to_itself_alone():
    a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    (first_a, _), (_, second_b) = Fork(2)((a, b))
    found = leaves_reached([first_a.sum(), second_b.sum()])
    assert [ids(leaves) for leaves in found] == [{id(a)}, {id(b)}]


def test_stacked_copies_of_a_fork_lead_each_task_to_what_it_reads_of_its_row():
    a, b = torch.ones(4, 2, requires_grad=True), torch.ones(4, 3, requires_grad=True)
    rows = Fork(2).stacked(torch.cat([a, b], 1))
    losses = [rows[0, :, :2].sum(), rows[1].sum()]
    assert [ids(leaves) for leaves in leaves_reached(losses)] == [{id(a)}, {id(a), id(b)}]
    assert ids(shared_leaves(losses)) == {id(a)}


def test_a_tuple_of_sparse_and_dense_leaves_and_an_absent_task():
    table = nn.Embedding(9, 4, sparse=True)
    x = torch.randn(3, 4, requires_grad=True)
    losses = [(table(torch.tensor([1, 2, 3])) * x).sum(), None, x.sum(), torch.ones(())]
    assert [ids(leaves) for leaves in leaves_reached(losses)] == [{id(table.weight), id(x)}, set(), {id(x)}, set()]


def test_a_loss_may_be_a_leaf():
    leaf = torch.ones((), requires_grad=True)
    assert [ids(leaves) for leaves in leaves_reached([leaf, 2 * leaf])] == [{id(leaf)}] * 2


def test_a_deep_graph_does_not_recurse():
    x = torch.ones(2, requires_grad=True)
    y = x
    for _ in range(20_000):
        y = y + 1
    assert ids(shared_leaves([y.sum(), x.sum()])) == {id(x)}


def test_a_second_walk_and_a_backward_still_work():
    model = Stacked(JOINS["cat"])
    losses = SPLITS["column"](model(torch.randn(8, 5)), torch.rand(8, TASKS))
    assert ids(shared_leaves(losses)) == ids(shared_leaves(losses))
    sum(losses).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_sees_through_checkpoints_that_are_not_reentrant():
    layer, x = nn.Linear(3, 3), torch.randn(2, 3)
    z = checkpoint(layer, x, use_reentrant=False)
    assert ids(shared_leaves([z.sum(), z.square().sum()])) == ids(layer.parameters())


def test_refuses_reentrant_checkpoints_by_name():
    layer, x = nn.Linear(3, 3), torch.randn(2, 3, requires_grad=True)
    z = checkpoint(layer, x, use_reentrant=True)
    with pytest.raises(RuntimeError, match=r"reentrant kind hides the parameters.*use_reentrant=False"):
        shared_leaves([z.sum(), z.square().sum()])


def test_sees_through_a_compiled_graph_of_one_output():
    bottom, head = nn.Linear(3, 3), nn.Linear(3, 1)
    z = torch.compile(bottom, backend="aot_eager")(torch.randn(2, 3))
    assert ids(shared_leaves([head(z).sum(), z.sum()])) == ids(bottom.parameters())


def test_refuses_a_compiled_graph_in_which_tasks_cannot_be_told_apart():
    model = torch.compile(Stacked(tuple), backend="aot_eager")
    with pytest.raises(
        RuntimeError, match=r"compiled graph gives several tasks their own outputs.*before torch.compile"
    ):
        shared_leaves([logit.sum() for logit in model(torch.randn(8, 5))])


class Twofold(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.set_materialize_grads(True)
        return a + 1, b + 1

    @staticmethod
    def backward(_, a, b):
        return a, b


def test_refuses_a_custom_function_in_which_tasks_cannot_be_told_apart():
    a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    losses = [output.sum() for output in Twofold.apply(a, b)]
    with pytest.raises(RuntimeError, match="the custom autograd function Twofold"):
        leaves_reached(losses)
    assert ids(shared_leaves([sum(losses), sum(losses)])) == {id(a), id(b)}


def test_full_backward_hooks_hide_nothing():
    model = Stacked(JOINS["cat"])
    for module in model.modules():
        module.register_full_backward_hook(lambda *_: None)
    losses = SPLITS["column"](model(torch.randn(8, 5)), torch.rand(8, TASKS))
    assert ids(shared_leaves(losses)) == ids(model.bottom.parameters())


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (torch.ones(2, requires_grad=True), r"found one tensor of shape \(2,\)"),
        ([torch.ones(()), 1.0], "loss of task 1 must be a tensor, or None; found float"),
    ],
)
def test_says_what_it_takes(losses, message):
    with pytest.raises(TypeError, match=message):
        leaves_reached(losses)
