"""Sources of rows: every form of file gives the same rows, and files that disagree or are damaged are named."""

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pyarrow as pa
import pytest

from equipoise.data.tables.files import open_files
from equipoise.errors import DataError
from tests.data.tables.conftest import campaign

ROWS = campaign(50)


def read(*files: str, wanted: dict[str, str] | None = None, **options: Any) -> pl.DataFrame:
    """Return all rows, read in blocks, after checking that the lazy query gives the same ones."""
    table = open_files(files, **options).table(wanted)
    blocks = [block.frame for block in table.blocks(list(table.types), rows=7)]
    found = pl.concat(blocks)
    assert found.equals(table.frame.collect())
    assert table.rows == found.height
    return found


def compressed(name: str, text: bytes) -> None:
    codec = {".gz": "gzip", ".zst": "zstd"}[Path(name).suffix]
    with pa.output_stream(name, compression=codec) as stream:
        stream.write(text)


@pytest.mark.parametrize("name", ["a.parquet", "a.pq", "a.csv", "a.tsv", "a.csv.gz", "a.tsv.zst", "a.csv.zst"])
def test_every_format_gives_the_same_rows(name: str) -> None:
    separator = "\t" if ".tsv" in name else ","
    if name.endswith(("parquet", "pq")):
        ROWS.write_parquet(name)
    elif name.endswith((".gz", ".zst")):
        compressed(name, ROWS.write_csv(separator=separator).encode())
    else:
        ROWS.write_csv(name, separator=separator)
    assert read(name).equals(ROWS)


def test_a_list_a_glob_and_a_folder_give_the_files_in_order_each_once(here: Path) -> None:
    (here / "logs" / "deep").mkdir(parents=True)
    for i, name in enumerate(["b", "deep/c", "a"]):
        ROWS[i * 10 : i * 10 + 10].write_parquet(f"logs/{name}.parquet")
    (here / "logs" / "_SUCCESS").touch()
    (here / "logs" / ".hidden.parquet").touch()
    (here / "logs" / "notes.txt").write_text("not a table")
    a, b, c = ROWS[20:30], ROWS[:10], ROWS[10:20]
    assert read("logs").equals(pl.concat([a, b, c]))
    assert read("logs/*.parquet").equals(pl.concat([a, b]))
    assert read("logs/b.parquet", "logs/?.parquet", str(here / "logs" / "deep")).equals(pl.concat([b, a, c]))


def test_a_name_that_exists_is_no_glob() -> None:
    ROWS.write_parquet("day[1].parquet")
    assert read("day[1].parquet").equals(ROWS)


def test_columns_of_hive_folders_are_read_from_their_names(here: Path) -> None:
    for day, hour in [("2026-01-01", "7"), ("2026-01-02", "12")]:
        folder = here / "logs" / f"day={day}" / f"hour={hour}"
        folder.mkdir(parents=True)
        ROWS[:3].select("visit").write_parquet(folder / "part-0.parquet")
    found = read("logs")
    assert found["day"].to_list() == ["2026-01-01"] * 3 + ["2026-01-02"] * 3
    assert found["hour"].to_list() == [7] * 3 + [12] * 3
    assert read("logs", wanted={"hour": ""})["hour"].to_list() == [7] * 3 + [12] * 3


def test_a_hive_folder_may_stand_for_a_missing_value_and_hold_escapes(here: Path) -> None:
    for folder in ["at=a%2Fb", "at=__HIVE_DEFAULT_PARTITION__"]:
        (here / "logs" / folder).mkdir(parents=True)
        ROWS[:1].select("visit").write_parquet(here / "logs" / folder / "x.parquet")
    assert read("logs")["at"].to_list() == [None, "a/b"]


def test_files_of_other_file_systems_are_read_and_copied_once(cache: Path) -> None:
    memory = fsspec.filesystem("memory")
    with memory.open("/tables-test/a.csv", "wb") as file:
        file.write(ROWS.write_csv().encode())
    try:
        assert read("memory://tables-test/*.csv").equals(ROWS)
        assert read("memory://tables-test").equals(ROWS)
        assert len(list((cache / "copies").rglob("*.csv"))) == 1
        with memory.open("/tables-test/a.csv", "wb") as file:
            file.write(ROWS[:5].write_csv().encode())
        assert read("memory://tables-test/a.csv").equals(ROWS[:5])
    finally:
        memory.rm("/tables-test", recursive=True)


