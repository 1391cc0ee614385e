"""Properties of MultiBalance for all gradients: invariances, simplex, min-norm point, state, errors."""

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from equipoise.forks.fork import Fork
from equipoise.forks.multibalance import MultiBalance

MAGNITUDES = ("equal", "averaged", "own", "uncorrected", "none")
DIRECTIONS = ("cosine", "gram", "raw", "none")
MODES = list(itertools.product(MAGNITUDES, DIRECTIONS))
SCALE_FREE = ("cosine", "gram", "none")  # directions that do not ask how long all gradients are

quick = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def feed(fork: Fork, gradients: list[Tensor | None]) -> Tensor:
    """Return the gradient sent upstream if task m's gradient is `gradients[m]`, None for a loss not computed."""
    like = next(gradient for gradient in gradients if gradient is not None)
    shared = torch.zeros_like(like, requires_grad=True)
    sum(
        (branch * gradient).sum()
        for branch, gradient in zip(fork(shared), gradients, strict=True)
        if gradient is not None
    ).backward()
    return shared.grad


def history(M: int, *, steps: int = 6, size: int = 30, seed: int = 0) -> list[list[Tensor]]:
    """Steps of M gradients with something in common, the first small and the last large."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(size, generator=generator)
    return [
        [10.0 ** (m - M // 2) * (torch.randn(size, generator=generator) + m * 0.3 * common) for m in range(M)]
        for _ in range(steps)
    ]


def state_of(fork: MultiBalance) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in fork.state_dict().items()}


def assert_same_state(fork: MultiBalance, before: dict[str, Tensor]) -> None:
    for name, value in fork.state_dict().items():
        assert torch.equal(value, before[name]), name


# --- what the equations promise -------------------------------------------------------------------------


@pytest.mark.parametrize("M", [1, 2, 3, 7, 41])
def test_without_magnitude_and_direction_it_is_the_plain_sum_exactly(M):
    balanced, plain = MultiBalance(M, magnitude="none", direction="none"), Fork(M)
    for gradients in history(M, steps=3):
        assert torch.equal(feed(balanced, gradients), feed(plain, gradients))
        assert balanced.last_weights.tolist() == [1.0] * M


@pytest.mark.parametrize("direction", SCALE_FREE)
@pytest.mark.parametrize("factor", [23.0, 1e-5, 1e6])
@pytest.mark.parametrize("magnitude", ["equal", "averaged"])
def test_equal_magnitudes_do_not_see_the_scale_of_a_loss(magnitude, direction, factor):
    plain = MultiBalance(3, direction=direction, magnitude=magnitude)
    scaled = MultiBalance(3, direction=direction, magnitude=magnitude)
    own = MultiBalance(3, direction=direction, magnitude="own")
    for gradients in history(3):
        larger = [gradients[0], gradients[1] * factor, gradients[2]]
        a, b, c = feed(plain, gradients), feed(scaled, larger), feed(own, larger)
        # The length is the mean of the magnitudes and so depends on the scale; the direction does not.
        torch.testing.assert_close(b / b.norm(), a / a.norm(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scaled.balance, plain.balance, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(c / c.norm(), a / a.norm(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("magnitude", "direction"), list(itertools.product(MAGNITUDES, SCALE_FREE)))
def test_scaling_all_losses_scales_the_outcome(magnitude, direction):
    one, other = (MultiBalance(3, magnitude=magnitude, direction=direction) for _ in range(2))
    for gradients in history(3):
        a, b = feed(one, gradients), feed(other, [1024 * gradient for gradient in gradients])
        torch.testing.assert_close(b, 1024 * a)


@pytest.mark.parametrize(("magnitude", "direction"), MODES)
def test_the_order_of_the_tasks_does_not_matter(magnitude, direction):
    order = [2, 0, 3, 1]
    weights = [1.0, 2.0, 3.0, 4.0]
    one = MultiBalance(4, magnitude=magnitude, direction=direction, task_weights=weights)
    other = MultiBalance(4, magnitude=magnitude, direction=direction, task_weights=[weights[m] for m in order])
    for gradients in history(4):
        a, b = feed(one, gradients), feed(other, [gradients[m] for m in order])
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * a.abs().max().item())
        torch.testing.assert_close(one.balance[order], other.balance, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_equal_magnitudes_give_every_task_the_length_of_its_lambda_times_its_preference(direction):
    fork = MultiBalance(3, direction=direction, magnitude="equal", task_weights=[1, 2, 5])
    for gradients in history(3):
        feed(fork, gradients)
        lengths = fork.last_weights * torch.stack([gradient.norm() for gradient in gradients])
        shares = fork.balance * torch.tensor([1.0, 2.0, 5.0])
        torch.testing.assert_close(lengths / lengths.sum(), shares / shares.sum(), rtol=1e-4, atol=1e-5)


def test_averaged_magnitudes_are_equal_on_average_and_keep_a_step_twice_as_long():
    gradients = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 100.0])]
    fork = MultiBalance(2, magnitude="averaged", direction="none", gamma=1e-6)
    for _ in range(3):
        torch.testing.assert_close(feed(fork, gradients), torch.tensor([50.5, 50.5]))
    longer = feed(fork, [2 * gradients[0], gradients[1]])
    average = (1 + 1 + 1 + 2) / 4
    torch.testing.assert_close(longer[0] / longer[1], torch.tensor(2 / average), rtol=1e-4, atol=0)


def with_cosines(M: int, cosine: float, lengths: list[float]) -> Tensor:
    """The Gram matrix of M gradients of which every two have the same cosine."""
    cosines = torch.full((M, M), cosine).fill_diagonal_(1.0)
    return cosines * torch.outer(torch.tensor(lengths), torch.tensor(lengths))


@pytest.mark.parametrize("M", [2, 3, 8])
@pytest.mark.parametrize(
    ("magnitude", "direction"),
    [*itertools.product(MAGNITUDES, ("cosine", "none")), ("equal", "gram"), ("equal", "raw")],
)
@pytest.mark.parametrize("cosine", [-0.9, -0.3, 0.0, 0.4, 0.9])
def test_a_preference_of_nine_to_one_is_nine_to_one_after_five_hundred_steps(cosine, magnitude, direction, M):
    cosine = max(cosine, -0.9 / (M - 1))  # no further apart than M vectors can be
    lengths = [10.0 ** (m % 3 - 2) for m in range(M)]  # longer ones make "raw" overshoot
    gram, present = with_cosines(M, cosine, lengths), torch.ones(M, dtype=torch.bool)
    options = {"magnitude": magnitude, "direction": direction, "beta": 1.0}
    fork, equal = MultiBalance(M, task_weights=[9.0] + [1.0] * (M - 1), **options), MultiBalance(M, **options)
    for _ in range(500):
        weights, without = fork.weigh(gram, present), equal.weigh(gram, present)
    gains = weights / without
    torch.testing.assert_close(gains[0] / gains[1:], torch.full((M - 1,), 9.0), rtol=1e-4, atol=0)
    if magnitude == "equal":
        shares = weights * torch.tensor(lengths)
        torch.testing.assert_close(shares[0] / shares[1:], torch.full((M - 1,), 9.0), rtol=1e-4, atol=0)


@quick
@given(cosine=st.floats(-1, 1), decades=st.floats(-6, 6), beta=st.sampled_from([0.1, 0.5]))
def test_the_cosine_direction_does_nothing_with_two_tasks(cosine, decades, beta):
    assert "Does nothing with two tasks" in MultiBalance.__doc__
    fork = MultiBalance(2, direction="cosine", beta=beta)
    gram = with_cosines(2, cosine, [1.0, 10.0**decades])
    for _ in range(20):
        fork.weigh(gram, torch.ones(2, dtype=torch.bool))
    torch.testing.assert_close(fork.balance, torch.tensor([0.5, 0.5]), rtol=1e-5, atol=0)


def test_the_cosine_direction_works_with_three_tasks():
    fork = MultiBalance(3, direction="cosine")
    gram = torch.tensor([[1.0, 0.9, -0.5], [0.9, 1.0, -0.5], [-0.5, -0.5, 1.0]])
    for _ in range(50):
        fork.weigh(gram, torch.ones(3, dtype=torch.bool))
    assert fork.balance[2] > 0.4


@pytest.mark.parametrize("direction", SCALE_FREE)
def test_tasks_that_never_share_a_step_are_brought_to_the_same_length(direction):
    """Tasks in turn: the mean length covers all tasks with a known average, not those of the step alone."""
    fork = MultiBalance(3, direction=direction)
    lengths = [0.1, 1.0, 30.0]
    for step in range(60):
        task = step % 3
        gradients: list[Tensor | None] = [None] * 3
        gradients[task] = lengths[task] * torch.ones(4)
        found = feed(fork, gradients)
        if step >= 3:
            torch.testing.assert_close(found, torch.full((4,), sum(lengths) / 3), rtol=1e-5, atol=0)
    torch.testing.assert_close(fork.balance, torch.full((3,), 1 / 3))  # no two in a step: no cosine, no direction


@quick
@given(order=st.permutations(range(4)), together=st.integers(1, 4), seed=st.integers(0, 99))
def test_how_the_tasks_are_spread_over_backwards_does_not_change_their_lengths(order, together, seed):
    fork, gradients = MultiBalance(4, direction="none"), history(4, steps=1, seed=seed)[0]
    for _ in range(2):
        for start in range(0, 4, together):
            here = order[start : start + together]
            feed(fork, [gradients[m] if m in here else None for m in range(4)])
            lengths = fork.last_weights[here] * torch.stack([gradients[m].norm() for m in here])
    mean = torch.stack([gradient.norm() for gradient in gradients]).mean()
    torch.testing.assert_close(lengths, mean.expand(len(lengths)), rtol=1e-5, atol=0)


def test_a_task_never_seen_is_no_part_of_the_mean_length():
    fork = MultiBalance(3, direction="none")
    feed(fork, [torch.tensor([3.0]), torch.tensor([5.0]), None])
    assert (fork.last_weights[:2] * torch.tensor([3.0, 5.0])).tolist() == pytest.approx([4.0, 4.0])


def test_the_form_of_the_source_hardly_moves_lambda_where_gradients_are_small():
    options = {"magnitude": "uncorrected", "direction": "raw", "reduction": "mean", "beta": 1.0}
    fork = MultiBalance(2, **options)
    for _ in range(100):
        found = feed(fork, [torch.tensor([0.03, 0.0]), torch.tensor([0.0, 0.01])])
    torch.testing.assert_close(fork.balance, torch.tensor([0.5, 0.5]), atol=0.02, rtol=0)
    averages = torch.tensor([0.03, 0.01]) * (1 - 0.99**100)
    torch.testing.assert_close(found, fork.balance * averages)  # no factor M, no bias correction


@pytest.mark.parametrize(("magnitude", "direction"), MODES)
def test_the_mean_is_the_sum_without_the_number_of_tasks(magnitude, direction):
    one, other = (MultiBalance(3, magnitude=magnitude, direction=direction, reduction=r) for r in ("sum", "mean"))
    for gradients in history(3):
        torch.testing.assert_close(feed(one, gradients), 3 * feed(other, gradients))


def test_task_weights_are_the_lengths_where_nothing_moves_them():
    fork = MultiBalance(["click", "like"], direction="none", task_weights=[1, 3])
    feed(fork, [torch.ones(4), 100 * torch.ones(4)])
    assert fork.balance.tolist() == [0.5, 0.5]
    lengths = fork.last_weights * torch.tensor([2.0, 200.0])
    torch.testing.assert_close(lengths, 101 * torch.tensor([0.5, 1.5]))


@pytest.mark.parametrize("gamma", [0.01, 0.3, 1.0])
def test_the_average_of_a_constant_norm_is_that_norm_from_the_first_step_on(gamma):
    fork = MultiBalance(2, gamma=gamma)
    for _ in range(5):
        feed(fork, [torch.tensor([3.0, 4.0]), torch.tensor([1e-6, 0.0])])
        torch.testing.assert_close(fork.magnitudes, torch.tensor([5.0, 1e-6]), rtol=1e-5, atol=0)


def test_the_average_remembers():
    fork = MultiBalance(1, gamma=0.25)
    feed(fork, [torch.tensor([4.0])])
    feed(fork, [torch.tensor([8.0])])
    torch.testing.assert_close(fork.magnitudes, torch.tensor([(0.75 * 0.25 * 4 + 0.25 * 8) / (1 - 0.75**2)]))


gradient_values = st.one_of(
    st.floats(width=32, allow_nan=True, allow_infinity=True),
    st.floats(-1, 1, width=32),
    st.sampled_from([0.0, 1e-30, 1e30, -1e18, 1e18]),
)


@quick
@given(data=st.data(), mode=st.sampled_from(MODES), beta=st.sampled_from([0.0, 0.3, 1.0, 100.0]))
def test_lambda_stays_on_the_simplex_and_the_state_finite_whatever_comes(data, mode, beta):
    magnitude, direction = mode
    M = data.draw(st.integers(1, 4))
    fork = MultiBalance(M, magnitude=magnitude, direction=direction, beta=beta, gamma=0.5)
    for _ in range(4):
        rows = data.draw(
            st.lists(
                st.one_of(st.none(), st.lists(gradient_values, min_size=3, max_size=3)),
                min_size=M,
                max_size=M,
            )
        )
        if all(row is None for row in rows):
            continue
        found = feed(fork, [None if row is None else torch.tensor(row) for row in rows])
        assert (fork.balance >= 0).all()
        assert fork.balance.sum().item() == pytest.approx(1.0, abs=1e-5)
        assert torch.isfinite(fork.averages).all()
        assert torch.isfinite(fork.last_weights).all()
        if all(row is None or np.abs(row).max() <= 1e15 for row in rows):
            assert torch.isfinite(found).all()


def test_lambda_keeps_its_sum_over_a_long_training():
    fork = MultiBalance(5, direction="gram", beta=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2000):
        rows = torch.randn(5, 6, generator=generator)
        present = torch.rand(5, generator=generator) > 0.3
        fork.weigh(torch.where(present & present[:, None], rows @ rows.T, 0.0), present)
    assert fork.balance.double().sum().item() == pytest.approx(1.0, abs=1e-5)


def min_norm(gram: np.ndarray) -> np.ndarray:
    """The λ on the simplex with the least λᵀGλ: every support is tried."""
    best, least = np.zeros(len(gram)), np.inf
    for size in range(1, len(gram) + 1):
        for support in map(list, itertools.combinations(range(len(gram)), size)):
            part = np.linalg.solve(gram[np.ix_(support, support)], np.ones(size))
            part /= part.sum()
            value = part @ gram[np.ix_(support, support)] @ part
            if (part >= 0).all() and value < least:
                best, least = np.zeros(len(gram)), value
                best[support] = part
    return best


@pytest.mark.parametrize("M", [2, 3, 5])
def test_without_rho_lambda_converges_to_the_min_norm_point(M):
    fork = MultiBalance(M, magnitude="none", direction="gram", rho=0.0, beta=0.05)
    rows = torch.randn(M, 12, generator=torch.Generator().manual_seed(M)) + 0.5
    rows *= torch.linspace(1, 2, M).unsqueeze(1)
    gram, present = rows @ rows.T, torch.ones(M, dtype=torch.bool)
    for _ in range(2000):
        fork.weigh(gram, present)
    np.testing.assert_allclose(fork.balance.numpy(), min_norm(gram.double().numpy()), atol=2e-4)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1.0, 0.0], [0.0, 2.0], [0.8, 0.2]),  # orthogonal: in proportion to 1 / ‖g‖²
        ([1.0, 0.0], [-3.0, 0.0], [0.75, 0.25]),  # opposed: Pareto stationary, the combination vanishes
        ([1.0, 0.0], [3.0, 0.1], [1.0, 0.0]),  # the shorter one alone
    ],
)
def test_the_min_norm_point_of_two_tasks_in_closed_form(first, second, expected):
    fork = MultiBalance(2, magnitude="none", direction="gram", rho=0.0, beta=0.1)
    gradients = [torch.tensor(first), torch.tensor(second)]
    for _ in range(300):
        found = feed(fork, gradients)
    torch.testing.assert_close(fork.balance, torch.tensor(expected), atol=1e-4, rtol=0)
    torch.testing.assert_close(found, 2 * (expected[0] * gradients[0] + expected[1] * gradients[1]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("direction", ["cosine", "gram", "raw"])
def test_rho_pulls_lambda_towards_equal_shares(direction):
    # Orthogonal gradients of which the first is twice as long: λ + ρ/M is in proportion to 1 / ‖g‖² at the fixed point.
    fork = MultiBalance(2, magnitude="none", direction=direction, rho=0.1, beta=0.2)
    gradients = [torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0])]
    for _ in range(500):
        feed(fork, gradients)
    expected = torch.tensor([0.5, 0.5] if direction == "cosine" else [1.1 / 5 - 0.05, 4 * 1.1 / 5 - 0.05])
    torch.testing.assert_close(fork.balance, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("magnitude", "direction"), MODES)
def test_weights_do_not_silently_become_one(magnitude, direction):
    fork = MultiBalance(3, magnitude=magnitude, direction=direction, beta=0.1)
    seen = []
    for gradients in history(3):
        feed(fork, gradients)
        seen.append(fork.last_weights.clone())
    weights = torch.stack(seen)
    if (magnitude, direction) == ("none", "none"):
        assert (weights == 1).all()
    elif (magnitude, direction) == ("own", "none"):
        assert (weights[0] - 1).abs().max() < 1e-5  # the first norm is its own average
        assert (weights[1:] - 1).abs().amin(1).max() > 0.01
    else:
        assert (weights[-1] - 1).abs().max() > 0.01
        assert (weights[-1] - weights[-2]).abs().max() > 0.005


def test_the_modes_differ_from_each_other_where_theory_says_so():
    outcomes = {}
    for magnitude, direction in MODES:
        fork = MultiBalance(3, magnitude=magnitude, direction=direction, beta=0.1)
        for gradients in history(3, steps=3):
            outcomes[magnitude, direction] = feed(fork, gradients)
    for (a, one), (b, other) in itertools.combinations(outcomes.items(), 2):
        if {a, b} == {("equal", "cosine"), ("equal", "gram")}:
            # Gradients of equal length r have the Gram matrix r² C of trace M r²: S is C in both.
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * one.abs().max().item())
        else:
            assert (one - other).norm() > 1e-3 * one.norm(), (a, b)


def test_a_single_task_with_its_own_average_or_none_keeps_its_direction():
    for magnitude, direction in MODES:
        fork = MultiBalance(1, magnitude=magnitude, direction=direction)
        for (gradient,) in history(1):
            found = feed(fork, [gradient])
            torch.testing.assert_close(found / found.norm(), gradient / gradient.norm())
            assert fork.balance.tolist() == [1.0]
            if magnitude == "none":
                torch.testing.assert_close(found, gradient)


# --- absent, zero and non-finite gradients --------------------------------------------------------------


@pytest.mark.parametrize("kind", ["none", "zero", "inf", "nan"])
@pytest.mark.parametrize(("magnitude", "direction"), MODES)
def test_the_state_of_a_task_that_is_not_present_does_not_move(magnitude, direction, kind):
    fork = MultiBalance(3, magnitude=magnitude, direction=direction, beta=0.1)
    *earlier, last = history(3)
    for gradients in earlier:
        feed(fork, gradients)
    before = state_of(fork)
    bad = {
        "none": None,
        "zero": torch.zeros(30),
        "inf": torch.full((30,), torch.inf),
        "nan": last[1] * torch.tensor([torch.nan] + [1.0] * 29),
    }[kind]
    found = feed(fork, [last[0], bad, last[2]])
    assert torch.equal(fork.balance[1], before["balance"][1])
    assert torch.equal(fork.averages[:, 1], before["averages"][:, 1])
    assert fork.last_weights[1] == 1.0
    if magnitude != "none":
        assert not torch.equal(fork.averages[:, 0], before["averages"][:, 0])
    assert torch.isfinite(found).all().item() == (kind in ("none", "zero"))
    assert fork.balance.sum().item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, torch.inf, torch.nan])
@pytest.mark.parametrize(("magnitude", "direction"), MODES)
def test_a_step_without_any_present_task_leaves_no_trace(magnitude, direction, value):
    fork = MultiBalance(2, magnitude=magnitude, direction=direction)
    for gradients in history(2, steps=2):
        feed(fork, gradients)
    before = state_of(fork)
    bad = torch.full((30,), value)
    torch.testing.assert_close(feed(fork, [bad, bad]), bad, equal_nan=True)
    assert_same_state(fork, before)


def test_a_task_that_comes_late_starts_with_its_own_first_norm():
    fork = MultiBalance(2, magnitude="own", direction="none", gamma=0.1)
    for _ in range(5):
        feed(fork, [torch.tensor([3.0, 4.0]), None])
    found = feed(fork, [torch.tensor([3.0, 4.0]), torch.tensor([0.0, 7.0])])
    torch.testing.assert_close(fork.magnitudes, torch.tensor([5.0, 7.0]))
    torch.testing.assert_close(found, torch.tensor([3.0, 11.0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_six_decades_apart_are_brought_to_the_same_length(dtype):
    fork = MultiBalance(2, direction="none")
    shared = torch.zeros(64, 64, dtype=dtype, requires_grad=True)
    branches = fork(shared)
    small = torch.full((64, 64), 3e-6, dtype=dtype)
    large = torch.full((64, 64), 3.0, dtype=dtype)
    torch.autograd.backward(list(branches), [small, -large])
    lengths = fork.last_weights * torch.stack([small.float().norm(), large.float().norm()])
    torch.testing.assert_close(lengths[0], lengths[1], rtol=1e-5, atol=0)
    assert fork.averages.dtype == torch.float32
    assert shared.grad.abs().max() < 0.05  # the two cancel


# --- state ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("magnitude", "direction"), MODES)
def test_training_continues_from_a_state_dict_to_the_last_bit(magnitude, direction):
    options = {"magnitude": magnitude, "direction": direction, "task_weights": [1, 2, 3], "beta": 0.1}
    fork = MultiBalance(3, **options)
    steps = history(3)
    for gradients in steps[:3]:
        feed(fork, gradients)
    resumed = MultiBalance(3, **options)
    resumed.load_state_dict(copy.deepcopy(fork.state_dict()))
    fresh = MultiBalance(3, **options)
    for gradients in steps[3:]:
        expected = feed(fork, gradients)
        assert torch.equal(feed(resumed, gradients), expected)
        other = feed(fresh, gradients)
    assert_same_state(resumed, state_of(fork))
    if (magnitude, direction) not in {("none", "none"), ("none", "raw")}:  # in the last λ has long come to its end
        assert not torch.allclose(other, expected)


def test_a_deepcopy_continues_alone():
    fork = MultiBalance(3)
    steps = history(3)
    for gradients in steps[:3]:
        feed(fork, gradients)
    before = state_of(fork)
    twin = copy.deepcopy(fork)
    found = [feed(twin, gradients) for gradients in steps[3:]]
    assert_same_state(fork, before)
    for gradients, expected in zip(steps[3:], found, strict=True):
        assert torch.equal(feed(fork, gradients), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("magnitude", "direction"), MODES)
def test_a_model_cast_to_another_precision_trains_as_in_float32(magnitude, direction, dtype):
    options = {"magnitude": magnitude, "direction": direction, "beta": 0.1}
    fork, cast = MultiBalance(3, **options), MultiBalance(3, **options).to(dtype)
    for gradients in history(3):
        same = [gradient.to(dtype) for gradient in gradients]
        expected = feed(fork, [gradient.float() for gradient in same])
        found = feed(cast, same)
        assert found.dtype == dtype
        rounding = max(2 * torch.finfo(dtype).eps, 1e-5)
        torch.testing.assert_close(found.float(), expected, rtol=rounding, atol=1e-5)
    torch.testing.assert_close(cast.balance.float(), fork.balance, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("magnitude", "direction"), MODES)
def test_float64_gradients_do_not_need_a_float64_fork(magnitude, direction):
    fork = MultiBalance(2, magnitude=magnitude, direction=direction)
    found = feed(fork, [gradient.double() for gradient in history(2)[0]])
    assert found.dtype == torch.float64


def test_a_second_backward_over_the_same_graph_moves_no_state():
    fork = MultiBalance(2)
    gradients = history(2)[0]
    shared = torch.zeros(30, requires_grad=True)
    losses = [(branch * gradient).sum() for branch, gradient in zip(fork(shared), gradients, strict=True)]
    sum(losses).backward(retain_graph=True)
    before, first = state_of(fork), shared.grad.clone()
    sum(losses).backward()
    torch.testing.assert_close(shared.grad, 2 * first)
    assert_same_state(fork, before)


def test_eval_moves_no_state():
    fork = MultiBalance(2).eval()
    before = state_of(fork)
    feed(fork, history(2)[0])
    assert_same_state(fork, before)


def test_a_step_needs_nothing_from_the_device():
    """Meta tensors have no values: `.item()`, `bool(tensor)` or `.tolist()` in a step would raise."""
    for tasks, (magnitude, direction) in itertools.product((3, 7), MODES):
        with torch.device("meta"):
            fork = MultiBalance(tasks, magnitude=magnitude, direction=direction)
            bottom, towers = nn.Linear(4, 3), [nn.Linear(3, 1) for _ in range(tasks)]
            branches = fork(bottom(torch.randn(5, 4)))
            losses = [tower(branch).mean() for tower, branch in zip(towers, branches, strict=True)]
            sum(losses[:2]).backward()
            assert bottom.weight.grad.shape == (3, 4)


# --- bad input, repr ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 0.0}, r"gamma must lie in \(0, 1\], found 0"),
        ({"gamma": 1.5}, r"gamma must lie in \(0, 1\], found 1.5"),
        ({"gamma": float("nan")}, "gamma must lie in"),
        ({"rho": -0.1}, "at least 0, found rho=-0.1"),
        ({"beta": -1.0}, "at least 0, found .*beta=-1"),
        ({"beta": float("inf")}, "finite.*found .*beta=inf"),
        ({"magnitude": "same"}, "magnitude must be one of .*'averaged', 'equal', 'own', 'uncorrected', 'none'.*'same'"),
        ({"direction": None}, "direction must be one of .*'cosine', 'gram', 'raw', 'none'.*None"),
        ({"reduction": "max"}, "reduction must be one of .*'sum', 'mean'.*'max'"),
        ({"task_weights": [1.0]}, r"2 positive finite numbers.*click, like.*\[1.0\]"),
        ({"task_weights": [1.0, 0.0]}, "positive"),
        ({"task_weights": [1.0, -1.0]}, "positive"),
        ({"task_weights": [1.0, float("nan")]}, "positive"),
        ({"task_weights": 3.0}, "2 positive finite numbers"),
        ({"task_weights": {"click": 1.0, "like": 2.0}}, "2 positive finite numbers"),
        ({"task_weights": ["much", "little"]}, "2 positive finite numbers"),
    ],
)
def test_options_out_of_range_are_refused_with_what_was_found(options, message):
    with pytest.raises(ValueError, match=message):
        MultiBalance(["click", "like"], **options)


def test_repr_reads_like_the_constructor():
    fork = MultiBalance(["click", "like"], gamma=0.02, magnitude="own", direction="gram", task_weights=[1.0, 3.0])
    read = eval(repr(fork))
    assert repr(read) == repr(fork)
    assert read.tasks == fork.tasks
    assert torch.equal(read.preferences, fork.preferences)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("magnitude", ["equal", "own", "none"])
def test_gradients_whose_squares_nearly_vanish_are_weighed_as_large_ones_are(magnitude, compiled):
    def weights(size: float) -> Tensor:
        fork = MultiBalance(2, magnitude=magnitude, direction="gram").double()
        weigh = torch.compile(fork.weigh, backend="eager") if compiled else fork.weigh
        gram = size * torch.tensor([[4.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
        return weigh(gram, torch.tensor([True, True]))

    torch.testing.assert_close(weights(1e-310), weights(1.0))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_spike_moves_a_clipped_average_no_further_than_clip_times_itself(compiled):
    def fed(clip: float | None, norms: list[float]) -> Tensor:
        fork = MultiBalance(1, gamma=0.1, clip=clip)
        weigh = torch.compile(fork.weigh, backend="eager") if compiled else fork.weigh
        for norm in norms:
            weigh(torch.tensor([[norm**2]]), torch.tensor([True]))
        return fork.magnitudes

    calm = [2.0] * 5
    torch.testing.assert_close(fed(3.0, [*calm, 1e6]), fed(None, [*calm, 6.0]))
    torch.testing.assert_close(fed(3.0, [*calm, 5.0]), fed(None, [*calm, 5.0]))
    torch.testing.assert_close(fed(3.0, [1e6]), torch.tensor([1e6]))  # the first norm has nothing to be measured by


def test_clip_limits_a_gradient_that_averaged_magnitudes_leave_long():
    gradients = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])]
    spike = [1000 * gradients[0], gradients[1]]
    with_clip, without = (MultiBalance(2, magnitude="averaged", direction="none", clip=clip) for clip in (3.0, None))
    for fork in (with_clip, without):
        feed(fork, gradients)
    held, free = feed(with_clip, spike), feed(without, spike)
    # û moves to (0.99 · 0.01 + 0.01 n) / (1 - 0.99²) with n = 3 instead of 1000
    assert held[0] / held[1] == pytest.approx(3 / ((0.99 + 3) / 1.99), rel=1e-4)
    assert free[0] / free[1] == pytest.approx(1000 / ((0.99 + 1000) / 1.99), rel=1e-4)


@pytest.mark.parametrize("options", [{"clip": 1.0}, {"clip": float("inf")}, {"clip": 3.0, "magnitude": "none"}])
def test_a_clip_that_cannot_work_is_refused(options):
    with pytest.raises(ValueError, match="clip cannot hold back a spike with overlap=True"):
        MultiBalance(2, clip=2.0, overlap=True)
    with pytest.raises(ValueError, match="clip must be above 1 and finite, with a magnitude to average"):
        MultiBalance(2, **options)
