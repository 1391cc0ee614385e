"""MetaBalance against its equations in float64 numpy, alone and inside PUB, with absent tasks and by name."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from equipoise.optim import PUB, AdaTask, MetaBalance
from tests.optim.task_nets import Net, train, values

SHAPES = ((3, 2), (4,))
TASKS = ("click", "like", "buy")


def gradients(step: int) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(step)
    scales = (1.0, 30.0, 0.02)
    return [[scale * rng.normal(size=shape) for shape in SHAPES] for scale in scales]


def losses(shared, of_tasks):
    return [sum((p * torch.tensor(g)).sum() for p, g in zip(shared, of_task, strict=True)) for of_task in of_tasks]


def reference(steps, absent, *, target, relax, beta):
    """The rescaled gradients of every step, by task and parameter."""
    norms, counts = np.zeros((3, 2)), np.zeros((3, 2))
    for step in range(steps):
        given = gradients(step)
        here = [task for task in range(3) if task not in absent.get(step, ())]
        for task in here:
            for place in range(2):
                norms[task, place] = beta * norms[task, place] + (1 - beta) * np.linalg.norm(given[task][place])
                counts[task, place] += 1
        found = {}
        for task in here:
            found[task] = []
            for place in range(2):
                own, wanted = (
                    norms[m, place] / (1 - beta ** counts[m, place]) if counts[m, place] else 0.0
                    for m in (task, target)
                )
                factor = relax * wanted / own + 1 - relax if own and wanted else 1.0
                found[task].append(given[task][place] * factor)
        yield found


@pytest.mark.parametrize("target", [None, "buy"])
@pytest.mark.parametrize(("relax", "beta"), [(0.7, 0.9), (1.0, 0.0), (0.0, 0.5)])
def test_it_follows_the_equations(target, relax, beta):
    absent = {2: (1,), 3: (0, 2), 5: (0, 1, 2)}
    shared = [torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in SHAPES]
    optimizer = MetaBalance(
        torch.optim.SGD(shared, lr=0.1), shared=shared, target=target, relax=relax, beta=beta, tasks=TASKS
    )
    expected = [np.zeros(shape) for shape in SHAPES]
    place_of_target = 0 if target is None else 2
    for step, found in enumerate(reference(8, absent, target=place_of_target, relax=relax, beta=beta)):
        optimizer.zero_grad()
        optimizer.backward(
            [None if m in absent.get(step, ()) else loss for m, loss in enumerate(losses(shared, gradients(step)))]
        )
        optimizer.step()
        for of_task in found.values():
            expected = [value - 0.1 * g for value, g in zip(expected, of_task, strict=True)]
        for p, value in zip(shared, expected, strict=True):
            np.testing.assert_allclose(p.detach().numpy(), value, rtol=1e-12, atol=1e-12)


def test_without_bias_to_correct_it_is_the_authors_ratio_of_plain_averages():
    found = list(reference(5, {}, target=0, relax=0.7, beta=0.9))
    plain = np.zeros((3, 2))
    for step in range(5):
        for task, of_task in enumerate(gradients(step)):
            for place, g in enumerate(of_task):
                plain[task, place] = 0.9 * plain[task, place] + 0.1 * np.linalg.norm(g)
        for task, of_task in enumerate(gradients(step)):
            for place, g in enumerate(of_task):
                factor = 0.7 * plain[0, place] / plain[task, place] + 0.3
                np.testing.assert_allclose(found[step][task][place], g * factor, rtol=1e-12)


@pytest.mark.parametrize("form", ["ours", "matched", "authors"])
def test_inside_pub_updates_come_from_the_rescaled_gradients(form):
    pairs = []
    for inside in (True, False):
        shared = [torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in SHAPES]
        adam = torch.optim.Adam(shared, lr=0.01)
        base = MetaBalance(adam, shared=shared) if inside else adam
        pub = PUB(base, shared=shared, form=form, update_every=2)
        rescaled = reference(7, {}, target=0, relax=0.7, beta=0.9)
        for step, found in enumerate(rescaled):
            pub.zero_grad()
            pub.backward(losses(shared, gradients(step) if inside else list(found.values())))
            pub.step()
        pairs.append((torch.cat([p.detach().flatten() for p in shared]), pub.last_weights))
    torch.testing.assert_close(pairs[0], pairs[1], rtol=1e-9, atol=1e-12)


def test_state_follows_the_names():
    net = Net(3)
    optimizer = MetaBalance(torch.optim.Adam(net.parameters()), shared=net.shared(), tasks=TASKS, target="like")
    train(net, optimizer, range(4))
    other = Net(3)
    other.load_state_dict(net.state_dict())
    order = ["buy", "click", "like"]
    loaded = MetaBalance(torch.optim.Adam(other.parameters()), shared=other.shared(), tasks=order, target="like")
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(4, 8):
        train(net, optimizer, [step])
        named = dict(zip(TASKS, other.losses(step), strict=True))
        loaded.zero_grad()
        loaded.backward(named)
        loaded.step()
    torch.testing.assert_close(values(net), values(other), rtol=1e-5, atol=1e-7)


def test_what_does_not_fit_is_named():
    net = Net(2)
    adam = torch.optim.Adam(net.parameters())
    for options, message in (
        ({"relax": 1.5}, "relax must be from 0 to 1, found 1.5"),
        ({"beta": 1.0}, "beta must be at least 0 and less than 1, found 1.0"),
        ({"target": "buy", "tasks": ["a", "b"]}, "target must be one of the tasks a, b, found 'buy'"),
    ):
        with pytest.raises(ValueError, match=message):
            MetaBalance(adam, shared=net.shared(), **options)
    for kind, inner in ((MetaBalance, AdaTask), (AdaTask, MetaBalance)):
        wraps = (
            rf"{kind.__name__} wraps a torch.optim optimizer or Clippy, found {inner.__name__}.*PUB\({kind.__name__}"
        )
        with pytest.raises(TypeError, match=wraps):
            kind(inner(adam, shared=net.shared()), shared=net.shared())
    with pytest.raises(ValueError, match="Around MetaBalance form must be one that leaves the towers"):
        PUB(MetaBalance(adam, shared=net.shared()), shared=net.shared(), form="literal")
