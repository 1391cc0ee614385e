"""Small trained rankers that several files of tests use, and must not change."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import equipoise
from equipoise.data import TableConfig, from_frame
from equipoise.serving import Ranker

CONFIG = {
    "files": "logs.parquet",
    "features": {"zip": {"kind": "category", "min_count": 1}, "age": "number", "recency": "number"},
    "tasks": {
        "visit": "visit",
        "conversion": {"label": "conversion", "after": "visit", "over": "all"},
    },
    "split": {"by": "random"},
}


def logs(rows: int = 900, seed: int = 0) -> pl.DataFrame:
    """Generate rows of an e-mail campaign: two labels, of which one is nested."""
    random = np.random.default_rng(seed)
    zips, ages = random.integers(0, 5, rows), random.normal(40, 12, rows).round()
    visit = random.random(rows) < 0.2 + 0.1 * zips
    conversion = visit & (random.random(rows) < 0.4)
    return pl.DataFrame(
        {
            "user_id": np.arange(rows),
            "zip": [f"zip {place}" for place in zips],
            "age": np.where(random.random(rows) < 0.05, np.nan, ages),
            "recency": random.integers(1, 30, rows),
            "visit": visit.astype(int),
            "conversion": conversion.astype(int),
        }
    )


@pytest.fixture(scope="session")
def train_on_logs() -> Callable[..., Ranker]:
    """Train on generated logs; takes the method and settings of the training."""

    def train(method: str = "multibalance", **settings: Any) -> Ranker:
        dataset = from_frame(logs(), TableConfig.model_validate(CONFIG))
        return equipoise.train(dataset, method, epochs=2, batch_size=64, lr=1e-2, **settings)

    return train


@pytest.fixture(scope="session")
def ranker(train_on_logs: Callable[..., Ranker]) -> Ranker:
    """Return a ranker trained on generated logs."""
    return train_on_logs()


@pytest.fixture(scope="session")
def folder(ranker: Ranker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of that ranker."""
    path = tmp_path_factory.mktemp("ranker")
    ranker.save(path)
    return path


@pytest.fixture(scope="session")
def exported(ranker: Ranker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the export of that ranker, also as ONNX."""
    return ranker.export(tmp_path_factory.mktemp("exports") / "export", onnx=True)
