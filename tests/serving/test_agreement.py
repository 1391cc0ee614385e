"""Training, prediction of files, and the exported programs agree on raw rows, for every kind of feature and task."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import equipoise
from equipoise.data import from_frame
from equipoise.ranking.predictions import predictions
from equipoise.serving import Ranker
from tests.serving.test_export import predictions_alone

FEATURES = {
    "zip": {"kind": "category", "min_count": 2},
    "user": {"kind": "category", "rows": 50},
    "age": {"kind": "number", "scale": "standard"},
    "income": {"kind": "number", "scale": "log1p", "indicator": True},
    "recency": {"kind": "number", "scale": "bins", "bins": 8},
    "video": {"kind": "category", "min_count": 1},
    "seen": {"kind": "categories", "length": 4, "table": "video", "pooling": "attention", "target": "video"},
    "tags": {"kind": "categories", "separator": "|", "length": 3, "min_count": 1, "pooling": "mean"},
    "topics": {"kind": "categories", "separator": ",", "length": 2, "rows": 20, "pooling": "sum"},
    "image": {"kind": "vector", "width": 3},
    "text": {"kind": "vector", "width": 2, "separator": " "},
    "user_x_zip": {"kind": "cross", "of": ["user", "zip"], "rows": 97},
    "hour": {"kind": "time", "column": "at", "part": "hour"},
    "weekday": {"kind": "time", "column": "day", "part": "weekday"},
}
TASKS = {
    "click": "click",
    "buy": {"label": "buy", "after": "click", "over": "parent", "positive_weight": 2.0},
    "spend": {"kind": "regression", "label": "spend", "loss": "log"},
    "watched": {"kind": "regression", "label": "watched"},
}
CONFIG = {
    "features": FEATURES,
    "tasks": TASKS,
    "split": {
        "by": "column",
        "column": "part",
        "values": {"train": ["train"], "validation": ["validation"], "test": ["test"]},
    },
    "sampled": {"task": "click", "rate": 0.1},
}
LABELS = ["click", "buy", "spend", "watched"]
RAW = [name for feature, entry in FEATURES.items() for name in entry.get("of", [entry.get("column", feature)])]


def videos(count: int = 500, seed: int = 0) -> pl.DataFrame:
    """Generate raw rows with a column of every kind, missing values among them."""
    random = np.random.default_rng(seed)

    def sometimes(values: list, share: float = 0.1) -> list:
        return [None if random.random() < share else value for value in values]

    clicked = random.random(count) < 0.4
    return pl.DataFrame(
        {
            "zip": sometimes([f"zip {place}" for place in random.integers(0, 6, count)]),
            "user": random.integers(0, 200, count),
            "age": sometimes(random.normal(40, 10, count).round(1).tolist()),
            "income": sometimes(random.lognormal(8, 1, count).round().tolist()),
            "recency": sometimes(random.exponential(20, count).round(2).tolist()),
            "video": random.integers(0, 30, count),
            "seen": sometimes([random.integers(0, 35, size).tolist() for size in random.integers(0, 7, count)]),
            "tags": sometimes(["|".join(random.choice(list("abcd"), size)) for size in random.integers(0, 5, count)]),
            "topics": [",".join(random.choice(list("xyz"), size)) for size in random.integers(1, 4, count)],
            "image": sometimes(random.normal(0, 1, (count, 3)).tolist()),
            "text": [f"{x:.3f} {y:.3f}" for x, y in random.normal(0, 1, (count, 2))],
            "at": random.integers(1_700_000_000, 1_800_000_000, count),
            "day": [f"2026-{month:02}-{day:02}" for month, day in random.integers(1, 13, (count, 2))],
            "part": random.choice(["train", "train", "train", "validation", "test"], count),
            "click": clicked.astype(int),
            "buy": (clicked & (random.random(count) < 0.4)).astype(int),
            "spend": random.exponential(20, count).round(2),
            "watched": random.normal(100, 30, count).round(1),
        },
        strict=False,
    )


@pytest.fixture(scope="module")
def trained() -> Ranker:
    """Return a ranker of every kind of feature and task."""
    dataset = from_frame(videos(), CONFIG)
    return equipoise.train(dataset, "multibalance", epochs=4, batch_size=64, lr=1e-2)


@pytest.fixture(scope="module")
def exported(trained: Ranker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained.export(tmp_path_factory.mktemp("agreement") / "export", onnx=True)


def test_prediction_of_raw_rows_is_what_the_training_evaluates(trained: Ranker) -> None:
    split = from_frame(videos(), CONFIG).test
    with torch.no_grad():
        expected = predictions(trained.model(split.categorical.long(), split.numeric), trained.schema)
    found = trained.predict(videos().filter(pl.col("part") == "test"))
    for task, values in zip(found.columns, expected, strict=True):
        np.testing.assert_allclose(found[task], values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["polars", "pandas", "pyarrow"])
def test_a_table_without_rows_needs_no_types(kind: str, trained: Ranker) -> None:
    rows = videos(60, seed=1)
    table = {"polars": rows, "pandas": rows.to_pandas(), "pyarrow": rows.to_arrow()}[kind][:0]
    assert trained.predict(table).shape == (0, len(LABELS))


@pytest.mark.parametrize("column", dict.fromkeys(RAW))
def test_every_feature_is_read(column: str, trained: Ranker) -> None:
    rows = videos(60, seed=1)
    changed = rows.with_columns(rows[column].reverse())
    assert np.abs(trained.predict(rows)["watched"] - trained.predict(changed)["watched"]).max() > 1e-3


def test_programs_without_equipoise_predict_raw_rows_as_training_does(
    trained: Ranker, exported: Path, tmp_path: Path
) -> None:
    rows = videos(80, seed=1)
    out = shutil.copytree(exported, tmp_path / "export")
    asked = json.loads(json.dumps(rows.select(list(dict.fromkeys(RAW))).to_dicts()))
    expected = trained.predict(rows)
    for found in predictions_alone(out, asked).values():
        assert list(found) == LABELS
        for task in expected.columns:
            np.testing.assert_allclose(found[task], expected[task], atol=1e-5, rtol=1e-5)


def test_files_agree_with_tables(trained: Ranker, tmp_path: Path) -> None:
    rows = videos(80, seed=1)
    rows.write_parquet(tmp_path / "a.parquet")
    trained.predict_files(tmp_path / "a.parquet", tmp_path / "out.parquet")
    assert pl.read_parquet(tmp_path / "out.parquet").equals(trained.predict(rows))


def test_the_sampled_task_is_predicted_at_its_natural_rate(trained: Ranker) -> None:
    rows = videos(400, seed=2)
    assert trained.predict(rows)["click"].mean() < 0.5 * rows["click"].mean()
