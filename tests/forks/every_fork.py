"""One fork of every kind and of most options, for tests that all of them pass through."""

from __future__ import annotations

from equipoise.forks import (
    PIVRG,
    Bargaining,
    EqualProjections,
    Fork,
    GradCraft,
    GradDrop,
    MetaBalanceFork,
    MinNorm,
    MultiBalance,
    Weighted,
)

TASKS = ["a", "b", "c"]
PREFERENCES = [9.0, 1.0, 2.0]
FORKS = {
    "plain": lambda: Fork(TASKS),
    "plain-overlap": lambda: Fork(TASKS, overlap=True),
    "multibalance": lambda: MultiBalance(TASKS),
    "multibalance-overlap": lambda: MultiBalance(TASKS, overlap=True),
    "multibalance-every-third": lambda: MultiBalance(TASKS, gram_every=3),
    "multibalance-averaged-gram": lambda: MultiBalance(TASKS, magnitude="averaged", direction="gram"),
    "multibalance-own-raw": lambda: MultiBalance(TASKS, magnitude="own", direction="raw"),
    "multibalance-uncorrected": lambda: MultiBalance(TASKS, magnitude="uncorrected", direction="none"),
    "multibalance-clip": lambda: MultiBalance(TASKS, magnitude="averaged", clip=2.0),
    "multibalance-preferences": lambda: MultiBalance(TASKS, task_weights=PREFERENCES),
    "nash": lambda: Bargaining(TASKS, task_weights=PREFERENCES),
    "fairgrad": lambda: Bargaining(TASKS, exponent=2.0),
    "pivrg": lambda: PIVRG(TASKS),
    "mgda": lambda: MinNorm(TASKS, task_weights=PREFERENCES),
    "mgda-equal": lambda: MinNorm(TASKS, lengths="equal"),
    "imtl-g": lambda: EqualProjections(TASKS),
    "config": lambda: EqualProjections(TASKS, length="projections", task_weights=PREFERENCES),
    "gradcraft": lambda: GradCraft(TASKS, tau=0.5),
    "metabalance": lambda: MetaBalanceFork(TASKS, target="b"),
    "weighted": lambda: Weighted(TASKS, [1.0, 2.0, 3.0]),
    "graddrop": lambda: GradDrop(TASKS),
}
