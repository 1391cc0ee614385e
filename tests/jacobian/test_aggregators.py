"""Aggregators that know their tasks: equal to torchjd or their formulas, with absent tasks, saved state, and ranks."""

from __future__ import annotations

import copy
import datetime
from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torchjd.aggregation import (
    PCD,
    ExcessMTL,
    FairGrad,
    GradDrop,
    GradVac,
    MoDoWeighting,
    PCGrad,
    SDMGradWeighting,
    UPGrad,
)

from equipoise.jacobian import JacobianDescent, TaskAggregator
from equipoise.methods import CATALOGUE, METHODS, MethodError
from tests.gloo_end import end_rank

ROWS = [method for method in CATALOGUE if method.jacobian is not None]
STATEFUL = [method.name for method in ROWS if getattr(method.jacobian(), "kept", None)]
ALL = [method.name for method in ROWS]
SIZE = 12


@cache
def jacobian(step: int, tasks: int = 3) -> Tensor:
    """Gradients of the tasks that conflict and differ in length, float64."""
    generator = torch.Generator().manual_seed(step)
    rows = torch.randn(3, SIZE, generator=generator, dtype=torch.float64)
    rows[1] -= 0.7 * rows[0]
    return (rows * torch.tensor([[1.0], [0.2], [3.0]]))[:tasks]


def built(name: str, **options: object) -> TaskAggregator:
    return METHODS[name].jacobian(**options)


def descent(
    name: str, tasks: Sequence[str] = ("a", "b", "c"), group: dist.ProcessGroup | None = None, **options: object
) -> tuple[JacobianDescent, nn.Parameter]:
    """Plain descent with the rate 1 on one parameter, whose gradients are those that a test makes up."""
    shared = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    sgd = torch.optim.SGD([shared], lr=1.0)
    aggregator = built(name, **options)
    return JacobianDescent(sgd, aggregator, shared=[shared], tasks=tasks, data_parallel=group), shared


def move(optimizer: JacobianDescent, rows: Sequence[Tensor | None]) -> Tensor:
    """Make one step from these gradients; return the joint one."""
    (shared,) = optimizer.shared
    before = shared.detach().clone()
    optimizer.zero_grad()
    optimizer.backward([None if row is None else row @ shared for row in rows])
    optimizer.step()
    return before - shared.detach()


def of_torchjd(name: str) -> Callable[[int], Tensor]:
    """Return the joint gradient of a step by torchjd's own class, which sees all tasks in every step."""
    theirs = {
        "gradvac": GradVac(beta=0.01),
        "pcd": PCD(),
        "excess-mtl": ExcessMTL(),
        "pcgrad": PCGrad(),
        "graddrop": GradDrop(),
    }
    aggregator = theirs[name.removesuffix("-parameters")]

    def joint(step: int) -> Tensor:
        torch.manual_seed(step)  # the seed 0 of our draws
        return aggregator(jacobian(step))

    return joint


@pytest.mark.parametrize("name", ["gradvac", "pcd", "excess-mtl", "pcgrad", "graddrop"])
def test_with_all_tasks_it_is_torchjds_own(name: str) -> None:
    optimizer, _ = descent(f"{name}-parameters")
    joint = of_torchjd(name)
    far = 1e-5 if name == "gradvac" else 1e-9  # its 1e-8 against a division by zero is added to other lengths
    for step in range(12):
        found = move(optimizer, jacobian(step))
        with torch.random.fork_rng(devices=[]):
            torch.testing.assert_close(found, joint(step), rtol=1e-6, atol=far)


@pytest.mark.parametrize("name", ["pcgrad", "gradvac", "cagrad", "imtl-g", "mgda", "upgrad", "dualproj", "aligned-mtl"])
def test_short_gradients_are_weighed_as_long_ones_are(name: str) -> None:
    """torchjd alone gives gradients shorter than 0.01 no weights (CAGrad) or no projection (UPGrad)."""
    one, other = (descent(f"{name}-parameters")[0] for _ in range(2))
    for step in range(3):
        found, short = move(one, jacobian(step)), move(other, 2.0**-16 * jacobian(step))
        assert torch.equal(short * 2.0**16, found)
        assert found.any()


def descent_directions(name: str) -> list[Tensor]:
    optimizer, _ = descent(name)
    return [move(optimizer, jacobian(step)) for step in range(4)]


@pytest.mark.parametrize("name", ["mgda", "upgrad", "dualproj", "config", "nash-mtl", "fairgrad"])
def test_where_theory_says_so_the_joint_gradient_harms_no_task(name: str) -> None:
    for step, joint in enumerate(descent_directions(f"{name}-parameters")):
        assert (jacobian(step) @ jacobian(step).sum(0) < 0).any() or step
        cosines = jacobian(step) @ joint / jacobian(step).norm(dim=1) / joint.norm()
        # torchjd adds 1e-4 to the normalised Gram matrix, in which one gradient is short.
        assert (cosines > -5e-3).all()


