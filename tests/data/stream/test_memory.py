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
WIDTH, ROWS = 250, 10_000  # 10 MB a block


def peak() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


def write_and_stream(folder: str, count: int) -> int:
    def blocks(first: int) -> Iterator[dict[str, Split]]:
        for _ in range(first, count):
            ids, ones = torch.zeros(ROWS, 1, dtype=torch.int32), torch.ones(ROWS, 1)
            rows = Split(ids, torch.ones(ROWS, WIDTH), ones, ones[:, 0])
            yield {"train": rows, "validation": rows.take(slice(9)), "test": rows.take(slice(9))}

    about = About(name="wide", columns=Schema([Categorical("a", 2)], [Vector("v", WIDTH)], [Task("y")]))
    write_prepared(Path(folder), {}, lambda: Content(about, None, blocks))
    return sum(len(batch) for batch in StreamedBatches(folder, batch_size=500))


write_and_stream(sys.argv[1] + "-few", 5)  # 50 MB: several windows, and all that is imported on the way
few = peak()
print(write_and_stream(sys.argv[1] + "-many", 25), peak() - few)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the largest resident set is Linux's to tell")
def test_five_times_the_rows_take_no_more_memory(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", STREAMED, tmp_path / "out"], capture_output=True, text=True, check=True
    )  # fmt: skip
    rows, grown = map(int, found.stdout.split())
    assert rows == 250_000
    assert grown < 80  # megabytes; the rows alone are 200 more
