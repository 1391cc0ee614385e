"""Latency and rows per second of an exported ranker behind HTTP, at 1 and 16 requests at a time.

    python benchmarks/serving.py --out benchmarks/results/serving

Trains an MMoE for two tasks on generated rows with 26 ids of 1,000 values each and 13 numbers, exports it, and starts
``examples/serve_http.py`` in a process of its own, with one thread for the program. This process is the client (httpx).
Both share the machine, so the client's own work counts, too: about a millisecond per request. Latency grows with
whatever else runs there (the result states the load); the server's CPU time per row hardly does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import onnxruntime
import polars as pl
import torch

import equipoise
from equipoise.data import from_frame
from equipoise.measuring import cpu_name

SERVER = Path(__file__).resolve().parents[1] / "examples" / "serve_http.py"
IDS, NUMBERS, VALUES = 26, 13, 1000
PROGRAMS = ("torch", "onnx")
CONCURRENCIES = (1, 16)
ROWS_PER_REQUEST = (1, 64)


def generated(count: int, seed: int = 0) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    ids = {f"id_{place}": random.integers(0, VALUES, count) for place in range(IDS)}
    numbers = {f"number_{place}": random.normal(0, 1, count).round(3) for place in range(NUMBERS)}
    click = random.random(count) < 0.3
    labels = {"click": click.astype(int), "buy": (click & (random.random(count) < 0.3)).astype(int)}
    return pl.DataFrame(ids | numbers | labels)


def export(folder: Path) -> None:
    features = {f"id_{place}": {"kind": "category", "min_count": 1} for place in range(IDS)}
    features |= {f"number_{place}": {"kind": "number"} for place in range(NUMBERS)}
    config = {"features": features, "tasks": {"click": "click", "buy": "buy"}, "split": {"by": "random"}}
    dataset = from_frame(generated(30_000), config)
    equipoise.train(dataset, "equal", model="mmoe", epochs=1, batch_size=1024).export(folder, onnx=True)


def start(folder: Path, program: str) -> tuple[subprocess.Popen, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, SERVER, folder, "--program", program, "--port", str(port)], env=environment
    )
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.poll() is None:
        try:
            httpx.get(f"{url}/health").raise_for_status()
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return server, url
    server.kill()
    raise SystemExit(f"The server with {program} did not start.")


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process so far, on Linux."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


async def measure(url: str, bodies: list[bytes], concurrency: int, seconds: float) -> tuple[list[float], float, int]:
    """Return the seconds that each request took and the seconds in all, after a warm-up; and the requests with it."""
    took: list[float] = []
    warm: list[float] = []
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:

        async def send(place: int, until: float, kept: list[float]) -> None:
            while time.perf_counter() < until:
                started = time.perf_counter()
                answer = await client.post("/predict", content=bodies[place % len(bodies)])
                answer.raise_for_status()
                kept.append(time.perf_counter() - started)
                place += concurrency

        for kept, length in ((warm, seconds / 4), (took, seconds)):
            began = time.perf_counter()
            await asyncio.gather(*(send(place, began + length, kept) for place in range(concurrency)))
        return took, time.perf_counter() - began, len(warm) + len(took)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True, help="name of the results, without an ending")
    parser.add_argument("--seconds", type=float, default=8, help="of each measurement")
    stated = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    raw = generated(4096, seed=1).drop("click", "buy").to_dicts()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "export"
        export(folder)
        for program in PROGRAMS:
            server, url = start(folder, program)
            try:
                for rows in ROWS_PER_REQUEST:
                    bodies = [json.dumps({"rows": raw[i : i + rows]}).encode() for i in range(0, 4096, rows)]
                    for concurrency in CONCURRENCIES:
                        before = cpu_seconds(server.pid)
                        took, seconds, in_all = asyncio.run(measure(url, bodies, concurrency, stated.seconds))
                        cpu = (cpu_seconds(server.pid) - before) / (in_all * rows)
                        p50, *_, p99 = statistics.quantiles(took, n=100)[49:]
                        found.append({
                            "program": program, "rows_per_request": rows, "concurrency": concurrency,
                            "requests": len(took), "p50_ms": round(1000 * p50, 2), "p99_ms": round(1000 * p99, 2),
                            "rows_per_second": round(len(took) * rows / seconds), "cpu_us_per_row": round(1e6 * cpu),
                        })  # fmt: skip
            finally:
                server.terminate()
                server.wait()
    about = {
        "command": f"python benchmarks/serving.py --out {stated.out}",
        "machine": f"{cpu_name()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"onnxruntime {onnxruntime.__version__}",
    }
    stated.out.with_suffix(".json").write_text(json.dumps(about | {"measured": found}, indent=2) + "\n")
    stated.out.with_suffix(".md").write_text(in_markdown(about, found))


def in_markdown(about: dict[str, str], found: list[dict]) -> str:
    lines = [f"`{about['command']}`", "", f"{about['machine']}; {about['versions']}.", ""]
    titles = ["program", "rows per request", "requests at a time", "p50 (ms)", "p99 (ms)", "rows per second"]
    lines += ["| " + " | ".join([*titles, "CPU of the server per row (µs)"]) + " |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|"]
    lines += [
        f"| {row['program']} | {row['rows_per_request']} | {row['concurrency']} | {row['p50_ms']:.1f} | "
        f"{row['p99_ms']:.1f} | {row['rows_per_second']:,} | {row['cpu_us_per_row']:,} |"
        for row in found
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
