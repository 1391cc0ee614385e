"""The proposed settings file can be used as it is, and says what it was unsure of."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import yaml

from equipoise.data.proposal import propose_settings
from equipoise.data.tables import TableConfig, from_files
from equipoise.errors import DataError
from equipoise.settings import Settings
from tests.data.proposal.test_roles import logs


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("ending", ["parquet", "csv", "tsv"])
def test_a_proposal_is_a_settings_file(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"logs.{ending}"
    frame = logs(ts=1_700_000_000 + pl.int_range(2000, eager=True))
    if ending == "parquet":
        frame.write_parquet(file)
    else:
        frame.write_csv(file, separator="," if ending == "csv" else "\t")
    text = propose_settings([str(file)])
    settings = tmp_path / "ranker.yaml"
    settings.write_text(text)
    found = TableConfig.of(Settings.of(settings).data)
    assert found.time is not None
    assert list(found.tasks) == ["click", "purchase"]
    assert "# " in text


@pytest.mark.parametrize("separator", ["\t", ";", "|"])
def test_other_separators_in_a_csv_file_are_noticed(tmp_path: Path, separator: str) -> None:
    file = tmp_path / "logs.csv"
    logs().write_csv(file, separator=separator)
    found = yaml.safe_load(propose_settings([str(file)]))["data"]
    assert found["separator"] == separator
    assert "user_id" in found["features"]


def test_the_separator_is_noticed_before_commas_in_the_values_are_taken_for_it(tmp_path: Path) -> None:
    file = tmp_path / "logs.csv"
    commas = pl.Series("name", ["one, two" if row % 3 else "one" for row in range(2000)])
    logs().with_columns(commas).write_csv(file, separator=";", quote_style="never")
    assert yaml.safe_load(propose_settings([str(file)]))["data"]["separator"] == ";"


def test_spaces_around_names_are_said(tmp_path: Path) -> None:
    file = tmp_path / "logs.csv"
    logs().rename({"click": " click"}).write_csv(file)
    assert "begin or end with a space" in propose_settings([str(file)])


def test_the_paths_that_a_shell_has_made_of_a_glob_become_one_again(tmp_path: Path) -> None:
    files = [tmp_path / f"part-{place}.parquet" for place in range(3)]
    for file in files:
        logs().write_parquet(file)
    assert yaml.safe_load(propose_settings(list(map(str, files))))["data"]["files"] == str(tmp_path / "*.parquet")
    some = yaml.safe_load(propose_settings(list(map(str, files[:2]))))["data"]["files"]
    assert some == list(map(str, files[:2]))


def test_a_table_without_a_label_gets_a_place_to_write_one(tmp_path: Path) -> None:
    file = tmp_path / "logs.parquet"
    logs().drop("click", "purchase").write_parquet(file)
    assert "name a label" in propose_settings([str(file)])


def test_a_file_without_a_header_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "logs.csv"
    logs().write_csv(file, include_header=False)
    with pytest.raises(DataError, match="Does the file lack a header"):
        propose_settings([str(file)])
    logs().drop("click", "purchase").write_csv(file, include_header=False)
    assert "if the file lacks a header, add one" in propose_settings([str(file)])
    logs().write_csv(file)
    assert "lacks a header" not in propose_settings([str(file)])


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "logs.csv"
    logs().head(0).write_csv(file)
    with pytest.raises(DataError, match="expected rows to look at"):
        propose_settings([str(file)])


@pytest.mark.parametrize(("negative", "labelled"), [(-1, 2000), (0, 1000)])
def test_labels_of_minus_one_are_tasks_and_no_features(tmp_path: Path, negative: int, labelled: int) -> None:
    file = tmp_path / "logs.parquet"
    frame = logs().drop("purchase")
    click = pl.when(pl.col("click") == 1).then(1).otherwise(negative)
    if negative == 0:  # then -1 stands for a missing label
        click = pl.when(pl.int_range(2000) % 2 == 0).then(click).otherwise(-1)
    frame.with_columns(click.alias("click")).write_parquet(file)
    proposed = yaml.safe_load(propose_settings([str(file)]))["data"]
    assert "click" not in proposed["features"]
    dataset = from_files(proposed)
    splits = (dataset.train, dataset.validation, dataset.test)
    assert sum(int((~split.labels.isnan()).sum()) for split in splits) == labelled
    assert {0.0, 1.0} == set(dataset.train.labels[~dataset.train.labels.isnan()].tolist())


def test_a_log_of_words_times_and_gaps_is_read_as_proposed(tmp_path: Path) -> None:
    days = [f"2026-01-{1 + row % 28:02} 10:{row % 60:02}:00" for row in range(2000)]
    frame = logs().with_columns(
        pl.Series("seen", days),
        pl.when(pl.int_range(2000) % 9 == 0)
        .then(pl.lit("n/a"))
        .otherwise(pl.col("price").cast(pl.String))
        .alias("price"),
        pl.when(pl.col("click") == 1).then(pl.lit("yes")).otherwise(pl.lit("no")).alias("is click"),
    )
    file = tmp_path / "logs.csv"
    frame.drop("click").write_csv(file)
    proposed = yaml.safe_load(propose_settings([str(file)]))["data"]
    assert proposed["null_values"] == ["", "NA", "NULL", "n/a"]
    assert proposed["features"]["price"] == {"kind": "number", "scale": "log1p"}
    assert proposed["tasks"] == {
        "purchase": {"label": "purchase", "after": "is click"},
        "is click": "\"is click\" = 'yes'",
    }
    dataset = from_files(proposed)
    clicks = sum(int((split.labels[:, 1] == 1).sum()) for split in (dataset.train, dataset.validation, dataset.test))
    assert clicks == int(frame["click"].sum())


def test_texts_beside_the_numbers_of_parquet_are_no_missing_values(tmp_path: Path) -> None:
    file = tmp_path / "logs.parquet"
    logs().with_columns(pl.Series("size", ["1.5", "2.5", "x", "3.5"] * 500)).write_parquet(file)
    proposed = yaml.safe_load(propose_settings([str(file)]))["data"]
    assert "null_values" not in proposed
    assert proposed["features"]["size"] == "category"


def test_columns_with_odd_names_are_quoted(tmp_path: Path) -> None:
    file = tmp_path / "logs.parquet"
    names = {"yes": "yes", "a: b": "a: b", "101": "101"}
    frame = logs().with_columns(pl.lit(pl.Series(["x", "y"] * 1000)).alias(name) for name in names)
    frame.write_parquet(file)
    assert names.keys() <= yaml.safe_load(propose_settings([str(file)]))["data"]["features"].keys()
