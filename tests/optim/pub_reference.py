"""Section 2 of the algorithms in plain float64 numpy, written from the equations and without the package's code.

Losses are ``½ ‖B θ + h_m − y‖²`` with new random B, y for every step and task, so gradients are exact by hand.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

ROWS = 4
SHAPES = {"a": (3, 2), "b": (5,)}
SIZE = 11


@dataclass
class Problem:
    """M tasks over shared tensors a, b and one head per task; the data of a step depend on the step alone."""

    tasks: int

    def start(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(7)
        theta = rng.normal(size=SIZE)
        values = {"a": theta[:6].reshape(3, 2), "b": theta[6:]}
        return values | {f"h{m}": rng.normal(size=ROWS) for m in range(self.tasks)}

    @staticmethod
    @cache
    def data(step: int, task: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([step, task])
        common = np.random.default_rng([step, 99]).normal(size=(ROWS, SIZE))
        B = common + rng.normal(size=(ROWS, SIZE))
        y = rng.normal(size=ROWS) * 3
        scale = (1.0, 0.3, 2.0)[task % 3]
        return scale * B, scale * y


def flat(values: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([values["a"].reshape(-1), values["b"]])


@dataclass
class Reference:
    """One optimizer over the problem; ``kind`` and ``options`` are those of torch.optim."""

    problem: Problem
    kind: str
    options: dict[str, Any]
    method: str  # "pub", "adatask" or "plain"
    form: str = "authors"  # of PUB
    update_every: int = 10
    own_state: bool = False
    clip: tuple[float, float] | None = None
    lr_b: float | None = None
    absent: dict[int, set[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.values = {name: value.copy() for name, value in self.problem.start().items()}
        self.alpha = np.ones(self.problem.tasks)
        self.head_state = [self.fresh(ROWS) for _ in range(self.problem.tasks)]
        if self.own_state:
            self.state = [self.fresh(SIZE) for _ in range(self.problem.tasks)]
        else:
            self.state = [self.fresh(SIZE)]
        self.time = 0
        self.history: list[np.ndarray] = []
        lr = self.options["lr"]
        self.rates = np.concatenate([np.full(6, lr), np.full(5, lr if self.lr_b is None else self.lr_b)])

    # one rule per optimizer, from the papers' and torch's documentation ------------------------------------------

    def fresh(self, size: int) -> dict[str, Any]:
        start = self.options.get("initial_accumulator_value", 0.0)
        return {"t": 0, "m": np.zeros(size), "v": np.full(size, start), "top": np.zeros(size), "avg": np.zeros(size)}

    def rule(self, g: np.ndarray, w: np.ndarray, old: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        o = self.options
        t = old["t"] + 1
        new: dict[str, Any] = dict(old, t=t)
        if o.get("maximize"):
            g = -g
        if self.kind != "AdamW" and o.get("weight_decay"):
            g = g + o["weight_decay"] * w
        if self.kind in ("Adam", "AdamW"):
            b1, b2 = o.get("betas", (0.9, 0.999))
            new["m"] = b1 * old["m"] + (1 - b1) * g
            new["v"] = b2 * old["v"] + (1 - b2) * g**2
            v = new["v"]
            if o.get("amsgrad"):
                v = new["top"] = np.maximum(old["top"], v)
            return new["m"] / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + o.get("eps", 1e-8)), new
        if self.kind == "Adagrad":
            new["v"] = old["v"] + g**2
            return g / (np.sqrt(new["v"]) + o.get("eps", 1e-10)) / (1 + (t - 1) * o.get("lr_decay", 0.0)), new
        if self.kind == "RMSprop":
            a = o.get("alpha", 0.99)
            new["v"] = a * old["v"] + (1 - a) * g**2
            v = new["v"]
            if o.get("centered"):
                new["avg"] = a * old["avg"] + (1 - a) * g
                v = v - new["avg"] ** 2
            u = g / (np.sqrt(v) + o.get("eps", 1e-8))
            if o.get("momentum"):
                u = new["m"] = o["momentum"] * old["m"] + u
            return u, new
        mu = o.get("momentum", 0.0)
        if not mu:
            return g, new
        new["m"] = g if t == 1 else mu * old["m"] + (1 - o.get("dampening", 0.0)) * g
        return (g + mu * new["m"] if o.get("nesterov") else new["m"]), new

    def scaled(self, gs: list[np.ndarray], old: dict[str, Any]) -> list[np.ndarray]:
        """Every g_m over the root of the shared second moment, advanced by Σ g²."""
        o, t = self.options, old["t"] + 1
        total = sum(g**2 for g in gs)
        if self.kind in ("Adam", "AdamW"):
            b2 = o.get("betas", (0.9, 0.999))[1]
            v = b2 * old["v"] + (1 - b2) * total
            if o.get("amsgrad"):
                v = np.maximum(old["top"], v)
            return [g / (np.sqrt(v / (1 - b2**t)) + o.get("eps", 1e-8)) for g in gs]
        if self.kind == "Adagrad":
            return [g / (np.sqrt(old["v"] + total) + o.get("eps", 1e-10)) for g in gs]
        if self.kind == "RMSprop":
            a = o.get("alpha", 0.99)
            v = old["v"] - old["avg"] ** 2 if o.get("centered") else old["v"]
            return [g / (np.sqrt(a * v + (1 - a) * total) + o.get("eps", 1e-8)) for g in gs]
        return gs

    # the step -----------------------------------------------------------------------------------------------------

    def step(self) -> None:
        k, tasks = self.time, self.problem.tasks
        here = [m for m in range(tasks) if m not in self.absent.get(k, set())]
        theta = flat(self.values)
        gs, residuals = {}, {}
        for m in here:
            B, y = self.problem.data(k, m)
            residuals[m] = B @ theta + self.values[f"h{m}"] - y
            gs[m] = B.T @ residuals[m]
        before = {name: value.copy() for name, value in self.values.items()}
        lr = self.options["lr"]
        decay = self.options.get("weight_decay", 0.0) if self.kind == "AdamW" else 0.0
        spans = self.method == "pub" and self.form in ("literal", "shipped")
        for m in here if not spans else []:
            name = f"h{m}"
            u, self.head_state[m] = self.rule(residuals[m], self.values[name], self.head_state[m])
            self.values[name] = self.values[name] * (1 - lr * decay) - lr * u
        if here and spans:
            theta = self.move_everything([gs[m] for m in here], [residuals[m] for m in here], here, theta, decay)
            self.values["a"], self.values["b"] = theta[:6].reshape(3, 2), theta[6:]
        elif here:
            move = self.shared_move([gs[m] for m in here], here, theta)
            theta = theta * (1 - self.rates * decay) - self.rates.max() * move
            self.values["a"], self.values["b"] = theta[:6].reshape(3, 2), theta[6:]
        if self.clip is not None:
            self.shrink(before, decay, here)
        self.time += 1
        self.history.append(np.concatenate([self.values[name].reshape(-1) for name in sorted(self.values)]))

    def shared_move(self, gs: list[np.ndarray], here: list[int], theta: np.ndarray) -> np.ndarray:
        """Return the step subtracted from θ, divided by the largest learning rate."""
        units = self.rates / self.rates.max()
        if self.method == "plain":
            u, self.state[0] = self.rule(sum(gs), theta, self.state[0])
            return u * units
        states = [self.state[m] for m in here] if self.own_state else [self.state[0]] * len(here)
        pairs = [self.rule(g, theta, state) for g, state in zip(gs, states, strict=True)]
        us = [u * units for u, _ in pairs]
        if self.method == "adatask":
            for m, (_, new) in zip(here, pairs, strict=True):
                self.state[m] = new
            return sum(us)
        K = self.update_every
        if K == 1 or self.time % K == 1:
            D = [u * units for u in self.scaled(gs, self.state[0])] if self.form == "ours" else us
            G = np.array([[np.dot(i, j) for j in D] for i in D])
            alpha = solve(G)
            if self.form == "ours":
                alpha = alpha * len(alpha) / alpha.sum()
            else:
                alpha = alpha * np.sqrt(np.sqrt((G**2).sum()))
            self.alpha[here] = alpha
        weights = self.alpha[here]
        joint = sum(w * g for w, g in zip(weights, gs, strict=True))
        if self.form == "ours":
            u, self.state[0] = self.rule(joint, theta, self.state[0])
            return u * units
        move = sum(w * u for w, u in zip(weights, us, strict=True))
        if self.form == "matched":
            plain = sum(us) if self.own_state else self.rule(sum(gs), theta, self.state[0])[0] * units
            move = move * np.linalg.norm(plain) / np.linalg.norm(move)
        if self.own_state:
            for m, (_, new) in zip(here, pairs, strict=True):
                self.state[m] = new
        else:
            _, self.state[0] = self.rule(joint if self.form == "authors" else sum(gs), theta, self.state[0])
        return move

    def move_everything(
        self, gs: list[np.ndarray], residuals: list[np.ndarray], here: list[int], theta: np.ndarray, decay: float
    ) -> np.ndarray:
        """The forms that weigh the towers, too: moves these, and returns the new θ."""
        units, lr = self.rates / self.rates.max(), self.options["lr"]
        us = [self.rule(g, theta, self.state[0])[0] * units for g in gs]
        towers = [
            self.rule(r, self.values[f"h{m}"], self.head_state[m])[0] for r, m in zip(residuals, here, strict=True)
        ]
        if self.form == "literal" and (self.update_every == 1 or self.time % self.update_every == 1):
            G = np.array([[np.dot(i, j) for j in us] for i in us])
            G += np.diag([np.dot(u, u) * (lr / self.rates.max()) ** 2 for u in towers])
            self.alpha[here] = solve(G)
        for m, u, r in zip(here, towers, residuals, strict=True):
            name = f"h{m}"
            _, self.head_state[m] = self.rule(self.alpha[m] * r, self.values[name], self.head_state[m])
            self.values[name] = self.values[name] * (1 - lr * decay) - lr * self.alpha[m] * u
        move = sum(self.alpha[m] * u for m, u in zip(here, us, strict=True))
        _, self.state[0] = self.rule(
            sum(self.alpha[m] * g for m, g in zip(here, gs, strict=True)), theta, self.state[0]
        )
        return theta * (1 - self.rates * decay) ** len(here) - self.rates.max() * move

    def shrink(self, before: dict[str, np.ndarray], decay: float, here: list[int]) -> None:
        assert self.clip is not None
        relative, absolute = self.clip
        for name in ["a", "b", *(f"h{m}" for m in here)]:
            rate = self.rates[-1] if name == "b" else self.options["lr"]
            old = before[name] * (1 - rate * decay)
            step = self.values[name] - old
            factor = 1.0
            for w, s in zip(before[name].reshape(-1), step.reshape(-1), strict=True):
                if s != 0:
                    factor = min(factor, (relative * abs(w) + absolute) / abs(s))
            self.values[name] = old + factor * step


def solve(G: np.ndarray, ridge: float = 1e-6) -> np.ndarray:
    """G α = 1/α on the cosines, by Newton's method with a line search on the convex objective."""
    norms = np.sqrt(np.diag(G))
    C = G / np.outer(norms, norms) + ridge * np.eye(len(G))

    def objective(a: np.ndarray) -> float:
        return 0.5 * a @ C @ a - np.log(a).sum() if (a > 0).all() else np.inf

    a = np.ones(len(G))
    for _ in range(500):
        gradient = C @ a - 1 / a
        if np.abs(a * gradient).max() < 1e-14:
            break
        direction = -np.linalg.solve(C + np.diag(1 / a**2), gradient)
        size = 1.0
        while objective(a + size * direction) > objective(a) + 1e-4 * size * gradient @ direction and size > 1e-12:
            size /= 2
        a = a + size * direction
    return a / norms
