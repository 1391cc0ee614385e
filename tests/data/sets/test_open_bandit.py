"""Open Bandit: each place a task, splits by time, candidates for every item; from files, or from the wheel of obp."""

from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import polars as pl
import pytest

from equipoise.data import DataError, load
from equipoise.data.cache import cache_folder
from equipoise.data.sets.open_bandit import read_log

ROWS, ITEMS = 400, 10
SAMPLE = find_spec("obp") is not None or any((cache_folder() / "open-bandit").glob("obp-*.whl"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the files of both policies, newest row first."""
    place = tmp_path_factory.mktemp("bandit")
    for policy in ("random", "bts"):
        random = np.random.default_rng(len(policy))
        (place / policy / "all").mkdir(parents=True)
        log = {
            "": np.arange(ROWS),
            "timestamp": [
                f"2019-11-{24 + row // 80:02} 00:{row % 80 // 60:02}:{row % 60:02}.004101+00:00" for row in range(ROWS)
            ][::-1],
            "item_id": random.integers(0, ITEMS, ROWS), "position": random.integers(1, 4, ROWS),
            "click": random.integers(0, 2, ROWS), "propensity_score": random.random(ROWS),
            **{f"user_feature_{place}": ["a", "b"] * (ROWS // 2) for place in range(4)},
            **{f"user-item_affinity_{place}": random.random(ROWS) for place in range(3)},
        }  # fmt: skip
        pl.DataFrame(log).write_csv(place / policy / "all" / "all.csv")
        items = {"": np.arange(ITEMS), "item_id": np.arange(ITEMS), "item_feature_0": random.random(ITEMS)}
        items |= {f"item_feature_{place}": ["x", "y"] * (ITEMS // 2) for place in (1, 2, 3)}
        pl.DataFrame(items).write_csv(place / policy / "all" / "item_context.csv")
    return place


def test_each_place_is_a_task(folder: Path) -> None:
    found = load("open-bandit", folder=folder)
    assert found.schema.task_names == ("click_left", "click_center", "click_right")
    assert bool(((~found.train.labels.isnan()).sum(1) == 1).all())
    log = pl.read_csv(folder / "random" / "all" / "all.csv")
    for place, column in enumerate(found.train.labels.T, start=1):
        mine = log[120:].filter(pl.col("position") == place)["click"]  # the newest 120 rows come first
        assert (int((~column.isnan()).sum()), int(column.nansum())) == (len(mine), mine.sum())


def test_the_log_holds_the_rows_of_the_splits_with_their_propensities(folder: Path) -> None:
    found, log = load("open-bandit", folder=folder, policy="both"), read_log(folder=folder, policy="both")
    rows = log.rows.collect()
    assert [rows.filter(pl.col("split") == name).height for name in ("train", "validation", "test")] == [
        len(part) for part in (found.train, found.validation, found.test)
    ]
    times = {name: rows.filter(pl.col("split") == name)["timestamp"] for name in ("train", "validation", "test")}
    assert times["train"].max() < times["validation"].min() <= times["validation"].max() < times["test"].min()
    given = pl.concat([pl.read_csv(folder / name / "all" / "all.csv") for name in ("random", "bts")])
    assert rows["propensity_score"].equals(given["propensity_score"])
    assert rows["policy"].to_list() == ["random"] * ROWS + ["bts"] * ROWS
    test = rows.filter(pl.col("split") == "test")
    labels = found.test.labels[np.arange(len(test)), test["position"].to_numpy() - 1]
    assert labels.tolist() == test["click"].to_list()  # row by row


def test_candidates_are_each_item_in_the_place_of_the_shown_one(folder: Path) -> None:
    log = read_log(folder=folder)
    every, shown = log.candidates().collect(), log.shown().collect()
    assert every.height == ROWS * ITEMS
    assert every["item_id"].to_list() == list(range(ITEMS)) * ROWS
    same = every.filter(pl.col("item_id") == pl.col("shown_item")).drop("shown_item")
    assert same.select(shown.columns).equals(shown)


def test_a_wheel_is_read_as_the_folder_is(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ZipFile(tmp_path / "obp-0.4.1-py3-none-any.whl", "w") as wheel:
        for file in folder.glob("**/*.csv"):
            wheel.write(file, f"obp/dataset/obd/{file.relative_to(folder)}")
    expected = load("open-bandit", folder=folder).fingerprint()
    assert load("open-bandit", folder=tmp_path).fingerprint() == expected
    with pytest.raises(DataError, match=r"expected a wheel with obp/dataset/obd/bts/men/men\.csv"):
        read_log(folder=tmp_path, policy="bts", campaign="men")
    package = tmp_path / "obp"  # an installed package, which is found without importing it
    (package / "dataset").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError")
    (package / "dataset" / "obd").symlink_to(folder)
    monkeypatch.syspath_prepend(tmp_path)
    assert load("open-bandit").fingerprint() == expected


def test_what_is_not_there_is_refused_with_where_to_get_it(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found neither .*pip download --no-deps obp"):
        load("open-bandit", folder=tmp_path)
    with pytest.raises(DataError, match="found 'bts' and 'children'"):
        read_log(folder=folder, policy="bts", campaign="children")  # type: ignore[arg-type]
    (tmp_path / "random" / "all").mkdir(parents=True)
    (tmp_path / "random" / "all" / "all.csv").write_text("timestamp,item_id,position,click\n1,2,3,0\n")
    with pytest.raises(DataError, match="expected the column 'propensity_score', found timestamp, item_id"):
        read_log(folder=tmp_path)


@pytest.mark.skipif(not SAMPLE, reason="needs the package obp, or its wheel in the cache folder")
@pytest.mark.parametrize(("policy", "campaign", "items", "clicks"), [("random", "all", 80, 38), ("bts", "men", 34, 69)])
def test_the_sample_has_its_counts_and_propensities(policy: str, campaign: str, items: int, clicks: int) -> None:
    log = read_log(policy=policy, campaign=campaign)
    rows = log.rows.collect()
    assert (rows.height, log.items.collect().height, rows["click"].sum()) == (10_000, items, clicks)
    if policy == "random":
        assert rows["propensity_score"].unique().to_list() == [1 / items]
    assert rows["propensity_score"].is_between(0, 1, closed="right").all()
