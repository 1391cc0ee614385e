"""Layouts of encoded rows in Parquet: bytes per row, and speed of writing and of reading into matrices.

    python benchmarks/stream_layouts.py --out benchmarks/results/stream-layouts.md

A million rows of 26 ids, 13 numbers and 2 labels, in row groups of 65,536. Layouts: a column per feature; a fixed-size
list of all ids and one of all numbers; the same as opaque bytes, which others cannot interpret. The best of a few
readings from the page cache is quoted: what is compared is the work of decoding.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from equipoise.measuring import cpu_name

ROWS, GROUP, READINGS = 1 << 20, 1 << 16, 5
WIDTHS = (26, 13, 2)
ENCODINGS: dict[str, dict[str, Any]] = {
    "uncompressed": {"compression": "none", "use_dictionary": False},
    "LZ4": {"compression": "lz4", "use_dictionary": False},
    "LZ4, dictionaries": {"compression": "lz4", "use_dictionary": True},
    "ZSTD 1": {"compression": "zstd", "compression_level": 1, "use_dictionary": False},
    "ZSTD 1, bytes split": {
        "compression": "zstd", "compression_level": 1, "use_dictionary": False, "use_byte_stream_split": True
    },
}  # fmt: skip

Matrix = NDArray[Any]


def made_up() -> list[Matrix]:
    """Return ids with a heavy tail, numbers, and rare labels."""
    rng = np.random.default_rng(0)
    ids = np.minimum(rng.zipf(1.3, (ROWS, WIDTHS[0])), 1_000_000).astype(np.int32)
    numbers = rng.standard_normal((ROWS, WIDTHS[1]), np.float32)
    return [ids, numbers, (rng.random((ROWS, WIDTHS[2])) < 0.05).astype(np.float32)]


def columns(matrices: list[Matrix]) -> list[pa.Array]:
    return [pa.array(np.ascontiguousarray(column)) for matrix in matrices for column in matrix.T]


def lists(matrices: list[Matrix]) -> list[pa.Array]:
    found = []
    for matrix in matrices:
        item = pa.field("item", pa.from_numpy_dtype(matrix.dtype), nullable=False)
        values = pa.array(matrix.reshape(-1))
        found.append(pa.FixedSizeListArray.from_arrays(values, type=pa.list_(item, matrix.shape[1])))
    return found


def opaque(matrices: list[Matrix]) -> list[pa.Array]:
    return [
        pa.FixedSizeBinaryArray.from_buffers(pa.binary(matrix.shape[1] * 4), ROWS, [None, pa.py_buffer(matrix)])
        for matrix in matrices
    ]


def from_columns(table: pa.Table) -> list[Matrix]:
    found, first = [], 0
    for width, dtype in zip(WIDTHS, (np.int32, np.float32, np.float32), strict=True):
        matrix = np.empty((len(table), width), dtype)
        for i in range(width):
            matrix[:, i] = table[first + i].to_numpy()
        found.append(matrix)
        first += width
    return found


def from_lists(table: pa.Table) -> list[Matrix]:
    return [
        np.concatenate([chunk.flatten().to_numpy() for chunk in column.chunks]).reshape(len(table), -1)
        for column in table.columns
    ]


def from_opaque(table: pa.Table) -> list[Matrix]:
    return [np.frombuffer(column.chunk(0).buffers()[1], np.int32) for column in table.columns]


LAYOUTS: dict[str, tuple[Callable[[list[Matrix]], list[pa.Array]], Callable[[pa.Table], list[Matrix]]]] = {
    "a column per feature": (columns, from_columns),
    "fixed-size lists": (lists, from_lists),
    "opaque bytes": (opaque, from_opaque),
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--out", type=Path)
    chosen = arguments.parse_args()
    pa.set_cpu_count(chosen.threads)
    matrices = made_up()
    lines = [
        f"# Layouts of encoded rows in Parquet: {cpu_name()}, {chosen.threads} threads",
        "",
        f"{ROWS:,} rows of {WIDTHS[0]} ids, {WIDTHS[1]} numbers and {WIDTHS[2]} labels, row groups of {GROUP:,}; "
        f"pyarrow {pa.__version__}; best of {READINGS} readings from the page cache;",
        f"written by `python {' '.join(sys.argv)}`.",
        "",
        "| layout | encoding | bytes per row | written, million rows/s | read, million rows/s |",
        "|---|---|---:|---:|---:|",
    ]
    with TemporaryDirectory() as folder:
        file = Path(folder) / "rows.parquet"
        for layout, (pack, unpack) in LAYOUTS.items():
            arrays = pack(matrices)
            fields = [pa.field(f"c{i}", array.type, nullable=False) for i, array in enumerate(arrays)]
            table = pa.table(arrays, schema=pa.schema(fields))
            for encoding, options in ENCODINGS.items():
                started = time.perf_counter()
                pq.write_table(table, file, row_group_size=GROUP, write_statistics=False, **options)
                written = ROWS / (time.perf_counter() - started)
                seconds = []
                for _ in range(READINGS):
                    started = time.perf_counter()
                    with pq.ParquetFile(file) as opened:
                        for group in range(opened.num_row_groups):
                            unpack(opened.read_row_group(group))
                    seconds.append(time.perf_counter() - started)
                lines.append(
                    f"| {layout} | {encoding} | {file.stat().st_size / ROWS:.0f} | {written / 1e6:.1f} | "
                    f"{ROWS / min(seconds) / 1e6:.1f} |"
                )
                print(lines[-1], flush=True)
    if chosen.out is not None:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
