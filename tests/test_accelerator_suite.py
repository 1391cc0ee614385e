"""The tests for accelerators work, shown on the CPU: by the command that runs them, with torch and pytest alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "benchmarks/accelerator.py"]
# Optional dependencies of the library, and those of its other tests.
ABSENT = ["hypothesis", "numpy", "polars", "pyarrow", "pydantic", "scipy", "torchjd", "torchmetrics", "yaml"]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command_runs_the_tests_on_the_cpu_and_writes_what_it_found(tmp_path):
    chosen = "multibalance and not multibalance- or pub-ours or adatask-adam"
    done = run([*COMMAND, "--device", "cpu", "--tests-only", "--out", str(tmp_path), "--", "-k", chosen])
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "accelerator.json").read_text())
    outcomes = {case["test"]: case["outcome"] for case in found["tests"]["tests"]}
    for test in (
        "test_agreement::test_a_fork[multibalance]",
        "test_agreement::test_a_task_optimizer[pub-ours-adam]",
        "test_compiled::test_a_fork[multibalance]",
        "test_precision::test_a_fork_in_bfloat16_weighs_as_in_float32[multibalance]",
        "test_precision::test_a_fork_under_a_grad_scaler_weighs_as_in_float32[multibalance]",
        "test_ranks::test_one_rank[multibalance]",
    ):
        assert outcomes[test] == "passed"
    assert outcomes["test_graphs::test_a_fork[multibalance]"] == "skipped"  # needs CUDA
    page = (tmp_path / "accelerator.md").read_text()
    assert page.startswith(f"# Tests on {found['machine']['device']}\n")
    assert "| test_ranks |" in page


def test_torch_and_pytest_are_enough():
    modules = [f"tests.accelerator.{file.stem}" for file in sorted((ROOT / "tests/accelerator").glob("*.py"))]
    blocked = f"import sys; sys.modules.update(dict.fromkeys({ABSENT!r})); sys.path[:0] = ['.', 'benchmarks']; "
    done = run([sys.executable, "-W", "ignore", "-c", blocked + f"import speed, accelerator, {', '.join(modules)}"])
    assert done.returncode == 0, done.stderr


def test_without_a_device_the_command_says_so(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a device")
    done = run([*COMMAND, "--out", str(tmp_path / "out")])
    assert done.returncode == 2
    assert "found none. Run this on a machine with one" in done.stderr
    assert not (tmp_path / "out").exists()
