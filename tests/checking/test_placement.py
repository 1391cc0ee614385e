"""Each way to misplace a fork is found, with a message that names the misplaced part."""

import pytest
import torch
from torch import nn

from equipoise import Fork, MultiBalance, check, paused
from tests.checking.rankers import TASKS, Ranker, losses_of


def problems(model, losses=None, **options):
    report = check(model, losses_of(model) if losses is None else losses, **options)
    assert not report.unseen
    return report.problems


def test_a_fork_in_its_place_is_fine():
    model = Ranker()
    report = check(model, losses_of(model))
    assert report.ok
    assert report.shared == [name for name, _ in model.named_parameters() if not name.startswith("towers")][
        ::-1
    ] or set(report.shared) == {"table.weight", "bottom.0.weight", "bottom.0.bias"}
    assert set(report.own) == set(TASKS)
    assert set(report.own["buy"]) == {name for name, _ in model.named_parameters() if name.startswith("towers.buy")}
    assert str(report).endswith("No problem found.")


def test_a_fork_that_is_not_called():
    class Forgotten(Ranker):
        def wire(self, z, _):
            return [z] * 3

    (problem,) = problems(Forgotten())
    assert "No loss crosses fork 'fork': the model does not call it, does not use what it returns" in problem


def test_a_fork_whose_branches_are_dropped():
    class Dropped(Ranker):
        def wire(self, z, _):
            self.fork(z)
            return [z] * 3

    (problem,) = problems(Dropped())
    assert "does not use what it returns" in problem


@pytest.mark.parametrize("part", [lambda model: model, lambda model: model.fork])
def test_eval_mode(part):
    model = Ranker()
    part(model).eval()
    (problem,) = problems(model)
    assert "fork 'fork', which is in eval mode" in problem
    assert "model.train()" in problem


def test_a_paused_fork():
    model = Ranker()
    with paused(model):
        losses = losses_of(model)
        (problem,) = problems(model, losses)
    assert problem == "No loss crosses fork 'fork', which is paused. Compute the losses outside of equipoise.paused."


def test_two_towers_that_read_one_branch():
    class Twice(Ranker):
        def wire(self, z, _):
            click, like, _ = self.fork(z)
            return [click, like, like]

    (problem,) = problems(Twice())
    assert problem == (
        "The loss of 'buy' reads branch 'like' of fork 'fork' instead of its own: towers.buy.0 → towers.buy.2 → loss "
        "of 'buy'. No loss reads branch 'buy'. Give its tower branch 'buy'."
    )


def test_branches_in_another_order():
    class Swapped(Ranker):
        def wire(self, z, _):
            click, like, buy = self.fork(z)
            return [like, click, buy]

    first, second = problems(Swapped())
    assert "The loss of 'click' reads branch 'like'" in first
    assert "The loss of 'like' reads branch 'click'" in second


def test_a_branch_that_nobody_reads():
    class Unused(Ranker):
        def wire(self, z, _):
            click, like, _ = self.fork(z)
            return [click, like, z]

    unread, around = problems(Unused())
    assert unread == (
        "The loss of 'buy' does not read its branch of fork 'fork'. No loss reads branch 'buy'. Give its tower branch "
        "'buy'."
    )
    assert around == (
        "The loss of 'buy' reaches shared parameters without crossing fork 'fork': table.weight, bottom. What comes "
        "this way is not balanced. One such path: bottom.0.weight → towers.buy.0 → towers.buy.2 → loss of 'buy'. Let "
        "it start from a branch of the fork, or fork what it reads too: fork((z, x)) takes several tensors."
    )


def test_a_skip_connection_around_the_fork():
    class Skip(Ranker):
        def wire(self, z, e):
            click, like, buy = self.fork(z)
            return [click, like, buy + e[:, :3]]

    (problem,) = problems(Skip())
    assert "The loss of 'buy' reaches shared parameters without crossing fork 'fork': table.weight." in problem
    assert "table.weight → towers.buy.0 → towers.buy.2 → loss of 'buy'" in problem


def test_a_skip_connection_of_two_tasks():
    class Skip(Ranker):
        def wire(self, z, e):
            click, like, buy = self.fork(z)
            return [click, like + e[:, :3], buy + e[:, :3]]

    (problem,) = problems(Skip())
    assert "The losses of 'like' and 'buy' reach shared parameters" in problem


def test_a_fork_too_far_down():
    class Early(Ranker):
        def forward(self, ids):
            branches = self.fork(self.table(ids))
            return [tower(self.bottom(e)).squeeze(1) for tower, e in zip(self.towers.values(), branches, strict=True)]

    (problem,) = problems(Early())
    assert (
        "The losses of 'click', 'like' and 'buy' reach shared parameters without crossing fork 'fork': bottom."
        in problem
    )


def test_another_tasks_prediction_in_a_loss():
    class Chained(Ranker):
        def forward(self, ids):
            click, like, buy = super().forward(ids)
            return [click, like, click * buy]

    branch, tower = problems(Chained())
    assert branch.startswith(
        "Branch 'click' of fork 'fork' also carries the loss of 'buy': towers.click.0 → towers.click.2"
    )
    assert tower.startswith("The losses of 'click' and 'buy' reach shared parameters without crossing fork 'fork': ")
    assert "towers.click" in tower