def test_a_file_url_is_a_local_file(here: Path, cache: Path) -> None:
    ROWS.write_parquet("a.parquet")
    assert read((here / "a.parquet").as_uri()).equals(ROWS)
    assert not (cache / "copies").exists()


def test_a_file_system_that_is_unknown_or_not_installed_is_named() -> None:
    with pytest.raises(DataError, match=r"s3://bucket/a.parquet cannot be opened: Install s3fs"):
        open_files(["s3://bucket/a.parquet"])
    with pytest.raises(DataError, match=r"nix://a.parquet cannot be opened: Protocol not known"):
        open_files(["nix://a.parquet"])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["logs/b.csv"], r"Expected files at logs/b.csv; there is no such file in logs; did you mean 'a.csv'\?$"),
        (["logs/*.parquet"], "Expected files at logs/\\*.parquet; no file matches in logs"),
        (["nowhere/*.csv"], "the folder nowhere is not there"),
        (["empty"], "empty holds no table: expected files that end in .parquet"),
        (["logs/a.txt"], r"logs/a.txt: expected a file that ends in .parquet, .*, or the key `format`"),
        ([], "Expected files to read"),
    ],
)
def test_files_that_are_not_there_are_named(here: Path, files: list[str], message: str) -> None:
    (here / "logs").mkdir()
    (here / "empty").mkdir()
    (here / "logs" / "a.csv").write_text("a\n1\n")
    (here / "logs" / "a.txt").write_text("a\n1\n")
    with pytest.raises(DataError, match=message):
        open_files(files)


def test_the_format_may_be_stated(here: Path) -> None:
    (here / "a.txt").write_text("a;b\n1;2\n")
    assert read("a.txt", file_format="csv", separator=";").rows() == [(1, 2)]


def test_a_column_of_a_text_file_has_the_type_of_all_its_texts(here: Path) -> None:
    text = "whole,zeros,number,long,truth,word,none\n1,007,1.5,12345678901234567890,true,a,NA\n-20,8,NaN,3,False,,\n"
    (here / "a.csv").write_text(text)
    found = read("a.csv")
    assert found.drop("number").rows() == [
        (1, "007", "12345678901234567890", True, "a", None),
        (-20, "8", "3", False, None, None),
    ]
    assert found["number"].dtype == pl.Float64


def test_quotes_byte_order_marks_and_windows_line_ends_are_understood(here: Path) -> None:
    (here / "a.csv").write_bytes('\ufeff"a",b\r\n"1,5","two\nlines"\r\n\r\n"say ""hi""",x'.encode())
    assert read("a.csv").rows() == [("1,5", "two\nlines"), ('say "hi"', "x")]


def test_text_files_agree_on_wider_types(here: Path) -> None:
    (here / "a.csv").write_text("id,age,note\n12,1,\n")
    (here / "b.csv").write_text("id,age,note\nA7,1.5,x\n")
    assert read("a.csv", "b.csv").rows() == [("12", 1.0, None), ("A7", 1.5, "x")]


def test_parquet_files_agree_on_types_that_hold_all_values() -> None:
    pl.DataFrame({"id": pl.Series([1], dtype=pl.Int32), "tags": [[1]], "note": [None]}).write_parquet("a.parquet")
    pl.DataFrame({"id": [2.5], "tags": [[0.5]], "note": ["x"]}).write_parquet("b.parquet")
    assert read("a.parquet", "b.parquet").rows() == [(1.0, [1.0], None), (2.5, [0.5], "x")]


def test_only_wanted_columns_have_to_agree() -> None:
    pl.DataFrame({"id": [1], "other": [1]}).write_parquet("a.parquet")
    pl.DataFrame({"id": [2]}).write_parquet("b.parquet")
    assert read("a.parquet", "b.parquet", wanted={"id": ""}).rows() == [(1,), (2,)]


def two_files(one: pl.DataFrame, other: pl.DataFrame) -> Callable[[], None]:
    def write() -> None:
        one.write_parquet("one.parquet")
        other.write_parquet("other.parquet")

    return write


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (two_files(pl.DataFrame({"id": [1], "x": [1]}), pl.DataFrame({"id": [1], "y": [1]})),
         r"other.parquet: expected the column 'x', found only id, y"),
        (two_files(pl.DataFrame({"id": [1]}), pl.DataFrame({"id": ["a"]})),
         "The column 'id' should have one type in all files; found Int64 in one.parquet and String in other.parquet"),
        (two_files(pl.DataFrame({"id": [2**60]}), pl.DataFrame({"id": [1.0]})),
         "found Int64 in one.parquet, with numbers that a float cannot hold, and Float64 in other.parquet"),
        (two_files(pl.DataFrame({"id": [[1]]}), pl.DataFrame({"id": [1]})), r"found List\(Int64\) in one.parquet and"),
    ],
)  # fmt: skip
def test_files_that_disagree_are_both_named(write: Callable[[], None], message: str) -> None:
    write()
    with pytest.raises(DataError, match=message):
        open_files(["one.parquet", "other.parquet"]).table()


