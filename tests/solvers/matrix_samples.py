"""Gram matrices to try solvers on: random and degenerate ones, M = 2…64, scales over twelve decades."""

from __future__ import annotations

import numpy as np


def vectors(seed: int, tasks: int, dimension: int, *, decades: float = 0.0, kind: str = "random") -> np.ndarray:
    """Return random rows for a Gram matrix, with norms spread over ``decades`` powers of ten."""
    rng = np.random.default_rng(seed)
    V = rng.normal(size=(tasks, dimension))
    if kind == "common":
        V = V + 3
    V *= 10 ** rng.uniform(-decades / 2, decades / 2, size=(tasks, 1))
    if kind == "identical":
        V[1] = V[0]
    if kind == "opposed":
        V[1] = -V[0]
    if kind == "zero":
        V[0] = 0
    return V


KINDS = ("random", "common", "identical", "opposed")
SHAPES = ((2, 1), (2, 5), (3, 2), (5, 20), (8, 3), (16, 100), (32, 20), (64, 8), (64, 200))
