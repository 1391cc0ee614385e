"""Memory is bounded by two windows, whatever the number of rows."""

import subprocess
import sys
from pathlib import Path

import pytest

STREAMED = """
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from equipoise.data import Split, StreamedBatches
from equipoise.data.stream import About, Content, layout, write_prepared
from equipoise.schema import Categorical, Schema, Task, Vector

layout._GROUP_ROWS = 512  # a window takes 8 MB then
WIDTH, ROWS, BLOCKS = 250, 10_000, 20  # 10 MB a block, 200 MB in all


def peak() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


def blocks(first: int) -> Iterator[dict[str, Split]]:
    for _ in range(first, BLOCKS):
        ids, ones = torch.zeros(ROWS, 1, dtype=torch.int32), torch.ones(ROWS, 1)
        rows = Split(ids, torch.ones(ROWS, WIDTH), ones, ones[:, 0])
        yield {"train": rows, "validation": rows.take(slice(9)), "test": rows.take(slice(9))}


about = About(name="wide", columns=Schema([Categorical("a", 2)], [Vector("v", WIDTH)], [Task("y")]))
before = peak()
write_prepared(Path(sys.argv[1]), {}, lambda: Content(about, None, blocks))
written = peak()
rows = sum(len(batch) for batch in StreamedBatches(sys.argv[1], batch_size=500))
print(rows, written - before, peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the largest resident set is Linux's to tell")
def test_two_hundred_megabytes_are_written_and_streamed_in_a_fraction_of_that(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", STREAMED, tmp_path / "out"], capture_output=True, text=True, check=True
    )  # fmt: skip
    rows, written, streamed = map(int, found.stdout.split())
    assert rows == 200_000
    assert written < 150
    assert streamed < 150
