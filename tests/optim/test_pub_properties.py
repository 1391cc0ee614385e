"""Properties of PUB, AdaTask and Clippy for any gradients: shapes, dtypes, absent tasks, degenerate matrices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from equipoise.optim import PUB, AdaTask, Clippy
from equipoise.optim.forms import FORMS
from tests.optim.task_nets import OPTIMIZERS, SYMMETRIC, WRAPPERS, Net, train

RIDGE = 1e-6
KINDS = ("random", "identical", "opposed", "collinear", "zero")
thorough = settings(max_examples=150, deadline=None, derandomize=True, database=None)
seeds, counts, kinds = st.integers(0, 10**6), st.integers(2, 6), st.sampled_from(KINDS)
shapes = st.lists(st.lists(st.integers(1, 4), min_size=0, max_size=3), min_size=1, max_size=3)


def gradients(seed: int, tasks: int, sizes: list[list[int]], kind: str, decades: float = 0.0) -> list[list[Tensor]]:
    """Per task one gradient per parameter; norms are spread over ``decades`` powers of ten."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    found = [[draw(*size) for size in sizes] for _ in range(tasks)]
    if kind == "identical":
        found[1] = found[0]
    if kind == "opposed":
        found[1] = [-g for g in found[0]]
    if kind == "collinear":
        found = [[g * (task + 1) for g in found[0]] for task in range(tasks)]
    if kind == "zero":
        found[1] = [g * 0 for g in found[0]]
    scales = 10 ** ((torch.rand(tasks, generator=generator, dtype=torch.float64) - 0.5) * decades)
    return [[g * scale for g in of_task] for of_task, scale in zip(found, scales, strict=True)]


def parameters(sizes: list[list[int]], dtype: torch.dtype = torch.float64) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(size, dtype=dtype)) for size in sizes]


def losses(shared: list[torch.nn.Parameter], of_tasks: list[list[Tensor]], absent: set[int]) -> list[Tensor | None]:
    return [
        None if task in absent else sum((p * g.to(p.dtype)).sum() for p, g in zip(shared, of_task, strict=True))
        for task, of_task in enumerate(of_tasks)
    ]


def run(
    optimizer: PUB | AdaTask, shared: list[torch.nn.Parameter], steps: list, absent: set[int] = frozenset()
) -> None:
    for of_tasks in steps:
        optimizer.zero_grad()
        optimizer.backward(losses(shared, of_tasks, absent))
        optimizer.step()


@thorough
@given(seeds, counts, shapes, kinds, st.sampled_from(list(WRAPPERS)), st.sampled_from(list(OPTIMIZERS)), st.data())
def test_whatever_comes_parameters_stay_finite_and_weights_positive(seed, tasks, sizes, kind, wrapper, optimizer, data):
    absent = data.draw(st.sets(st.integers(0, tasks - 1)))
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
    shared = parameters(sizes, dtype)
    wrapped = WRAPPERS[wrapper](OPTIMIZERS[optimizer](shared), shared)
    run(wrapped, shared, [gradients(seed + step, tasks, sizes, kind, decades=8) for step in range(4)], absent)
    assert all(p.isfinite().all() for p in shared)
    if isinstance(wrapped, PUB):
        assert wrapped.last_weights.isfinite().all()
        assert (wrapped.last_weights > 0).all()
        for task in absent:
            assert wrapped.last_weights[task] == 1


@thorough
@given(
    seeds,
    counts,
    shapes,
    st.sampled_from(KINDS[:4]),
    st.sampled_from([name for name, form in FORMS.items() if form.solves]),
)
def test_the_weights_solve_the_bargaining_equation_of_the_gram_matrix(seed, tasks, sizes, kind, form):
    shared = parameters(sizes)
    pub = PUB(torch.optim.Adam(shared, lr=0.01), shared=shared, form=form, update_every=1)
    run(pub, shared, [gradients(seed, tasks, sizes, kind)])
    norms = pub.last_gram.diagonal().sqrt()
    cosines = pub.last_gram / torch.outer(norms, norms) + RIDGE * torch.eye(tasks, dtype=torch.float64)
    shares = pub.last_weights * norms
    products = shares * (cosines @ shares)
    torch.testing.assert_close(products, products.mean().expand(tasks), rtol=1e-5, atol=0)
    if form == "ours":
        assert pub.last_weights.mean().item() == pytest.approx(1.0, rel=1e-9)


