"""A preparation goes on after a kill, and refuses what does not belong together."""

import errno
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from equipoise.data import DataError, from_prepared
from equipoise.data.stream import About, Block, Content, read_manifest, write_prepared
from tests.data.stream.made_up import ABOUT, made_up_blocks, prepare_made_up

ROWS = [9, 4, 30, 1]


class KilledError(Exception):
    """Stands for a signal in the middle of a preparation."""


def noted(blocks: list[Block], seen: list[int], until: int = 99, about: About = ABOUT) -> Callable[[], Content]:
    """Return the content of these blocks, which notes their places and is killed at one of them."""

    def found(first: int) -> Iterator[Block]:
        for place in range(first, len(blocks)):
            if place == until:
                raise KilledError
            seen.append(place)
            yield blocks[place]

    return lambda: Content(about, None, found)


def test_a_killed_preparation_goes_on_after_the_last_whole_block(tmp_path: Path) -> None:
    blocks, seen = made_up_blocks(ROWS), list[int]()
    with pytest.raises(KilledError):
        write_prepared(tmp_path / "out", {"seed": 1}, noted(blocks, seen, until=2))
    with pytest.raises(DataError, match=r"found an unfinished preparation in .*: prepare it again"):
        from_prepared(tmp_path / "out")
    (tmp_path / "out/train/.part-00002.parquet.5f.tmp").write_bytes(b"half a part")
    (tmp_path / "out/train/part-00002.parquet").write_bytes(b"a part that was not noted")
    with (tmp_path / "out/journal.jsonl").open("a") as file:
        file.write('[{"split": "tra')  # cut off in the middle of a line
    manifest = write_prepared(tmp_path / "out", {"seed": 1}, noted(blocks, seen))
    assert seen == [0, 1, 2, 3]
    whole = read_manifest(prepare_made_up(tmp_path / "whole", ROWS))
    assert manifest.parts == whole.parts
    assert from_prepared(tmp_path / "out").fingerprint() == from_prepared(tmp_path / "whole").fingerprint()
    files = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    assert files == {"manifest.json", *(part.file for part in manifest.parts)}


@pytest.mark.parametrize("harm", ["changed", "cut off", "missing"])
def test_a_part_that_is_not_whole_is_written_again_with_those_after_it(tmp_path: Path, harm: str) -> None:
    blocks, seen = made_up_blocks(ROWS), list[int]()
    with pytest.raises(KilledError):
        write_prepared(tmp_path / "out", {}, noted(blocks, seen, until=3))
    part = tmp_path / "out/test/part-00001.parquet"
    content = part.read_bytes()
    if harm == "missing":
        part.unlink()
    else:
        part.write_bytes(content[:-9] if harm == "cut off" else bytes([content[0] ^ 1]) + content[1:])
    seen.clear()
    write_prepared(tmp_path / "out", {}, noted(blocks, seen))
    assert seen == [1, 2, 3]
    assert part.read_bytes() == content


def test_a_finished_folder_is_not_written_again(tmp_path: Path) -> None:
    seen: list[int] = []
    for _ in range(2):
        write_prepared(tmp_path / "out", {"seed": 1}, noted(made_up_blocks(ROWS), seen))
    assert seen == [0, 1, 2, 3]


def test_a_finished_folder_with_a_changed_part_is_not_called_done(tmp_path: Path) -> None:
    """Its size is as before, which is all that a reader of the manifest looks at."""
    write_prepared(tmp_path, {}, noted(made_up_blocks(ROWS), []))
    part = tmp_path / "train/part-00002.parquet"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    with pytest.raises(DataError, match=f"{part} was changed since its preparation: put it back, or remove the folder"):
        write_prepared(tmp_path, {}, noted(made_up_blocks(ROWS), []))


def test_other_facts_about_the_same_files_are_refused(tmp_path: Path) -> None:
    blocks = made_up_blocks(ROWS)
    with pytest.raises(KilledError):
        write_prepared(tmp_path / "out", {}, noted(blocks, [], until=2))
    other = ABOUT.model_copy(update={"epochs": 3})
    with pytest.raises(DataError, match="An earlier call found other facts about the same files"):
        write_prepared(tmp_path / "out", {}, noted(blocks, [], about=other))


def test_two_processes_cannot_prepare_one_folder(tmp_path: Path) -> None:
    blocks, seen = made_up_blocks(ROWS), list[int]()

    def meanwhile(first: int) -> Iterator[Block]:
        with pytest.raises(DataError, match=r"Another process prepares .*out: wait until it is done"):
            write_prepared(tmp_path / "out", {}, noted(blocks, seen))
        yield from blocks[first:]

    write_prepared(tmp_path / "out", {}, lambda: Content(ABOUT, None, meanwhile))
    assert not seen
    assert read_manifest(tmp_path / "out").rows()["train"] == sum(ROWS)


