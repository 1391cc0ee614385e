"""A training warns in its first step, once, of a fork or a shared list in the wrong place, and goes on."""

import warnings

import pytest
from torch import nn

from equipoise import MisplacedForkWarning
from equipoise.data import Dataset
from equipoise.methods import METHODS
from equipoise.ranking.models import RankingModel
from equipoise.training import train

SETTINGS = {"epochs": 1, "batch_size": 64, "evaluations": 1, "monitor_reads": 1}
BYPASSED = "tests.training.faults.test_misplaced_forks:Bypassed"


class Bypassed(RankingModel):
    """`like` goes round the fork, and the head of `click` is called shared."""

    def __init__(self, schema, fork=None):
        super().__init__(schema)
        self.bottom = nn.Linear(2, 4)
        self.fork = self.new_fork(fork)
        self.towers = nn.ModuleList(nn.Linear(4, 1) for _ in schema.tasks)
        self.heads = nn.ModuleList([nn.Identity(), self.towers[1]])

    def forward(self, categorical, numeric):
        z = self.bottom(numeric)
        click, *_ = self.branches(self.fork, z)
        return self.towers[0](click).squeeze(1), self.towers[1](z).squeeze(1)


def warned(tiny: Dataset, method: str, model: str = BYPASSED) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        run = train(tiny, METHODS[method], model=model, **SETTINGS)
    assert run.steps == 10
    return [str(warning.message) for warning in found if warning.category is MisplacedForkWarning]


def test_a_fork_that_is_gone_round(tiny: Dataset):
    (message,) = warned(tiny, "multibalance")
    assert "The loss of 'like' does not read its branch of fork 'fork'." in message
    assert "The loss of 'like' reaches shared parameters without crossing fork 'fork': bottom." in message


def test_shared_parameters_that_are_a_tasks_own(tiny: Dataset):
    (message,) = warned(tiny, "pub")
    assert message.startswith("PUB: shared holds 2 parameters that one task alone reaches")
    assert "(of click)" in message
    assert "equipoise.check names them" in message


@pytest.mark.parametrize("method", ["equal", "single-task"])
def test_nothing_to_warn_of_where_nothing_is_balanced(tiny: Dataset, method: str):
    assert warned(tiny, method) == []


@pytest.mark.parametrize("model", ["shared-bottom", "mmoe", "ple"])
@pytest.mark.parametrize("method", list(METHODS))
def test_no_built_in_model_is_warned_of(tiny: Dataset, method: str, model: str):
    assert warned(tiny, method, model) == []


def test_a_training_goes_on_to_the_same_numbers_as_without_the_check(tiny: Dataset, monkeypatch):
    from equipoise.training import learner

    with pytest.warns(MisplacedForkWarning):
        checked = train(tiny, METHODS["multibalance"], model=BYPASSED, **SETTINGS)
    monkeypatch.setattr(learner, "warn_of_misplaced_forks", lambda *_: None)
    assert train(tiny, METHODS["multibalance"], model=BYPASSED, **SETTINGS).test == checked.test
