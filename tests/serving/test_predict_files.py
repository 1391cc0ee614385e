"""Predictions of files stream: as of one table, in bounded memory, with the ids asked for, whole or not at all."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import equipoise
from equipoise.cli import app
from equipoise.data import from_files, from_prepared, prepare
from equipoise.data.encoding import Encoding
from equipoise.errors import DataError, SettingError
from equipoise.serving import Ranker
from equipoise.serving.unseen import UnseenValues
from tests.serving.conftest import CONFIG, logs

ROWS = logs(250, seed=7)


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["predict", *map(str, words)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output  # click before 8.2 does not tell them apart


def parquet(path: Path, rows: pl.DataFrame) -> None:
    rows.write_parquet(path)


def zipped(path: Path, rows: pl.DataFrame) -> None:
    path.write_bytes(gzip.compress(rows.fill_nan(None).write_csv().encode()))


WRITERS: dict[str, Callable[[Path, pl.DataFrame], Any]] = {
    "a.parquet": parquet,
    "a.csv": lambda path, rows: rows.fill_nan(None).write_csv(path),
    "a.tsv": lambda path, rows: rows.fill_nan(None).write_csv(path, separator="\t", null_value="NA"),
    "a.csv.gz": zipped,
}


@pytest.mark.parametrize("name", WRITERS)
def test_files_of_every_kind_give_the_predictions_of_their_rows(name: str, ranker: Ranker, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name, ROWS)
    found = ranker.predict_files(tmp_path / name, tmp_path / "out.parquet", ids=["user_id", "zip"])
    assert found.rows == 250
    written = pl.read_parquet(tmp_path / "out.parquet")
    assert written.columns == ["user_id", "zip", "visit", "conversion"]
    assert written.drop("user_id", "zip").equals(ranker.predict(ROWS))
    assert written["user_id"].to_list() == ROWS["user_id"].to_list()


def test_several_files_keep_their_order_in_row_groups_of_bounded_size(ranker: Ranker, tmp_path: Path) -> None:
    for place in range(3):
        ROWS[place * 80 : (place + 1) * 80].write_parquet(tmp_path / f"part-{place}.parquet")
    ranker.predict_files(str(tmp_path / "part-*.parquet"), tmp_path / "out.parquet", ids=["user_id"], rows=32)
    written = pq.ParquetFile(tmp_path / "out.parquet").metadata
    sizes = [written.row_group(place).num_rows for place in range(written.num_row_groups)]
    assert sizes == [32, 32, 16] * 3
    expected = ranker.predict(ROWS[:240])
    found = pl.read_parquet(tmp_path / "out.parquet")
    assert found["user_id"].to_list() == list(range(240))
    for name in expected.columns:
        assert found[name].to_list() == pytest.approx(expected[name].to_list(), abs=1e-6)


def test_no_more_than_a_block_is_encoded_at_once(
    ranker: Ranker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ROWS.write_parquet(tmp_path / "a.parquet")
    heights: list[int] = []
    encode = Encoding.encode

    def counted(self: Encoding, frame: pl.DataFrame, **options: Any) -> Any:
        heights.append(frame.height)
        return encode(self, frame, **options)

    monkeypatch.setattr(Encoding, "encode", counted)
    ranker.predict_files(tmp_path / "a.parquet", tmp_path / "out.parquet", rows=100)
    assert heights == [100, 100, 50]


def test_a_file_without_rows_gives_a_file_without_rows(ranker: Ranker, tmp_path: Path) -> None:
    ROWS.clear().write_parquet(tmp_path / "a.parquet")
    assert ranker.predict_files(tmp_path / "a.parquet", tmp_path / "out.parquet", ids=["user_id"]).rows == 0
    assert pl.read_parquet(tmp_path / "out.parquet").columns == ["user_id", "visit", "conversion"]


def test_a_bad_row_in_the_last_file_leaves_the_predictions_of_before(ranker: Ranker, tmp_path: Path) -> None:
    ROWS.write_parquet(tmp_path / "a.parquet")
    bad = ROWS.with_columns(pl.when(pl.col("user_id") == 7).then(float("inf")).otherwise("age").alias("age"))
    bad.write_parquet(tmp_path / "b.parquet")
    (tmp_path / "out.parquet").write_bytes(b"of before")
    with pytest.raises(DataError, match=r"b\.parquet: Feature 'age', column 'age': expected finite .* in row 7"):
        ranker.predict_files([tmp_path / "a.parquet", tmp_path / "b.parquet"], tmp_path / "out.parquet", rows=100)
    assert (tmp_path / "out.parquet").read_bytes() == b"of before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet", "out.parquet"]


def test_a_full_disk_leaves_no_half_of_a_file(ranker: Ranker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ROWS.write_parquet(tmp_path / "a.parquet")
    write = pq.ParquetWriter.write_table
    written: list[int] = []

    def full(self: pq.ParquetWriter, table: Any, *rest: Any) -> None:
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(table.num_rows)
        write(self, table, *rest)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(OSError, match="No space left"):
        ranker.predict_files(tmp_path / "a.parquet", tmp_path / "out.parquet", rows=100)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet"]
    ranker.save(tmp_path / "run")
    written[:] = [0, 0]
    code, said = run(tmp_path / "run", tmp_path / "a.parquet", "--out", tmp_path / "out.parquet")
    assert code == 1
    assert "No space left on device" in said
    assert "out.parquet was not written." in said


@pytest.mark.parametrize(
    ("change", "ids", "message"),
    [
        (lambda rows: rows.drop("zip"), (), r"expected the column 'zip' \(named by the ranker\), found only user_id"),
        (lambda rows: rows, ("item",), r"expected the column 'item' \(named by ids\)"),
        (lambda rows: rows.with_columns(age=pl.lit("old")), (), "column 'age': expected numbers, found 'old'"),
    ],
    ids=["feature", "id", "type"],
)
def test_a_column_that_is_missing_or_wrong_is_named(
    change: Callable[[pl.DataFrame], pl.DataFrame], ids: tuple[str, ...], message: str, ranker: Ranker, tmp_path: Path
) -> None:
    change(ROWS).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=message):
        ranker.predict_files(tmp_path / "a.parquet", tmp_path / "out.parquet", ids=ids)


def test_an_id_named_like_a_task_and_an_output_that_is_an_input_are_refused(ranker: Ranker, tmp_path: Path) -> None:
    ROWS.write_parquet(tmp_path / "a.parquet")
    before = (tmp_path / "a.parquet").read_bytes()
    with pytest.raises(SettingError, match="so the id 'visit' has no place"):
        ranker.predict_files(tmp_path / "a.parquet", tmp_path / "out.parquet", ids=["visit"])
    with pytest.raises(SettingError, match="named once, found zip, zip"):
        ranker.predict_files(tmp_path / "a.parquet", tmp_path / "out.parquet", ids=["zip", "zip"])
    with pytest.raises(SettingError, match="which is read: name another file"):
        ranker.predict_files(tmp_path / "a.parquet", tmp_path / "a.parquet")
    with pytest.raises(SettingError, match="found the folder"):
        ranker.predict_files(tmp_path / "a.parquet", tmp_path)
    assert (tmp_path / "a.parquet").read_bytes() == before


def test_labels_are_not_needed(ranker: Ranker, tmp_path: Path) -> None:
    ROWS.drop("visit", "conversion").write_parquet(tmp_path / "a.parquet")
    ranker.predict_files(tmp_path / "a.parquet", tmp_path / "out.parquet", ids=["user_id"])
    assert pl.read_parquet(tmp_path / "out.parquet").drop("user_id").equals(ranker.predict(ROWS))


def test_the_command_copies_ids_and_says_what_it_has_not_seen(ranker: Ranker, folder: Path, tmp_path: Path) -> None:
    zips = pl.when(pl.col("user_id") < 25).then(pl.lit("the moon")).otherwise("zip").alias("zip")
    rows = ROWS.with_columns(zips)
    rows.write_parquet(tmp_path / "a.parquet")
    out = tmp_path / "out.parquet"
    code, said = run(folder, tmp_path / "a.parquet", "--out", out, "--ids", "user_id,zip")
    assert code == 0
    assert f"Predictions: {out} (250 rows)" in said
    assert "Values that the training has not seen: zip 10.0%.\n" in said
    assert pl.read_parquet(out).drop("user_id", "zip").equals(ranker.predict(rows))


def test_the_command_reads_text_files_as_it_is_told(ranker: Ranker, folder: Path, tmp_path: Path) -> None:
    ROWS.fill_nan(None).write_csv(tmp_path / "a.csv", separator=";", null_value="none")
    words = (folder, tmp_path / "a.csv", "--out", tmp_path / "out.parquet", "--separator", ";", "--null-values", "none")
    code, said = run(*words)
    assert code == 0
    assert "not seen" not in said
    assert pl.read_parquet(tmp_path / "out.parquet").equals(ranker.predict(ROWS))


def test_files_are_read_as_the_training_read_its_own(tmp_path: Path) -> None:
    rows = logs(300).fill_nan(None)
    text = rows.write_csv(separator="\t", null_value="none")
    (tmp_path / "logs.csv.gz").write_bytes(gzip.compress(text.encode()))
    config = {key: CONFIG[key] for key in ("features", "tasks", "split")}
    reading = {"files": str(tmp_path / "logs.csv.gz"), "format": "tsv", "null_values": ["none"]}
    dataset = from_files(config | reading)
    prepare(config | reading, tmp_path / "prepared")
    assert from_prepared(tmp_path / "prepared").reading == dataset.reading
    equipoise.train(dataset, "equal", epochs=1, batch_size=64, out=tmp_path / "run")
    ranker = Ranker.load(tmp_path / "run")
    ranker.predict_files(tmp_path / "logs.csv.gz", tmp_path / "text.parquet")
    rows.write_parquet(tmp_path / "rows.parquet")
    ranker.predict_files(tmp_path / "rows.parquet", tmp_path / "out.parquet")
    for name in ("text", "out"):
        assert pl.read_parquet(tmp_path / f"{name}.parquet").equals(ranker.predict(rows))


def test_the_command_says_in_one_line_what_is_wrong(folder: Path, tmp_path: Path) -> None:
    code, noted = run(folder, tmp_path / "none.parquet", "--out", tmp_path / "out.parquet")
    assert code == 2
    assert noted.startswith("Error: ")
    assert noted.count("\n") == 1


def test_unseen_values_are_counted_without_missing_ones() -> None:
    encoding = Encoding.from_json(
        json.dumps({
            "version": 1, "sampled": None, "tasks": [{"name": "click"}],
            "tables": {"zip": {"kind": "vocabulary", "values": ["a", "b"]}, "user": {"kind": "hash", "rows": 9}},
            "features": [
                {"kind": "category", "name": "user", "column": "user", "table": "user", "cardinality": 9},
                {"kind": "bins", "name": "age", "column": "age", "edges": [3.0]},
                {"kind": "categories", "name": "zips", "column": "zips", "separator": "|", "length": 2,
                 "pooling": "mean", "target": "", "table": "zip", "cardinality": 3},
                {"kind": "category", "name": "zip", "column": "zip", "table": "zip", "cardinality": 3},
            ],
        })
    )  # fmt: skip
    unseen = UnseenValues(encoding)
    for zips, one in ((["a|x", "", "x|x|b"], ["a", None, ""]), ([None, "a", "b"], ["x", "y", "a"])):
        frame = pl.DataFrame({"user": ["u"] * 3, "age": [None, 1.0, 9.0], "zips": zips, "zip": one})
        unseen.add(frame, encoding.encode(frame)[0])
    assert unseen.shares() == {"zip": 2 / 4, "zips": 2 / 6}
    assert list(unseen.shares()) == ["zip", "zips"]
