"""Trains one step with the installed wheel in an environment that holds torch alone, and calls the command there.

`make release` runs it with that environment's Python, outside the repository.
"""

import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch
from torch import nn

import equipoise
from equipoise.forks.kernel_choice import LIBRARY, kernels_for

installed = Path(sysconfig.get_path("purelib"))
assert Path(equipoise.__file__).is_relative_to(installed), f"{equipoise.__file__} is not the installed wheel"
for name in ("numpy", "polars", "torchjd", "torchmetrics", "typer"):
    assert importlib.util.find_spec(name) is None, f"{name} is installed: this environment should hold torch alone"

bottom, towers = nn.Linear(3, 4), nn.ModuleList(nn.Linear(4, 1) for _ in range(2))
fork = equipoise.MultiBalance(["click", "buy"])
losses = [tower(branch).square().mean() for tower, branch in zip(towers, fork(bottom(torch.ones(2, 3))), strict=True)]
sum(losses).backward()
assert bottom.weight.grad is not None
assert bottom.weight.grad.isfinite().all()
if LIBRARY.exists():
    assert kernels_for([torch.ones(1)]) is not None, "the C library of the forks is there and not taken"

command = Path(sys.executable).with_name("equipoise")
done = subprocess.run([command, "methods"], capture_output=True, text=True, check=False)
assert done.returncode == 2, done
assert done.stdout == ""
assert done.stderr.count("\n") == 1, done.stderr
assert "pip install" in done.stderr, done.stderr

print(f"equipoise {equipoise.__version__} trains with torch {torch.__version__} alone; the command says:")
print(done.stderr, end="")