def damage(name: str) -> None:
    """Overwrite the middle of a file."""
    with Path(name).open("r+b") as file:
        file.seek(40)
        file.write(b"\x00" * 200)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-30]), "cannot be read as Parquet: it is cut off"),
        (lambda file: file.write_bytes(b""), "cannot be read as Parquet: it is cut off"),
        (lambda file: damage(str(file)), "cannot be read as Parquet: it is cut off"),
    ],
)
def test_a_damaged_parquet_file_is_named(here: Path, change: Callable[[Path], object], said: str) -> None:
    ROWS.write_parquet("a.parquet")
    shutil.copy("a.parquet", "b.parquet")
    change(here / "b.parquet")
    with pytest.raises(DataError, match=f"b.parquet {said}"):
        open_files(["a.parquet", "b.parquet"]).table().check_readable()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a.csv is empty: expected a header"),
        (
            "a,b\n1,2\n3\n",
            r"a.csv, line 3: expected 2 fields as in the header, found 1: '3'. Correct or remove the row",
        ),
        ("a,b\n1,2\n\n3,4,5\n", "a.csv, line 4: expected 2 fields as in the header, found 3: '3,4,5'"),
        ('a,b\n1,"2\n3,4\n5,6\n', "a.csv, line 2: .* a quote is never closed"),
        ('a,b\n1,"2\n3,4\n5",6\n', "a.csv, line 2: expected 2 fields as in the header, found 3"),
        ('a,b\n0,0\n1,"2\n3,4\n5,"6\n7,8\n', "a.csv, line 3: the row that begins there cannot be read"),
        ("a,b,a\n1,2,3\n", "a.csv: expected columns with different names, found twice: a"),
        (b"a,b\n1,\xe9\n", "a.csv, line 1 or soon after: expected text in UTF-8"),
    ],
)
def test_a_bad_row_of_a_text_file_is_named_with_its_line(here: Path, text: str | bytes, message: str) -> None:
    (here / "a.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        open_files(["a.csv"])


def test_a_bad_row_far_down_is_named(here: Path, cache: Path) -> None:
    lines = ["a,b", *(f"{i},{i}" for i in range(200_000))]
    lines[150_000] = "1,2,3"
    (here / "a.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"a.csv, line 150001: expected 2 fields"):
        open_files(["a.csv"])
    assert not [path for path in cache.rglob("*") if path.is_file() and path.parent.name == "text-files"]


def test_a_compressed_file_that_is_cut_off_is_named(here: Path) -> None:
    whole = gzip.compress(ROWS.write_csv().encode())
    (here / "a.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a.csv.gz cannot be read to its end: it is cut off or damaged"):
        open_files(["a.csv.gz"])


def test_another_separator_is_guessed_in_the_message(here: Path) -> None:
    (here / "a.csv").write_text("zip;age\n1;2\n")
    with pytest.raises(DataError, match=r"fields seem to be separated by ';': set `separator: \";\"`"):
        open_files(["a.csv"]).table({"zip": "features.zip"})


def test_text_is_parsed_once_for_as_long_as_it_stays_the_same(here: Path, cache: Path) -> None:
    for text in ["a\n1\n", "a\n1\n", "a\n2\n"]:
        (here / "a.csv").write_text(text)
        read("a.csv")
    assert len(list((cache / "text-files").iterdir())) == 2


def test_duplicate_columns_of_parquet_are_refused() -> None:
    import pyarrow.parquet as pq

    pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), "a.parquet")
    with pytest.raises(DataError, match=r"a.parquet: expected columns with different names, found twice: a"):
        open_files(["a.parquet"])


def test_rows_are_placed_in_their_files() -> None:
    for name, rows in {"a": 3, "b": 0, "c": 2}.items():
        ROWS[:rows].write_parquet(f"{name}.parquet")
    table = open_files(["a.parquet", "b.parquet", "c.parquet"]).table()
    assert [table.place(row) for row in (2, 3)] == [
        "row 2 (counted from 0) of a.parquet",
        "row 0 (counted from 0) of c.parquet",
    ]