def test_one_fork_in_two_places():
    class Twice(Ranker):
        def wire(self, z, e):
            return [a + b[:, :3] for a, b in zip(self.fork(z), self.fork(e), strict=True)]

    (problem,) = problems(Twice())
    assert "The losses cross fork 'fork' in 2 places" in problem
    assert "one tuple" in problem


def test_a_tuple_counts_as_one_place():
    class Together(Ranker):
        def wire(self, z, e):
            return [a + b[:, :3] for a, b in self.fork((z, e))]

    assert problems(Together()) == []


def test_a_fork_outside_the_model():
    model, elsewhere = Ranker(), MultiBalance(TASKS)
    model.wire = lambda z, _: list(elsewhere(z))
    del model.fork
    (problem,) = problems(model)
    assert "a MultiBalance over click, like, buy that is no part of the model" in problem


class TwoLevels(nn.Module):
    """Two levels of shared and own experts; `second` gives the input of the shared expert of level 2."""

    def __init__(self, read):
        super().__init__()
        self.read = read
        self.shared1, self.shared2 = nn.Linear(4, 3), nn.Linear(3, 3)
        self.own1 = nn.ModuleDict({task: nn.Linear(4, 3) for task in "ab"})
        self.own2 = nn.ModuleDict({task: nn.Linear(3, 3) for task in "ab"})
        self.level1, self.level2 = MultiBalance(["a", "b"]), MultiBalance(["a", "b"])
        self.towers = nn.ModuleDict({task: nn.Linear(3, 1) for task in "ab"})

    def forward(self, x):
        s1 = self.shared1(x).tanh()
        branches1 = self.level1(s1)
        s2 = self.shared2(self.read(s1, branches1)).tanh()
        branches2 = self.level2(s2)
        return [
            self.towers[task](branch2 + self.own2[task](branch1 + self.own1[task](x)).tanh())
            for task, branch1, branch2 in zip("ab", branches1, branches2, strict=True)
        ]


def two_levels(read):
    model = TwoLevels(read)
    return problems(model, [logit.square().mean() for logit in model(torch.randn(5, 4))])


def test_the_shared_path_of_a_second_level_that_reads_one_branch():
    problem, twice = two_levels(lambda _, branches: branches[0])
    assert twice.startswith(
        "What comes back through fork 'level2' crosses fork 'level1' as well, and is weighted twice."
    )
    assert problem.startswith(
        "Branch 'a' of fork 'level1' also carries the loss of 'b': shared2 → fork 'level2' → towers.b → loss of 'b'."
    )
    assert "read the tensor that the fork was given" in problem


def test_the_shared_path_of_a_second_level_that_reads_the_mean_of_the_branches():
    first, second, twice = two_levels(lambda _, branches: sum(branches) / 2)
    assert "Branch 'b' of fork 'level1' also carries the loss of 'a'" in first
    assert "Branch 'a' of fork 'level1' also carries the loss of 'b'" in second
    assert "weighted twice" in twice


def test_the_shared_path_of_a_second_level_that_goes_on_from_the_forked_tensor():
    assert two_levels(lambda shared, _: shared) == []


def test_two_forks_one_after_the_other():
    model = Ranker()
    model.second = MultiBalance(TASKS)
    model.wire = lambda z, _: [branch for m, first in enumerate(model.fork(z)) for branch in [model.second(first)[m]]]
    assert "The losses cross fork 'second' in 3 places" in problems(model)[0]
    model = Ranker()
    model.second = MultiBalance(["click"])
    model.wire = lambda z, _: [model.second((branches := model.fork(z))[0])[0], *branches[1:]]
    (problem,) = problems(model)
    assert problem.startswith("What comes back through fork 'second' crosses fork 'fork' as well")


def test_names_decide_which_loss_belongs_to_which_branch():
    model = Ranker()
    losses = dict(zip(TASKS, losses_of(model), strict=True))
    assert problems(model, {task: losses[task] for task in reversed(TASKS)}) == []
    wrong = {"click": losses["like"], "like": losses["click"], "buy": losses["buy"]}
    assert len(problems(model, wrong)) == 2


def test_other_names_than_the_forks_go_by_position():
    model = Ranker(fork=MultiBalance(3))
    assert problems(model, dict(zip(TASKS, losses_of(model), strict=True))) == []


def test_an_absent_task_is_no_problem():
    model = Ranker()
    click, _, buy = losses_of(model)
    assert problems(model, [click, None, buy]) == []
    assert problems(model, {"click": click, "buy": buy}) == []


def test_a_loss_without_a_branch():
    model = Ranker(fork=MultiBalance(["click", "like"]))
    model.wire = lambda z, _: [*(branches := model.fork(z)), branches[0]]
    losses = dict(zip(TASKS, losses_of(model), strict=True))
    (problem,) = problems(model, losses)
    assert "The loss of 'buy' reads branch 'click' of fork 'fork', which has no branch for it" in problem


def test_the_sum_of_the_losses():
    model = Ranker()
    (problem,) = problems(model, [sum(losses_of(model))])
    assert "has 3 tasks (click, like, buy), and there are 1 losses" in problem
    assert "before they are summed" in problem


def test_a_fork_that_gives_every_task_the_weight_one_is_checked_too():
    model = Ranker(fork=Fork(TASKS))
    model.wire = lambda z, _: [model.fork(z)[0]] * 3
    assert len(problems(model)) == 2
