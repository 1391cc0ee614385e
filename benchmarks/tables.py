"""Time of a training step by the number of rows in the embedding table: Adam, and row-wise Adagrad.

    python benchmarks/tables.py --out benchmarks/results/tables-cpu.json

Adam steps every row of a table, row-wise Adagrad with sparse gradients those that a batch looks up. Contenders take
turns; a contender's time is the median of its steps' processor time, so that other programs do not count.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from equipoise.measuring import cpu_name, median_interval
from equipoise.schema import Batch, Categorical, Numeric, Schema, Task
from equipoise.settings import TrainingSettings
from equipoise.training import METHODS, Learner
from result_files import write_result

FIELDS, DIMENSION, ROWS = 16, 16, 2048
TABLE_ROWS = (16_384, 65_536, 262_144, 1_048_576, 8_388_608)
WARM_UP = 2
ADAM, DENSE, SPARSE = "Adam", "row-wise Adagrad, all rows", "row-wise Adagrad, the batch's rows"


def learner(rows: int, contender: str) -> Learner:
    schema = Schema(
        [Categorical(f"field{field}", rows // FIELDS) for field in range(FIELDS)],
        [Numeric("number")],
        [Task("click"), Task("like")],
    )
    settings = TrainingSettings.of(
        lr=1e-3, seed=0, model_options={"embedding_dim": DIMENSION},
        table_optimizer="same" if contender == ADAM else "rowwise-adagrad",
    )  # fmt: skip
    built = Learner(schema, METHODS["multibalance"], settings)
    for part in built.model().models[0].modules():
        if isinstance(part, torch.nn.Embedding):
            part.sparse = contender == SPARSE
    return built


def batches(rows: int, count: int = 4) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [
        Batch(
            torch.randint(rows // FIELDS, (ROWS, FIELDS), generator=generator),
            torch.randn(ROWS, 1, generator=generator),
            torch.randint(2, (ROWS, 2), generator=generator).float(),
            torch.ones(ROWS),
        )
        for _ in range(count)
    ]


def measure(rows: int, steps: int) -> dict[str, Any]:
    contenders = {name: learner(rows, name) for name in (ADAM, DENSE, SPARSE)}
    data = batches(rows)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(WARM_UP + steps):
        for name, own in contenders.items():
            begun = time.process_time()
            own.step(data[turn % len(data)])
            if turn >= WARM_UP:
                seconds[name].append(time.process_time() - begun)
    ratios = [own / adam for own, adam in zip(seconds[SPARSE], seconds[ADAM], strict=True)]
    low, high = median_interval(ratios)
    return {
        "rows": rows,
        "ms": {name: 1e3 * statistics.median(found) for name, found in seconds.items()},
        "ratio": statistics.median(ratios), "low": low, "high": high, "pairs": len(ratios),
    }  # fmt: skip


def markdown(result: dict[str, Any]) -> str:
    lines = [
        f"# A training step by the rows of the embedding table: {result['machine']}, one thread, processor time", "",
        f"{result['workload']}; {', '.join(map(' '.join, result['versions'].items()))}.",
        "Medians in milliseconds; the ratio is that of row-wise Adagrad on the batch's rows to Adam (95 % interval);",
        f"written by `{result['command']}`.",
        "", f"| rows | {ADAM} | {DENSE} | {SPARSE} | ratio | interval | pairs |", "|---:|---:|---:|---:|---:|---|---:|",
    ]  # fmt: skip
    for row in result["rows"]:
        times = " | ".join(f"{row['ms'][name]:.1f}" for name in (ADAM, DENSE, SPARSE))
        interval = f"{row['low']:.2f} to {row['high']:.2f}"
        lines.append(f"| {row['rows']:,} | {times} | ×{row['ratio']:.2f} | {interval} | {row['pairs']} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--steps", type=int, default=20)
    arguments.add_argument("--out", type=Path, required=True)
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    result = {
        "command": shlex.join(["python", *sys.argv]),
        "workload": f"{FIELDS} fields x {DIMENSION}, shared bottom with MultiBalance, 2 tasks, batch {ROWS}",
        "machine": cpu_name(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "rows": [measure(rows, chosen.steps) for rows in TABLE_ROWS],
    }
    write_result(chosen.out, result, markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