def test_no_two_methods_give_the_same_directions_but_imtl_g_and_config() -> None:
    found = {name: torch.cat([joint / joint.norm() for joint in descent_directions(name)]) for name in ALL}
    equal = [pair for pair in combinations(ALL, 2) if torch.allclose(found[pair[0]], found[pair[1]], atol=1e-3)]
    assert equal == [("imtl-g-parameters", "config-parameters")]


def test_a_solver_that_is_missing_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchjd._mixins.find_spec", lambda _: None)
    with pytest.raises(MethodError, match=r"requires .*clarabel.*torchjd\[cagrad\].*Or choose another method"):
        built("cagrad-parameters")


def test_draws_leave_the_global_random_state_as_it_was() -> None:
    optimizer, _ = descent("pcgrad-parameters")
    before = torch.get_rng_state()
    move(optimizer, jacobian(0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["modo", "sdmgrad"])
def test_weights_of_two_batches_are_torchjds_of_the_two_steps_before(name: str) -> None:
    optimizer, _ = descent(f"{name}-parameters")
    weighting = MoDoWeighting() if name == "modo" else SDMGradWeighting()
    weights = torch.full((3,), 1 / 3, dtype=torch.float64)
    for step in range(10):
        torch.testing.assert_close(move(optimizer, jacobian(step)), weights @ jacobian(step), rtol=1e-9, atol=1e-12)
        if step:
            weights = weighting(jacobian(step - 1) @ jacobian(step).T)


ABSENT = {1: (2,), 3: (0, 1), 4: (0, 1, 2), 6: (1,), 7: (2,)}


def project(values: np.ndarray) -> np.ndarray:
    """Project onto the simplex by bisection on the threshold."""
    low, high = values.min() - 1, values.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(values - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(values - low, 0)


def db_mtl(beta: float, sigma: float) -> list[np.ndarray]:
    averages, counts, found = np.zeros((3, SIZE)), np.zeros(3), []
    for step in range(10):
        here = [task for task in range(3) if task not in ABSENT.get(step, ())]
        for task in here:
            counts[task] += 1
            share = beta / counts[task] ** sigma
            averages[task] = share * averages[task] + (1 - share) * jacobian(step)[task].numpy()
        lengths = {task: np.linalg.norm(averages[task]) for task in here}
        found.append(sum((max(lengths.values()) * averages[t] / lengths[t] for t in here), np.zeros(SIZE)))
    return found


def moco(beta: float, gamma: float, rho: float, sigma: float) -> list[np.ndarray]:
    tracked, counts, shares, found, steps = np.zeros((3, SIZE)), np.zeros(3), np.full(3, 1 / 3), [], 0
    for step in range(10):
        here = [task for task in range(3) if task not in ABSENT.get(step, ())]
        if not here:
            found.append(np.zeros(SIZE))
            continue
        steps += 1
        for task in here:
            counts[task] += 1
            tracked[task] -= beta / counts[task] ** sigma * (tracked[task] - jacobian(step)[task].numpy())
        total = shares[here].sum()
        own = shares[here] / total
        own = project(own - gamma / steps**sigma * (tracked[here] @ tracked[here].T + rho * np.eye(len(here))) @ own)
        shares[here] = total * own
        found.append(own @ tracked[here])
    return found


@pytest.mark.parametrize(
    ("name", "options", "reference"),
    [
        ("db-mtl-parameters", {}, lambda: db_mtl(0.9, 0.0)),
        ("db-mtl-parameters", {"beta": 0.5, "sigma": 0.5}, lambda: db_mtl(0.5, 0.5)),
        ("moco-parameters", {"gamma": 0.01}, lambda: moco(0.5, 0.01, 0.0, 0.5)),
        ("moco-parameters", {"beta": 1.0, "gamma": 0.02, "rho": 2.0, "sigma": 0.1}, lambda: moco(1.0, 0.02, 2.0, 0.1)),
    ],
)
def test_averages_over_time_follow_their_equations(name: str, options: dict, reference: Callable) -> None:
    optimizer, _ = descent(name, **options)
    for step, expected in enumerate(reference()):
        rows = [None if task in ABSENT.get(step, ()) else row for task, row in enumerate(jacobian(step))]
        np.testing.assert_allclose(move(optimizer, rows).numpy(), expected, rtol=1e-9, atol=1e-11)


def test_db_mtl_starts_from_the_gradients_of_the_losses_logarithms() -> None:
    weighting = METHODS["db-mtl-parameters"].build_loss_weighting(["a", "b"])
    weights = weighting.weigh(torch.tensor([0.5, 4.0]), torch.tensor([True, True]))
    torch.testing.assert_close(weights, torch.tensor([2.0, 0.25]), rtol=1e-6, atol=0)


def test_fairgrad_points_where_torchjds_does() -> None:
    theirs = FairGrad(alpha=2.0, max_iters=2000)
    for step in range(5):
        optimizer, _ = descent("fairgrad-parameters", alpha=2.0)
        found, expected = move(optimizer, jacobian(step)), theirs(jacobian(step))
        torch.testing.assert_close(found / found.norm(), expected / expected.norm(), rtol=1e-3, atol=1e-3)


def test_of_two_tasks_nash_mtl_brings_both_gradients_to_the_same_length() -> None:
    optimizer, _ = descent("nash-mtl-parameters", tasks=("a", "b"))
    rows = jacobian(0, tasks=2)
    units = (rows / rows.norm(dim=1, keepdim=True)).sum(0)
    weights = 1 / rows.norm(dim=1)
    torch.testing.assert_close(move(optimizer, rows), units / weights.mean(), rtol=1e-5, atol=1e-8)


def least_norm_of_two(gram: Tensor) -> float:
    return float(((gram[1, 1] - gram[0, 1]) / (gram[0, 0] - 2 * gram[0, 1] + gram[1, 1])).clamp(0, 1))


@pytest.mark.parametrize("least", [0.0, 0.5, 1.0])
def test_of_two_tasks_pe_ltr_is_the_min_norm_point_within_its_bounds(least: float) -> None:
    for step in range(5):
        rows = jacobian(step, tasks=2)
        optimizer, _ = descent("pe-ltr-parameters", tasks=("a", "b"), least=least)
        first = min(max(least_norm_of_two(rows @ rows.T), least / 2), 1 - least / 2)
        expected = first * rows[0] + (1 - first) * rows[1]
        torch.testing.assert_close(move(optimizer, rows), expected, rtol=1e-9, atol=1e-12)


def test_the_primary_task_of_pcd_is_followed_and_without_it_nothing_moves() -> None:
    optimizer, _ = descent("pcd-parameters", primary="b")
    theirs = PCD()
    for step in range(6):
        rows = jacobian(step)
        torch.testing.assert_close(move(optimizer, rows), theirs(rows[[1, 0, 2]]), rtol=1e-6, atol=1e-9)
    before = copy.deepcopy(optimizer.state_dict()["jacobian"]["aggregator"])
    assert not move(optimizer, [rows[0], None, rows[2]]).any()
    for name, value in optimizer.state_dict()["jacobian"]["aggregator"].items():
        assert torch.equal(value, before[name])
    with pytest.raises(ValueError, match="primary must be one of the tasks a, b, c, found 'd'"):
        descent("pcd-parameters", primary="d")


@pytest.mark.parametrize("name", [name for name in ALL if name not in {"pcgrad-parameters", "gradvac-parameters"}])
@pytest.mark.parametrize("absent", ["none", "zero", "nan"])
def test_a_task_that_does_not_come_is_as_if_there_were_none(name: str, absent: str) -> None:
    """The two methods left out draw the order of their tasks; the next test looks at their state."""
    three, two = descent(name)[0], descent(name, tasks=("a", "c"))[0]
    for step in range(5):
        rows = jacobian(step)
        middle = {"none": None, "zero": 0 * rows[1], "nan": torch.nan * rows[1]}[absent]
        found, expected = move(three, [rows[0], middle, rows[2]]), move(two, [rows[0], rows[2]])
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert move(three, jacobian(9)).isfinite().all()


def state_of(optimizer: JacobianDescent) -> dict[str, Tensor]:
    return optimizer.state_dict()["jacobian"]["aggregator"]


@pytest.mark.parametrize("name", STATEFUL)
def test_the_state_of_an_absent_task_does_not_move(name: str) -> None:
    optimizer, _ = descent(name)
    kept = optimizer.aggregator.kept
    for step in range(3):
        move(optimizer, jacobian(step))
    saved = state_of(optimizer)
    before = copy.deepcopy(saved)
    for step in range(3, 6):
        rows = jacobian(step)
        move(optimizer, [rows[0], None, rows[2]])
    for key, value in state_of(optimizer).items():
        own = value[1] if kept[key] != "pair" else torch.cat([value[1], value[:, 1]])
        old = before[key][1] if kept[key] != "pair" else torch.cat([before[key][1], before[key][:, 1]])
        assert torch.equal(own, old)
        assert torch.equal(saved[key], before[key])  # what was saved does not move either
        if kept[key] == "share":
            torch.testing.assert_close(value.sum(), torch.ones_like(value[0]))
    assert any(not torch.equal(value, before[key]) for key, value in state_of(optimizer).items())


@pytest.mark.parametrize("name", STATEFUL)
def test_saved_state_follows_the_names_of_the_tasks(name: str) -> None:
    order = [2, 0, 1]
    one, _ = descent(name, tasks=("a", "b", "c"), **({"primary": "a"} if name.startswith("pcd") else {}))
    for step in range(4):
        move(one, jacobian(step))
    other, _ = descent(name, tasks=("c", "a", "b"), **({"primary": "a"} if name.startswith("pcd") else {}))
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for key, value in state_of(one).items():
        turned = value[order] if one.aggregator.kept[key] != "pair" else value[order][:, order]
        assert torch.equal(state_of(other)[key], turned)
    if name != "gradvac-parameters":  # it draws the order of the tasks by place
        for step in range(4, 8):
            torch.testing.assert_close(move(other, jacobian(step)[order]), move(one, jacobian(step)))


@pytest.mark.parametrize("name", STATEFUL)
def test_a_new_task_starts_fresh_beside_saved_ones(name: str) -> None:
    one, _ = descent(name, tasks=("a", "b"))
    for step in range(4):
        move(one, jacobian(step)[:2])
    other, _ = descent(name, tasks=("b", "c"))
    with pytest.warns(UserWarning, match="leaves out the saved state of tasks that it does not have: a"):
        other.load_state_dict(copy.deepcopy(one.state_dict()))
    fresh = state_of(descent(name, tasks=("b", "c"))[0])
    for key, value in state_of(other).items():
        if one.aggregator.kept[key] == "share":
            torch.testing.assert_close(value.sum(), torch.ones_like(value[0]))
        elif one.aggregator.kept[key] == "task":
            assert torch.equal(value[0], state_of(one)[key][1])
            assert torch.equal(value[1], fresh[key][1])
    assert all(move(other, jacobian(step)[1:]).isfinite().all() for step in range(4, 8))


@pytest.mark.parametrize("name", STATEFUL)
def test_a_step_that_is_not_made_moves_no_state(name: str) -> None:
    optimizer, shared = descent(name)
    move(optimizer, jacobian(0))
    before = copy.deepcopy(state_of(optimizer))
    optimizer.zero_grad()
    optimizer.backward(list(jacobian(1) @ shared))
    optimizer.zero_grad()  # the step is skipped
    optimizer.backward(list(jacobian(1) @ shared))
    optimizer.found_inf, optimizer.grad_scale = torch.ones(()), torch.ones(())  # as a GradScaler does
    optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in state_of(optimizer).items())


def test_preferences_are_passed_on_to_torchjd_for_the_present_tasks() -> None:
    optimizer, _ = descent("upgrad-parameters", task_weights=[9.0, 1.0, 2.0])
    rows = jacobian(1)
    torch.testing.assert_close(
        move(optimizer, rows), UPGrad(pref_vector=torch.tensor([9.0, 1.0, 2.0], dtype=torch.float64) / 12)(rows)
    )
    torch.testing.assert_close(
        move(optimizer, [rows[0], None, rows[2]]),
        UPGrad(pref_vector=torch.tensor([9.0, 2.0], dtype=torch.float64) / 11)(rows[[0, 2]]),
    )
    with pytest.raises(ValueError, match="task_weights must be a list of 3 positive finite numbers"):
        descent("upgrad-parameters", task_weights=[1.0, 2.0])


def train(name: str, rank: int | None) -> Tensor:
    """Train on this rank's half of each gradient, which the ranks average, or on the whole."""
    optimizer, shared = descent(name, group=None if rank is None else dist.group.WORLD)
    torch.manual_seed(7 if rank is None else rank)  # ranks differ in their global random state
    for step in range(6):
        noise = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        rows = jacobian(step) if rank is None else jacobian(step) + noise * (1 - 2 * rank)
        move(optimizer, [None if step == 3 and task == 1 else row for task, row in enumerate(rows)])
    return torch.cat([shared.detach(), *(value.double().flatten() for value in state_of(optimizer).values())])


def work(rank: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo",
        init_method=(folder / "rendezvous").as_uri(),
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=120),
    )
    torch.set_num_threads(1)
    torch.save({name: train(name, rank) for name in ALL}, folder / f"rank{rank}.pt")
    end_rank()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("gloo")
    mp.spawn(work, args=(folder,), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", ALL)
def test_two_ranks_step_and_remember_alike_and_as_one_process_does(ranks, name: str) -> None:
    assert torch.equal(ranks[0][name], ranks[1][name])
    torch.testing.assert_close(ranks[0][name], train(name, None), rtol=1e-6, atol=1e-8)
