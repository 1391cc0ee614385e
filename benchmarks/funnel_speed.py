"""Rows per second and core of the generated funnel.

    python benchmarks/funnel_speed.py > benchmarks/results/funnel-speed.txt

Per second of CPU time, so that threads which a library starts count in full.
"""

import platform
import statistics
import time

import numpy as np
import torch

from equipoise.data.sets.funnel import Funnel, chunks, generate
from equipoise.measuring import cpu_name

ROWS, REPEATS = 2_000_000, 7


def main() -> None:
    torch.set_num_threads(1)
    funnel = Funnel(rows=ROWS)
    ways = {
        "chunks (rows stream by)": lambda: sum(len(chunk.labels) for chunk in chunks(funnel)),
        "generate (a checked Dataset)": lambda: len(generate(funnel).train),
    }
    print("python benchmarks/funnel_speed.py")
    print(f"{cpu_name()}; Python {platform.python_version()}, NumPy {np.__version__}, torch {torch.__version__}")
    print(f"{ROWS:,} rows, {len(funnel.id_fields)} id fields, {funnel.numerics} numbers, 4 tasks; {REPEATS} runs each")
    for name, way in ways.items():
        way()
        speeds = []
        for _ in range(REPEATS):
            started = time.process_time()
            way()
            speeds.append(ROWS / (time.process_time() - started) / 1e6)
        print(
            f"{name:29} median {statistics.median(speeds):.2f} million rows per second of CPU time "
            f"(from {min(speeds):.2f} to {max(speeds):.2f})"
        )


if __name__ == "__main__":
    main()
