"""A simulated recommender whose true values are known, and rankers for it that need no training."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl

from equipoise.serving.replay import BanditLog

CONTEXTS, ITEMS, POSITIONS = 4, 5, 2


def _truths() -> tuple[np.ndarray, np.ndarray]:
    """Return reward probabilities and the logging policy, each of shape [contexts, positions, items]."""
    random = np.random.default_rng(7)
    shape = (CONTEXTS, POSITIONS, ITEMS)
    logging = random.dirichlet(np.full(ITEMS, 2.0), shape[:2])
    return random.uniform(0.05, 0.6, shape), 0.7 * logging + 0.3 / ITEMS


REWARD, LOGGING = _truths()
QUALITY = REWARD.mean(1) + 0.1  # a good ranker


@dataclass(frozen=True)
class FakeRanker:
    """Predicts ``quality[context, item]`` for the task "click"."""

    quality: np.ndarray
    columns: tuple[str, ...] = ("context", "item_id", "price")
    kind: str = "binary"

    @property
    def schema(self) -> Any:
        task = SimpleNamespace(name="click", binary=self.kind == "binary")
        return SimpleNamespace(task_names=("click",), tasks=(task,))

    def predict(self, table: pl.DataFrame, /) -> pl.DataFrame:
        places = table["context"].to_numpy(), table["item_id"].str.slice(1).cast(pl.Int64).to_numpy()
        np.testing.assert_array_equal(table["price"].to_numpy(), 10 * places[1])  # the item's own, not the log's
        return pl.DataFrame({"click": self.quality[places].astype(np.float32)})


def items() -> pl.DataFrame:
    return pl.DataFrame({"price": [10 * place for place in range(ITEMS)], "item_id": [f"i{k}" for k in range(ITEMS)]})


def rounds(count: int, seed: int) -> pl.DataFrame:
    """Draw logged rounds; the log repeats the price of the shown item, as logs do."""
    random = np.random.default_rng(seed)
    context, position = random.integers(CONTEXTS, size=count), random.integers(POSITIONS, size=count)
    chance = LOGGING[context, position]
    action = (chance.cumsum(1) > random.random(count)[:, None]).argmax(1)
    return pl.DataFrame(
        {
            "context": context,
            "position": position,
            "item_id": [f"i{k}" for k in action],
            "price": 10 * action,
            "propensity_score": chance[np.arange(count), action],
            "click": (random.random(count) < REWARD[context, position, action]).astype(int),
        }
    )


def log(count: int, seed: int = 0, **columns: str) -> BanditLog:
    return BanditLog.of(rounds(count, seed), items(), **{"position": "position", **columns})


def true_value(policy: np.ndarray) -> float:
    """Return the mean reward of a policy, shape [contexts, items], over contexts and positions, which are alike."""
    return float((policy[:, None] * REWARD).sum(2).mean())
