"""Weightings of torchjd at a fork weigh as by themselves; their state is the fork's, and absent tasks are not seen."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor
from torchjd.aggregation import (
    PCD,
    AlignedMTL,
    CAGrad,
    CRMOGMWeighting,
    GradVac,
    MGDAWeighting,
    PCGradWeighting,
    UPGrad,
)

from equipoise.forks import Fork
from equipoise.methods import METHODS, MethodError
from equipoise.methods.torchjd_at_fork import GradVacFork, PCDFork, PCGradFork, crmogm_mgda, crmogm_pcgrad
from tests.forks.test_balancing_forks import rows, weigh

NAMES = ["a", "b", "c", "d"]
STATEFUL = ["gradvac", "pcd", "crmogm-mgda", "crmogm-pcgrad"]
DRAWING = ["pcgrad", "gradvac", "crmogm-pcgrad"]
STATELESS = {"cagrad": CAGrad(c=0.4), "aligned-mtl": AlignedMTL(), "upgrad": UPGrad()}


def build(name: str, tasks: list[str] = NAMES, **task_weights: float) -> Fork:
    method = METHODS[name].with_task_weights(task_weights) if task_weights else METHODS[name]
    return method.fork_factory(tasks)()


def near(seed: int, tasks: int = 4) -> Tensor:
    """Return gradients of similar lengths, as solvers of others like them."""
    gradients = rows(seed, tasks, 6)
    return gradients / gradients.norm(dim=1, keepdim=True) * torch.linspace(1, 2, tasks).unsqueeze(1)


@pytest.mark.parametrize("name", STATELESS)
@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_short_gradients_are_combined_as_long_ones_are(name: str, scale: float) -> None:
    """torchjd by itself would return 0, or project nothing, for the short ones."""
    for seed in range(3):
        gradients = near(seed)
        found = weigh(build(name), scale * gradients) @ gradients
        torch.testing.assert_close(found, STATELESS[name](gradients), rtol=1e-3, atol=1e-4)


def test_preferences_are_torchjds_where_it_has_them_and_upgrad_still_harms_no_task() -> None:
    wanted = torch.tensor([9.0, 1.0, 2.0, 0.5], dtype=torch.float64)
    preferring = dict(zip(NAMES, wanted.tolist(), strict=True))
    for seed in range(3):
        gradients = near(seed)
        gradients[0] -= gradients[1]
        for name, theirs in {"upgrad": UPGrad, "aligned-mtl": AlignedMTL}.items():
            found = weigh(build(name, **preferring), gradients) @ gradients
            expected = theirs(pref_vector=wanted / wanted.sum())(gradients)
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
        harmless = weigh(build("upgrad", **preferring), gradients) @ gradients
        assert (gradients @ harmless > -1e-3).all()


@pytest.mark.parametrize("name", [*STATELESS, *STATEFUL, "pcgrad"])
def test_absent_tasks_are_never_seen(name: str) -> None:
    """The others are weighed as if the absent one did not exist, and its state does not move."""
    whole, small = build(name), build(name, ["a", "b", "d"])
    keep = [0, 1, 3]
    for seed in range(4):
        found = weigh(whole, near(seed), [True, True, False, True])
        torch.testing.assert_close(found[keep], weigh(small, near(seed)[keep]), rtol=1e-9, atol=0)
        assert found[2] == 0
    untouched = build(name).state_dict()
    for key, value in whole.state_dict().items():
        if key in {"averages", "targets", "begun"}:
            assert torch.equal(value[..., 2], untouched[key].to(value)[..., 2])
    before = copy.deepcopy(whole.state_dict())
    weigh(whole, near(9), [False] * 4)
    assert all(torch.equal(value, before[key]) for key, value in whole.state_dict().items())


def test_pcgrad_projects_off_conflicts_whatever_the_order() -> None:
    gradients = near(0, 2)
    gradients[1] -= 2 * gradients[0]
    torch.testing.assert_close(
        weigh(PCGradFork(2), gradients), PCGradWeighting()(gradients @ gradients.T), rtol=1e-9, atol=0
    )


def test_gradvac_is_torchjds_over_many_steps() -> None:
    """With two tasks there is one order."""
    theirs, fork = GradVac(beta=0.3), GradVacFork(2, beta=0.3)
    for seed in range(8):
        gradients = near(seed, 2)
        scaled = gradients / (gradients.square().sum() / 2).sqrt()  # their constant of 1e-8 is not relative
        found = weigh(fork, 1e-5 * gradients) @ scaled
        torch.testing.assert_close(found, theirs(scaled), rtol=1e-6, atol=1e-8)


def test_pcd_is_torchjds_over_many_steps() -> None:
    theirs, fork = PCD(tau=0.3, beta=0.9, eps=0.0), PCDFork(NAMES, tau=0.3, beta=0.9)
    for seed in range(8):
        gradients = near(seed) * torch.linspace(0.3, 3, 4).roll(seed).unsqueeze(1)  # lengths that change
        torch.testing.assert_close(weigh(fork, gradients) @ gradients, theirs(gradients), rtol=1e-6, atol=1e-8)


def test_pcds_primary_task_is_found_by_name_and_without_it_nothing_flows() -> None:
    theirs, fork = PCD(tau=0.3, eps=0.0), PCDFork(NAMES, primary="c", tau=0.3)
    gradients = near(1)
    expected = theirs(gradients[[2, 0, 1, 3]])
    torch.testing.assert_close(weigh(fork, gradients) @ gradients, expected, rtol=1e-6, atol=1e-8)
    assert weigh(fork, gradients, [True, True, False, True]).tolist() == [0.0] * 4
    with pytest.raises(ValueError, match="primary must be one of the tasks a, b, c, d, found 'e'"):
        PCDFork(NAMES, primary="e")


def test_pcd_corrects_the_bias_of_each_average_by_its_own_steps() -> None:
    """A task that comes late is not taken for a small one."""
    fork = PCDFork(NAMES, beta=0.999)
    gradients = near(2)
    for _ in range(5):
        weigh(fork, gradients, [True, True, True, False])
    expected = weigh(PCDFork(NAMES), gradients)
    torch.testing.assert_close(weigh(fork, gradients), expected, rtol=1e-6, atol=1e-9)


def test_crmogm_averages_the_weights_of_the_other_method() -> None:
    theirs = CRMOGMWeighting(MGDAWeighting(epsilon=1e-7, max_iters=1000), alpha=0.8)
    fork = crmogm_mgda(NAMES, alpha=0.8)
    for seed in range(3):
        gradients = near(seed)
        torch.testing.assert_close(weigh(fork, gradients), theirs(gradients @ gradients.T), rtol=0, atol=2e-3)


def test_crmogm_lets_a_task_that_comes_late_begin_with_its_own_weight() -> None:
    fork, alone = crmogm_pcgrad(NAMES, alpha=0.5), PCGradFork(NAMES)
    for seed in range(3):
        weigh(fork, near(seed), [True, True, True, False])
        weigh(alone, near(seed), [True, True, True, False])
    found, newest = weigh(fork, near(5)), weigh(alone, near(5))
    torch.testing.assert_close(found[3], newest[3])
    assert not torch.allclose(found[:3], newest[:3])


@pytest.mark.parametrize("name", DRAWING)
def test_draws_are_the_same_on_all_ranks_and_leave_the_global_random_state_alone(name: str) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one = [weigh(build(name), near(0)) for _ in range(3)]
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert all(torch.equal(found, weigh(build(name), near(0))) for found in one)
    fork = build(name)
    assert len({tuple(weigh(fork, near(3)).tolist()) for _ in range(6)}) > 1


@pytest.mark.parametrize("name", [*STATEFUL, "pcgrad"])
def test_a_resumed_fork_goes_on_as_one_that_was_not_interrupted(name: str) -> None:
    whole, resumed = build(name), build(name)
    for seed in range(3):
        weigh(whole, near(seed), [True, seed != 1, True, True])
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    copied, pickled = copy.deepcopy(whole), pickle.loads(pickle.dumps(whole))
    expected = weigh(whole, near(7))
    assert all(torch.equal(weigh(other, near(7)), expected) for other in (copied, pickled))
    torch.testing.assert_close(weigh(resumed, near(7)), expected, rtol=1e-5, atol=1e-7)  # saved in float32
    whole.reset_parameters()
    torch.testing.assert_close(weigh(whole, near(0)), weigh(build(name), near(0)), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", STATEFUL)
def test_a_state_is_matched_by_the_tasks_names(name: str) -> None:
    fork, other = build(name), build(name, ["d", "new", "a"])
    for seed in range(3):
        weigh(fork, near(seed))
    other.load_state_dict(fork.state_dict(), strict=False)
    for key in {"averages", "targets", "begun"} & other.state_dict().keys():
        mine, theirs = other.state_dict()[key], fork.state_dict()[key].to(other.state_dict()[key])
        if key == "targets":  # of pairs
            mine, theirs = mine[[0, 2]], theirs[[3, 0]]
        torch.testing.assert_close(mine[..., [0, 2]], theirs[..., [3, 0]])
        assert not mine[..., 1].any()


def test_a_package_that_is_missing_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchjd._mixins.find_spec", lambda _: None)
    with pytest.raises(MethodError, match=r"'cvxpy', .* to be installed.* pip install .* Or choose another method\."):
        build("cagrad")
