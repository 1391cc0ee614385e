"""PUB, AdaTask and Clippy against an independent reimplementation of the equations over 50 steps, in every mode."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from equipoise.optim import PUB, AdaTask, Clippy
from equipoise.optim.forms import FORMS
from tests.optim.pub_reference import Problem, Reference

STEPS = 50
OPTIMIZERS = {
    "adam": ("Adam", {"lr": 0.02}),
    "adam-amsgrad-decay": (
        "Adam",
        {"lr": 0.02, "amsgrad": True, "weight_decay": 0.05, "betas": (0.8, 0.95), "eps": 1e-4},
    ),
    "adam-maximize": ("Adam", {"lr": 0.02, "maximize": True, "weight_decay": 0.01}),
    "adamw": ("AdamW", {"lr": 0.02, "weight_decay": 0.1}),
    "adagrad": ("Adagrad", {"lr": 0.1, "lr_decay": 0.02, "weight_decay": 0.03, "initial_accumulator_value": 0.1}),
    "rmsprop": ("RMSprop", {"lr": 0.01, "alpha": 0.9}),
    "rmsprop-centered": (
        "RMSprop",
        {"lr": 0.003, "momentum": 0.8, "centered": True, "weight_decay": 0.02, "eps": 1e-3},
    ),
    "sgd": ("SGD", {"lr": 5e-4}),
    "sgd-decay": ("SGD", {"lr": 5e-4, "weight_decay": 0.1}),
    "sgd-momentum": ("SGD", {"lr": 2e-4, "momentum": 0.8, "weight_decay": 0.1}),
    "sgd-nesterov": ("SGD", {"lr": 2e-4, "momentum": 0.8, "nesterov": True}),
    "sgd-dampening": ("SGD", {"lr": 5e-4, "momentum": 0.8, "dampening": 0.5}),
}
# Centered RMSprop takes the difference of nearly equal numbers: what CPUs round differently shows at 1e-9.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}


def run(reference: Reference, dtype: torch.dtype, make) -> tuple[np.ndarray, np.ndarray]:
    """Parameters after each of the steps, ours and the reference's, shape [steps, parameters]."""
    problem = reference.problem
    p = {name: torch.nn.Parameter(torch.tensor(value, dtype=dtype)) for name, value in problem.start().items()}
    heads = [p[name] for name in p if name.startswith("h")]
    options = dict(reference.options)
    groups = [{"params": [p["a"], *heads]}, {"params": [p["b"]], "lr": reference.lr_b or options["lr"]}]
    optimizer = make(getattr(torch.optim, reference.kind)(groups, **options), [p["a"], p["b"]])
    history = []
    for step in range(STEPS):
        theta = torch.cat([p["a"].reshape(-1), p["b"]])
        losses: list[torch.Tensor | None] = []
        for m in range(problem.tasks):
            B, y = (torch.tensor(part, dtype=dtype) for part in problem.data(step, m))
            loss = (B @ theta + p[f"h{m}"] - y).square().sum() / 2
            losses.append(None if m in reference.absent.get(step, set()) else loss)
        optimizer.zero_grad()
        optimizer.backward(losses)
        optimizer.step()
        reference.step()
        history.append(torch.cat([p[name].detach().reshape(-1) for name in sorted(p)]).double().numpy())
    return np.array(history), np.array(reference.history)


def check(reference: Reference, dtype: torch.dtype, make) -> None:
    ours, theirs = run(reference, dtype, make)
    errors = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
    assert errors.max() < TOLERANCE[dtype], f"relative errors over the steps: {errors}"
    moved = np.linalg.norm(theirs[-1] - theirs[0]) / np.linalg.norm(theirs[0])
    assert moved > 0.01, "the problem hardly moves, so agreement says nothing"


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float64) for name in OPTIMIZERS]
    + [(name, torch.float32) for name in ("adam", "adamw", "adagrad", "rmsprop", "sgd-momentum")],
)
@pytest.mark.parametrize("form", FORMS)
def test_pub_follows_the_equations(name, form, dtype):
    kind, options = options_for(form, name)
    reference = Reference(Problem(3), kind, options, "pub", form, update_every=4)
    check(reference, dtype, lambda o, shared: PUB(o, shared=shared, update_every=4, form=form))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["adamw", "sgd", "sgd-momentum"])
def test_groups_with_different_learning_rates_and_absent_tasks(name, form):
    kind, options = options_for(form, name)
    absent = {1: {0}, 2: {1, 2}, 5: {0, 1}, 8: {0, 1, 2}, 9: {2}, 13: {1}}
    reference = Reference(Problem(3), kind, options, "pub", form, 4, lr_b=options["lr"] / 3, absent=absent)
    check(reference, torch.float64, lambda o, shared: PUB(o, shared=shared, update_every=4, form=form))


@pytest.mark.parametrize("method", ["plain", "adatask", "pub", "pub-ours", "pub-adatask"])
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd-momentum"])
def test_clippy_shrinks_as_the_equations_say(name, method):
    kind, options = OPTIMIZERS[name]
    clip = (0.01, 0.002)
    form = "ours" if method == "pub-ours" else "authors"
    own = method in ("adatask", "pub-adatask")
    reference = Reference(
        Problem(3), kind, options, method.split("-")[0], form, update_every=4, own_state=own, clip=clip
    )

    def make(optimizer, shared):
        inner = Clippy(optimizer, relative=clip[0], absolute=clip[1])
        if method == "plain":
            return Plain(inner)
        if own:
            inner = AdaTask(inner, shared=shared)
        if method == "adatask":
            return inner
        return PUB(inner, shared=shared, update_every=4, form=form)

    check(reference, torch.float64, make)
    unclipped = dataclasses.replace(reference, clip=None)
    for _ in range(STEPS):
        unclipped.step()
    assert not np.allclose(unclipped.history[-1], reference.history[-1], rtol=1e-3), "the limits never held"


def options_for(form: str, name: str) -> tuple[str, dict]:
    """The literal joint update has the norm √M whatever the gradients: SGD needs a larger rate to get anywhere."""
    kind, options = OPTIMIZERS[name]
    return kind, options | {"lr": 10 * options["lr"]} if form == "literal" and kind == "SGD" else options


class Plain:
    """An ordinary optimizer in the loop of the others."""

    def __init__(self, optimizer):
        self.zero_grad, self.step = optimizer.zero_grad, optimizer.step

    def backward(self, losses):
        sum(losses).backward()


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in ("sgd", "sgd-dampening")])
@pytest.mark.parametrize("form", ["none", "authors", "matched"])
def test_adatask_alone_and_in_pub_follows_the_equations(name, form):
    kind, options = OPTIMIZERS[name]
    alone = form == "none"
    method = "adatask" if alone else "pub"
    reference = Reference(
        Problem(3),
        kind,
        options,
        method,
        form,
        update_every=4,
        own_state=True,
        absent={5: {0}, 6: {0, 2}, 9: {1}},
    )

    def make(optimizer, shared):
        inner = AdaTask(optimizer, shared=shared)
        return inner if alone else PUB(inner, shared=shared, update_every=4, form=form)

    check(reference, torch.float64, make)