@thorough
@given(seeds, counts, shapes, st.sampled_from(["random", "zero"]), st.sampled_from(SYMMETRIC), st.data())
def test_the_order_of_the_tasks_does_not_matter(seed, tasks, sizes, kind, wrapper, data):
    sizes = [*sizes, [2]]  # on a line tasks are opposed exactly, and what is left of them is rounding
    order = data.draw(st.permutations(range(tasks)))
    steps = [gradients(seed + step, tasks, sizes, kind, decades=2) for step in range(3)]
    outcomes = []
    for places in (range(tasks), order):
        shared = parameters(sizes)
        wrapped = WRAPPERS[wrapper](OPTIMIZERS["adam"](shared), shared)
        run(wrapped, shared, [[of_tasks[place] for place in places] for of_tasks in steps])
        weights = wrapped.last_weights if isinstance(wrapped, PUB) else torch.ones(tasks)
        outcomes.append(([p.detach() for p in shared], weights))
    (expected, before), (found, after) = outcomes
    torch.testing.assert_close(after, before[list(order)], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@thorough
@given(seeds, shapes, st.sampled_from(SYMMETRIC), st.sampled_from(list(OPTIMIZERS)), st.integers(2, 5), st.data())
def test_a_task_that_never_comes_changes_nothing(seed, sizes, wrapper, optimizer, others, data):
    place = data.draw(st.integers(0, others))
    steps = [gradients(seed + step, others + 1, sizes, "random") for step in range(3)]
    outcomes = []
    for absent in ({place}, set()):
        shared = parameters(sizes)
        wrapped = WRAPPERS[wrapper](OPTIMIZERS[optimizer](shared), shared)
        kept = [of_tasks if absent else of_tasks[:place] + of_tasks[place + 1 :] for of_tasks in steps]
        run(wrapped, shared, kept, absent)
        outcomes.append([p.detach() for p in shared])
    torch.testing.assert_close(outcomes[0], outcomes[1], rtol=1e-9, atol=1e-12)


@thorough
@given(seeds, shapes, st.sampled_from(list(OPTIMIZERS)), st.floats(0, 2), st.floats(1e-6, 1), st.floats(-8, 8))
def test_no_step_under_clippy_is_beyond_its_limits(seed, sizes, optimizer, relative, absolute, decades):
    shared = parameters(sizes)
    clippy = Clippy(OPTIMIZERS[optimizer](shared), relative=relative, absolute=absolute)
    decay = {"adamw": 0.01 * 0.1}.get(optimizer, 0.0)  # decoupled decay comes once and is not limited
    for step in range(3):
        before = [p.detach().clone() for p in shared]
        clippy.zero_grad()
        (of_task,) = gradients(seed + step, 2, sizes, "random")[:1]
        losses(shared, [[g * 10**decades for g in of_task]], set())[0].backward()
        clippy.step()
        for p, old in zip(shared, before, strict=True):
            limit = old.abs() * relative + absolute
            assert ((p - old * (1 - decay)).abs() <= limit * (1 + 1e-9) + decay * old.abs()).all()


@thorough
@given(seeds, counts, shapes, st.sampled_from([name for name, form in FORMS.items() if form.solves]), st.data())
def test_utilities_stay_proportional_to_the_task_weights(seed, tasks, sizes, form, data):
    sizes = [*sizes, [3, 3]]  # on a line tasks are opposed exactly, and what is left of them is rounding
    wanted = data.draw(st.lists(st.floats(0.1, 10), min_size=tasks, max_size=tasks))
    absent = data.draw(st.sets(st.integers(0, tasks - 1), max_size=tasks - 1))
    shared = parameters(sizes)
    pub = PUB(torch.optim.Adam(shared, lr=0.01), shared=shared, form=form, update_every=1, task_weights=wanted)
    for step in range(3):
        run(pub, shared, [gradients(seed + step, tasks, sizes, "random", decades=2)], absent)
        here = [task for task in range(tasks) if task not in absent]
        alpha, gram = pub.last_weights[here], pub.last_gram[here][:, here]
        utilities = alpha * (gram @ alpha + RIDGE * gram.diagonal() * alpha)
        expected = torch.tensor(wanted, dtype=torch.float64)[here]
        torch.testing.assert_close(utilities / utilities.sum(), expected / expected.sum(), rtol=1e-5, atol=0)


def test_nine_to_one_stays_nine_to_one_after_500_steps():
    net = Net(2)
    pub = PUB(torch.optim.Adam(net.parameters(), lr=0.01), shared=net.shared(), update_every=5, task_weights=[9, 1])
    train(net, pub, range(500))
    utilities = pub.last_weights * (pub.last_gram @ pub.last_weights)
    assert (utilities[0] / utilities[1]).item() == pytest.approx(9, rel=1e-4)
    equal = PUB(torch.optim.Adam((other := Net(2)).parameters(), lr=0.01), shared=other.shared(), update_every=5)
    train(other, equal, range(500))
    assert net.losses(7)[0] < other.losses(7)[0]
