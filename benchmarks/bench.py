"""Run the timings of this machine again, within 20 minutes, and rewrite their tables.

    python benchmarks/bench.py

Each writes a result (``.json``) and the page made from it (``.md``) into ``benchmarks/results``, or into the folder of
``--out``. `benchmarks/bench_compare.py` shows what became slower. Close what else runs: two cores, nothing beside.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
RESULTS: Final = HERE / "results"


@dataclass(frozen=True)
class Benchmark:
    """A script that times something.

    Attributes:
        script: its name in this folder.
        result: the name of its result, without an ending.
        arguments: what keeps it within its time.
        seconds: when it is ended.
    """

    script: str
    result: str
    arguments: tuple[str, ...]
    seconds: int


BENCHMARKS: Final = (
    Benchmark("fork_step.py", "fork-backward-cpu", (), 90),
    Benchmark("speed.py", "speed-cpu", ("--fork-pairs", "100", "--pairs", "60", "--seconds", "330"), 420),
    Benchmark(
        "speed.py",
        "speed-pub-cpu",
        (
            *("--threads", "1", "--clock", "processor", "--pairs", "200", "--seconds", "100"),
            *("--contenders", "plain sum again", "PUB (exact)", "PUB"),
        ),
        150,
    ),
    Benchmark("evaluation.py", "evaluation-cpu", ("--repetitions", "3"), 80),
    Benchmark("floors.py", "floors-cpu", (), 100),
    Benchmark("side_by_side.py", "side-by-side", ("--seconds", "300"), 360),
)
"""The longest that all of them take is 20 minutes."""


def run(benchmark: Benchmark, out: Path, seconds: float) -> str | None:
    """Run a benchmark; return why it has no result, or None if it has one."""
    command = [sys.executable, str(HERE / benchmark.script), *benchmark.arguments]
    # One folder up, so that the commands in the pages work from the repository.
    relative = os.path.relpath(out / f"{benchmark.result}.json", HERE.parent)
    paths = [str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command[1] = os.path.relpath(command[1], HERE.parent)
    try:
        code = subprocess.run(
            [*command, "--out", relative], cwd=HERE.parent, env=environment, check=False, timeout=seconds
        ).returncode
    except subprocess.TimeoutExpired:
        return f"took more than {seconds:.0f} s"
    return None if code == 0 else f"ended with code {code}"


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    names = [benchmark.result for benchmark in BENCHMARKS]
    arguments.add_argument("--only", nargs="*", choices=names, default=names, metavar="RESULT", help=", ".join(names))
    chosen = arguments.parse_args()
    out: Path = chosen.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    began, failed = time.perf_counter(), {}
    for benchmark in BENCHMARKS:
        if benchmark.result in chosen.only:
            print(f"{benchmark.result}: {benchmark.script} {' '.join(benchmark.arguments)}", flush=True)
            if reason := run(benchmark, out, benchmark.seconds):
                failed[benchmark.result] = f"{benchmark.script} {reason}"
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes; results in {os.path.relpath(out)}")
    for result, reason in failed.items():
        print(f"{result}: {reason}, so that this result may be an earlier one.", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
