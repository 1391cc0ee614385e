"""A file is replaced whole or not at all, and nothing else than a file is."""

import os
from pathlib import Path

import pytest

from equipoise.whole_files import replace_file, write_whole


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_file_is_replaced_whole_or_not_at_all(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "answer"
    path.write_text("old")

    def write(text: str) -> None:
        with replace_file(path) as temporary:
            assert temporary.parent == path.parent
            temporary.write_text(text)
            if text == "half":
                raise error
            assert path.read_text() == "old"

    with pytest.raises(error):
        write("half")
    assert path.read_text() == "old"
    write("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_pipe_or_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/null")):
        with pytest.raises(FileExistsError, match=f"Expected the name of a file to write, found a device .* {path}"):
            write_whole(path, "text")
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_folder_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match=f"found the folder {tmp_path}"), replace_file(tmp_path):
        raise AssertionError("the block must not run")
