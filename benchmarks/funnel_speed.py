"""Rows per second and core of the generated funnel: `python benchmarks/funnel_speed.py`."""

import os
import platform
import statistics
import time

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # before the libraries start their threads

import numpy as np  # noqa: E402
import torch  # noqa: E402

from equipoise.data.funnel import Funnel, chunks, generate  # noqa: E402

ROWS, REPEATS = 2_000_000, 7


def processor() -> str:
    try:
        with open("/proc/cpuinfo") as info:  # noqa: PTH123
            return next(line.split(":")[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    funnel = Funnel(rows=ROWS)
    ways = {
        "chunks (rows stream by)": lambda: sum(len(chunk.labels) for chunk in chunks(funnel)),
        "generate (a checked Dataset)": lambda: len(generate(funnel).train),
    }
    print(f"{processor()}, 1 thread, {REPEATS} runs each")
    print(f"Python {platform.python_version()}, NumPy {np.__version__}, torch {torch.__version__}")
    print(f"{ROWS:,} rows, {len(funnel.id_fields)} id fields, {funnel.numerics} numbers, 4 tasks")
    for name, way in ways.items():
        way()
        wall, cpu = [], []
        for _ in range(REPEATS):
            start = time.perf_counter(), time.process_time()
            way()
            wall.append(ROWS / (time.perf_counter() - start[0]) / 1e6)
            cpu.append(ROWS / (time.process_time() - start[1]) / 1e6)
        print(
            f"{name:29} median {statistics.median(wall):.2f} million rows/s "
            f"(from {min(wall):.2f} to {max(wall):.2f}); per second of CPU time {statistics.median(cpu):.2f}"
        )


if __name__ == "__main__":
    main()
