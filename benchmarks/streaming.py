"""Data beyond memory: preparation and streaming of a made-up click log, and loaders side by side.

    python benchmarks/streaming.py --rows 5000000 --out benchmarks/results/streaming.json

Three steps, each skipped with `--rounds 0`, or where the folder holds its result already:

1. A click log of 26 columns of ids and 13 of numbers is written as Parquet, a million rows at a time.
2. A process of its own prepares it, and another streams one epoch of it in batches of 4096; the largest amount of
   memory that each held (its resident set) is noted.
3. Loaders take turns in one process, in an order drawn anew in each round; equipoise's speed is divided by the
   loader's in the same round, and the median over the rounds is quoted with its 95 % interval by order statistics. Rows
   per second of CPU, of all threads together, are what a busy machine disturbs least.

torch-rechub 0.9 is measured by its own classes if it is installed: `DataGenerator`, as all its examples use it, and
`ParquetIterableDataset`, which does not shuffle and gives one tensor per column.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from equipoise.data import StreamedBatches, from_prepared, prepare
from equipoise.measuring import cpu_name, median_interval
from result_files import write_result

IDS, NUMBERS, BATCH = 26, 13, 4096
FILE_ROWS = 1 << 20
CARDINALITIES = np.geomspace(10, 1_000_000, IDS).astype(int)
IN_MEMORY_ROWS = 1 << 20  # what the loaders that hold their rows in memory are given
OURS = "equipoise"


def write_log(folder: Path, rows: int) -> None:
    """Write the click log: ids of a heavy tail, numbers of which a tenth is missing, labels that depend on both."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, first in enumerate(range(0, rows, FILE_ROWS)):
        count, rng = min(FILE_ROWS, rows - first), np.random.default_rng(part)
        columns: dict[str, Any] = {"ts": 1_700_000_000 + (first + np.arange(count)) // 50}
        for i, cardinality in enumerate(CARDINALITIES):
            columns[f"c{i}"] = (cardinality * rng.random(count) ** 3).astype(np.int32)
        for i in range(NUMBERS):
            values = rng.standard_normal(count, np.float32)
            columns[f"x{i}"] = pa.array(values, mask=rng.random(count) < 0.1)
        chance = 0.05 + 0.05 * (columns["c0"] < 2)
        columns["click"] = (rng.random(count) < chance).astype(np.int8)
        columns["buy"] = columns["click"] & (rng.random(count) < 0.1)
        temporary = folder / f".{part:04d}.tmp"
        pq.write_table(pa.table(columns), temporary, compression="zstd", compression_level=1)
        temporary.replace(folder / f"{part:04d}.parquet")


def description(log: Path) -> dict[str, Any]:
    """Return the description of the log, as the `data` section of a settings file holds it."""
    features: dict[str, Any] = {f"c{i}": {"kind": "category", "min_count": 2} for i in range(IDS)}
    features |= {f"x{i}": {"kind": "number", "indicator": False} for i in range(NUMBERS)}
    tasks = {"click": "click", "buy": {"label": "buy", "after": "click"}}
    split = {"validation": 0.05, "test": 0.05}
    return {"files": [str(log)], "time": "ts", "features": features, "tasks": tasks, "split": split}


def prepare_log(log: Path, out: Path) -> dict[str, Any]:
    """Prepare the log."""
    return {"rows": sum(prepare(description(log), out).rows().values())}


def stream_once(folder: Path) -> dict[str, Any]:
    """Stream one epoch."""
    return {"rows": sum(len(batch) for batch in StreamedBatches(folder, batch_size=BATCH, rank=0, world=1))}


STEPS: dict[str, Callable[..., dict[str, Any]]] = {"prepare": prepare_log, "stream": stream_once}


def measured(step: str, *arguments: Path) -> dict[str, Any]:
    """Run one step in a process of its own; return its result with seconds and the largest resident set."""
    command = [sys.executable, __file__, "--step", step, *map(str, arguments)]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(json.loads(found.splitlines()[-1]))


class RowByRow(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Rows in memory, each returned on its own for the default collation, as PyTorch's tutorials do it."""

    def __init__(self, ids: Tensor, numbers: Tensor, labels: Tensor) -> None:
        self.columns = (ids, numbers, labels)

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor, Tensor]:
        ids, numbers, labels = self.columns
        return ids[row], numbers[row], labels[row]


def loaders(folder: Path) -> dict[str, Callable[[], Iterator[Any]]]:
    """Return what begins an epoch of each loader."""
    epoch = iter(range(1_000_000))
    stream = StreamedBatches(folder, batch_size=BATCH, rank=0, world=1)
    rows = from_prepared(folder).train.take(slice(IN_MEMORY_ROWS))
    row_by_row = RowByRow(rows.categorical.long(), rows.numeric, rows.labels)

    def ours() -> Iterator[Any]:
        stream.set_epoch(next(epoch))
        return iter(stream)

    def in_memory() -> Iterator[Any]:
        return rows.batches(BATCH, generator=torch.Generator().manual_seed(next(epoch)))

    found: dict[str, Callable[[], Iterator[Any]]] = {
        OURS: ours,
        "equipoise, rows in memory": in_memory,
        "DataLoader, row by row": lambda: iter(DataLoader(row_by_row, batch_size=BATCH, shuffle=True)),
        "DataLoader, row by row, 2 workers": lambda: iter(
            DataLoader(row_by_row, batch_size=BATCH, shuffle=True, num_workers=2)
        ),
    }
    return found | torch_rechub(folder, rows.categorical.numpy(), rows.numeric.numpy(), rows.labels.numpy())


def torch_rechub(
    folder: Path, ids: np.ndarray, numbers: np.ndarray, labels: np.ndarray
) -> dict[str, Callable[[], Iterator[Any]]]:
    """Return the loaders of torch-rechub; none if it is not installed."""
    try:
        from torch_rechub.data.dataset import ParquetIterableDataset  # noqa: PLC0415 - optional
        from torch_rechub.utils.data import DataGenerator  # noqa: PLC0415 - optional
    except ModuleNotFoundError:
        return {}
    x = {f"c{i}": ids[:, i].copy() for i in range(IDS)} | {f"x{i}": numbers[:, i].copy() for i in range(NUMBERS)}
    generator = DataGenerator(x, labels)
    parts = sorted(str(path) for path in (folder / "train").glob("*.parquet"))
    columns = [*x, "click", "buy"]

    def generated(workers: int) -> Iterator[Any]:
        few = {name: values[:2] for name, values in x.items()}
        loader, _, _ = generator.generate_dataloader(
            x_val=few, y_val=labels[:2], x_test=few, y_test=labels[:2], batch_size=BATCH, num_workers=workers
        )
        return iter(loader)

    return {
        "torch-rechub DataGenerator": lambda: generated(0),
        "torch-rechub DataGenerator, 2 workers": lambda: generated(2),
        "torch-rechub ParquetIterableDataset (not shuffled)": lambda: iter(
            DataLoader(ParquetIterableDataset(parts, columns=columns, batch_size=BATCH), batch_size=None)
        ),
    }


def rows_per_second(begin: Callable[[], Iterator[Any]], batches: int) -> tuple[float, float]:
    """Return the speed over some batches, from the first call to the last batch: per second, and per second of CPU."""
    started, used = time.perf_counter(), time.process_time()
    epoch = begin()
    taken = sum(1 for _ in islice(epoch, batches))
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - used
    del epoch  # ends its workers, outside of the time
    return taken * BATCH / seconds, taken * BATCH / cpu_seconds


def side_by_side(folder: Path, rounds: int, batches: int) -> list[dict[str, Any]]:
    """Return the median speed of each loader, and its ratio to equipoise with an interval."""
    contenders, order = loaders(folder), random.Random(0)
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    by_cpu: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name in order.sample(list(contenders), len(contenders)):
            slow = "DataLoader" in name or "DataGenerator" in name
            speed, per_cpu = rows_per_second(contenders[name], max(4, batches // 32) if slow else batches)
            if turn:  # the first round warms up
                speeds[name].append(speed)
                by_cpu[name].append(per_cpu)
    found = []
    for name in contenders:
        ratios = [ours / own for own, ours in zip(speeds[name], speeds[OURS], strict=True)]
        low, high = median_interval(ratios)
        found.append(
            {
                "loader": name, "rows_per_second": statistics.median(speeds[name]),
                # the CPU time of workers is not this process's
                "rows_per_cpu_second": None if "workers" in name else statistics.median(by_cpu[name]),
                "slower_by": statistics.median(ratios), "low": low, "high": high, "rounds": rounds,
            }
        )  # fmt: skip
    return found


def markdown(result: dict[str, Any]) -> str:
    """Return the result as a page."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    lines = [
        f"# Streaming {result['log_rows']:,} rows from local Parquet: {result['machine']}, {result['threads']} threads",
        "",
        f"{IDS} columns of ids, {NUMBERS} of numbers, 2 labels, batches of {BATCH}; {versions};",
        f"written by `{result['command']}`.",
        "",
        "| step, in a process of its own | rows | seconds | rows per second | most memory held |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {step['step']} | {step['rows']:,} | {step['seconds']:.0f} | {step['rows'] / step['seconds']:,.0f} | "
        f"{step['peak_bytes'] / 1e9:.2f} GB |"
        for step in result["steps"]
    ]
    lines += [
        "",
        f"The log takes {result['log_bytes'] / 1e9:.2f} GB, the prepared folder "
        f"{result['prepared_bytes'] / 1e9:.2f} GB.",
        "",
        "Loaders in turns, median over the rounds; equipoise's speed over the loader's, with its 95 % interval:",
        "",
        "| loader | rows per second | per second of CPU | equipoise is faster by | interval | rounds |",
        "|---|---:|---:|---:|---|---:|",
    ]
    lines += [
        f"| {row['loader']} | {row['rows_per_second']:,.0f} | {figure(row['rows_per_cpu_second'])} | "
        f"×{row['slower_by']:.2f} | {row['low']:.2f} to {row['high']:.2f} | {row['rounds']} |"
        for row in result["loaders"]
    ]
    return "\n".join(lines) + "\n"


def figure(number: float | None) -> str:
    return "" if number is None else f"{number:,.0f}"


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--rows", type=int, default=5_000_000)
    arguments.add_argument("--folder", type=Path, default=Path("streaming-benchmark"), help="for log and prepared data")
    arguments.add_argument("--rounds", type=int, default=20)
    arguments.add_argument("--batches", type=int, default=512, help="of a fast loader in each round")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--out", type=Path)
    arguments.add_argument("--step", nargs="+", help=argparse.SUPPRESS)  # in a process of its own
    chosen = arguments.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.step:
        name, *paths = chosen.step
        started = time.perf_counter()
        found = STEPS[name](*map(Path, paths))
        used = {"seconds": time.perf_counter() - started, "peak_bytes": 1024 * peak_kilobytes()}
        print(json.dumps({"step": name} | found | used))
        return
    log, prepared, noted = chosen.folder / "log", chosen.folder / "prepared", chosen.folder / "steps.json"
    if not log.is_dir():
        write_log(log, chosen.rows)
    if not noted.is_file():
        noted.write_text(json.dumps([measured("prepare", log, prepared), measured("stream", prepared)]))
    steps = json.loads(noted.read_text())
    for step in steps:
        print(step, flush=True)
    rows = side_by_side(prepared, chosen.rounds, chosen.batches) if chosen.rounds else []
    for row in rows:
        print(row, flush=True)
    result = {
        "command": " ".join(["python", *sys.argv]), "machine": cpu_name(), "cores": os.cpu_count(),
        "threads": chosen.threads, "log_rows": chosen.rows,
        "log_bytes": size_of(log), "prepared_bytes": size_of(prepared),
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__, "pyarrow": pa.__version__,
            "torch-rechub": installed("torch-rechub"),
        },
        "steps": steps, "loaders": rows,
    }  # fmt: skip
    if chosen.out is not None:
        write_result(chosen.out, result, markdown(result))


def peak_kilobytes() -> int:
    """Return the largest resident set that this process had; not inherited from its parent, as ru_maxrss is."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1])


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
