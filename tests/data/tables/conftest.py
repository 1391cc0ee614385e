"""A cache folder of its own for every test, and a log of an e-mail campaign."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("EQUIPOISE_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def campaign(rows: int = 600, seed: int = 0) -> pl.DataFrame:
    """Return mails over ten days: a visit depends on the channel and the recency, a conversion needs a visit."""
    generator = np.random.default_rng(seed)
    channel = generator.choice(["web", "phone", "shop"], rows)
    recency = generator.integers(1, 13, rows)
    visit = generator.random(rows) < np.where(channel == "web", 0.6, 0.3) - recency / 100
    conversion = visit & (generator.random(rows) < 0.4)
    return pl.DataFrame(
        {
            "ts": 1_767_225_600 + np.sort(generator.integers(0, 10 * 86_400, rows)),  # from 2026-01-01 on
            "user_id": generator.integers(0, 90, rows),
            "channel": channel,
            "recency": recency,
            "visit": visit.astype(np.int64),
            "conversion": conversion.astype(np.int64),
            "spend": np.where(conversion, generator.gamma(2, 30, rows).round(2), 0.0),
        }
    )


FEATURES = {"channel": "category", "recency": "number"}
TASKS = {"visit": "visit", "conversion": {"after": "visit"}, "spend": {"kind": "regression", "after": "conversion"}}
