"""Times the metrics of many predictions, and the memory that they take.

    python benchmarks/evaluation.py --out benchmarks/results/evaluation-cpu.json

Predictions and labels of all tasks lie in memory, as after a model has seen the rows; what is timed is `task_metrics`:
AUC, normalized entropy, log loss and calibration of each task, exactly. Each repetition is a process of its own, whose
peak of memory is set against that before the metrics.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from equipoise.measuring import cpu_name
from equipoise.ranking.metrics import task_metrics
from equipoise.schema import Numeric, Schema, Task

POSITIVES = 0.1


def measure(rows: int, tasks: int) -> dict[str, float]:
    """Return seconds, and the gigabytes above what predictions and labels take."""
    generator = torch.Generator().manual_seed(0)
    schema = Schema([], [Numeric("number")], [Task(f"task{task}") for task in range(tasks)])
    outputs = [torch.randn(rows, generator=generator) for _ in range(tasks)]
    labels = torch.rand(rows, tasks, generator=generator).lt_(POSITIVES)  # 0 and 1 in float32
    before, begin = peak(), time.perf_counter()
    task_metrics(schema, outputs, labels)
    return {"seconds": time.perf_counter() - begin, "gigabytes": peak() - before}


def peak() -> float:
    """Return the process's peak of resident memory, in GB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def page(found: dict[str, Any]) -> str:
    """Return the result in Markdown."""
    seconds, memory = ([run[name] for run in found["runs"]] for name in ("seconds", "gigabytes"))
    return "\n".join([
        f"# Metrics of {found['rows']:,} predictions × {found['tasks']} tasks: {found['cpu']}, "
        f"{found['threads']} threads",
        "",
        "Exact AUC, normalized entropy, log loss and calibration of each task; written by `python "
        "benchmarks/evaluation.py`.",
        "",
        "| | median | smallest | largest |",
        "|---|---:|---:|---:|",
        f"| seconds | {median(seconds):.2f} | {min(seconds):.2f} | {max(seconds):.2f} |",
        f"| GB above predictions and labels | {median(memory):.2f} | {min(memory):.2f} | {max(memory):.2f} |",
        "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--once", action="store_true", help="measure in this process, and write the figures to stdout")
    chosen = parser.parse_args()
    if chosen.once:
        sys.stdout.write(json.dumps(measure(chosen.rows, chosen.tasks)))
        return
    command = [
        sys.executable,
        __file__,
        "--once",
        "--out",
        "-",
        "--rows",
        str(chosen.rows),
        "--tasks",
        str(chosen.tasks),
    ]
    runs = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(chosen.repetitions)
    ]
    found = {
        "rows": chosen.rows, "tasks": chosen.tasks, "runs": runs, "cpu": cpu_name(), "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }  # fmt: skip
    chosen.out.write_text(json.dumps(found) + "\n")
    chosen.out.with_suffix(".md").write_text(page(found))
    sys.stdout.write(page(found))


if __name__ == "__main__":
    main()