@pytest.mark.parametrize("until", [2, 99])
def test_other_files_or_settings_are_refused(tmp_path: Path, until: int) -> None:
    made_from = {"files": {"a.csv": {"size": 5}}, "settings": {"split": {"seed": 0}}}
    blocks = noted(made_up_blocks(ROWS), [], until=until)
    try:
        write_prepared(tmp_path / "out", made_from, blocks)
    except KilledError:
        assert until == 2
    made_from["settings"]["split"]["seed"] = 1
    with pytest.raises(DataError, match=r"other files or settings:\n  settings.split.seed: 0 there, 1 now\nName"):
        write_prepared(tmp_path / "out", made_from, blocks)


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="Expected an empty folder or none yet, found something else"):
        prepare_made_up(tmp_path, ROWS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(DataError, match=r"something else at .*thesis\.tex"):
        prepare_made_up(tmp_path / "thesis.tex", ROWS)


def test_a_lack_of_space_names_the_folder_and_keeps_whole_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    blocks, seen = made_up_blocks(ROWS), list[int]()
    with pytest.raises(KilledError):
        write_prepared(tmp_path / "out", {}, noted(blocks, seen, until=1))
    with monkeypatch.context() as patched:
        patched.setattr(pq.ParquetWriter, "write_table", full)
        with pytest.raises(OSError, match=r"No space is left in .*out") as caught:
            write_prepared(tmp_path / "out", {}, noted(blocks, seen))
    assert caught.value.errno == errno.ENOSPC
    assert not list((tmp_path / "out").rglob("*.tmp"))
    seen.clear()
    write_prepared(tmp_path / "out", {}, noted(blocks, seen))
    assert seen == [1, 2, 3]


def test_values_that_the_schema_does_not_allow_are_refused_before_they_are_written(tmp_path: Path) -> None:
    blocks = made_up_blocks(ROWS)
    blocks[1]["test"].categorical[2, 0] = 50
    with pytest.raises(DataError, match=r"made up, test split, block 1: .*'user' should hold ids from 0 to 49"):
        write_prepared(tmp_path / "out", {}, noted(blocks, []))
    assert not (tmp_path / "out/train/part-00001.parquet").exists()


def test_a_split_without_rows_is_refused(tmp_path: Path) -> None:
    blocks = [{"train": block["train"], "test": block["test"]} for block in made_up_blocks(ROWS)]
    with pytest.raises(DataError, match="made up, validation split: expected at least one row, found none"):
        write_prepared(tmp_path / "out", {}, noted(blocks, []))


def test_any_reader_of_parquet_finds_the_columns_by_name(prepared: Path) -> None:
    table = pq.read_table(prepared / "train/part-00000.parquet")
    assert table.column_names == [
        "user", "history", "age", "image", "click", "spend", "row.weight", "row.importance", "key.row"
    ]  # fmt: skip
    assert table["age"].to_pylist() == [float(row) for row in range(9)]
    assert len(table["history"][0].as_py()) == 3


class TestDamagedFolders:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return prepare_made_up(tmp_path / "out", ROWS)

    def test_not_a_prepared_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"Expected a prepared folder with a manifest.json, found none in"):
            from_prepared(tmp_path)

    def test_a_missing_part(self, folder: Path) -> None:
        (folder / "test/part-00001.parquet").unlink()
        with pytest.raises(DataError, match=r"A part of the prepared data is missing: .*test/part-00001.parquet"):
            from_prepared(folder)

    def test_a_truncated_part(self, folder: Path) -> None:
        part = folder / "train/part-00002.parquet"
        part.write_bytes(part.read_bytes()[:-100])
        with pytest.raises(DataError, match=r"Expected [\d,]+ bytes in .*train/part-00002.parquet, found [\d,]+"):
            from_prepared(folder)

    def test_a_changed_page(self, folder: Path) -> None:
        dataset = from_prepared(folder)
        part = folder / "train/part-00002.parquet"
        content = bytearray(part.read_bytes())
        content[200] ^= 255
        part.write_bytes(content)
        with pytest.raises(
            DataError, match=r"Row group 0 of .*train/part-00002.parquet cannot be read .*changed since"
        ):
            list(dataset.train.batches(8))

    def test_a_manifest_of_another_version(self, folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | {"version": 7}))
        with pytest.raises(DataError, match="Expected a manifest of version 1, found version 7"):
            from_prepared(folder)

    def test_a_damaged_manifest(self, folder: Path) -> None:
        text = (folder / "manifest.json").read_text()
        (folder / "manifest.json").write_text(text[: len(text) // 2])
        with pytest.raises(DataError, match=r"manifest\.json is damaged"):
            from_prepared(folder)
        (folder / "manifest.json").write_text(text.replace('"size"', '"length"'))
        with pytest.raises(DataError, match=r"manifest.json is damaged \(parts.0.size"):
            from_prepared(folder)

    def test_a_manifest_of_something_else(self, folder: Path) -> None:
        (folder / "manifest.json").write_text('{"name": "my-app"}')
        with pytest.raises(DataError, match="Expected a manifest of prepared data, found another file"):
            from_prepared(folder)
