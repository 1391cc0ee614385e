"""The examples that need torch alone: each trains as the plain loop does, and runs as a script."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch._functorch import config as functorch_config

from equipoise import PUB, MultiBalance

# Torch warns about itself while it compiles.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch"),
]

EXAMPLES = Path(__file__).parents[1] / "examples"
RANK_SCRIPT = Path(__file__).with_name("rank_script.py")
TASKS = ["click", "buy"]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


def assert_alike(found: torch.nn.Module, expected: torch.nn.Module, *, rtol: float, atol: float) -> None:
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[key], value, rtol=rtol, atol=atol)


@pytest.mark.parametrize("balanced", [True, False], ids=["balanced", "plain sum"])
@pytest.mark.parametrize("name", ["activation_checkpointing", "compiled"])
def test_it_trains_as_the_plain_loop_does(example, name: str, balanced: bool) -> None:
    def fork() -> MultiBalance | None:
        return MultiBalance(TASKS) if balanced else None

    exact = name == "activation_checkpointing"
    found, expected = example(name).train(fork()), example("plain").train(fork())
    assert_alike(found, expected, rtol=0 if exact else 1e-4, atol=0 if exact else 1e-5)


@functorch_config.patch(donated_buffer=False)  # a pass per task keeps the graph
def test_pub_trains_a_compiled_model_as_it_does_a_plain_one_if_told_the_last_shared_layer(example) -> None:
    module = example("pub")
    torch.manual_seed(0)
    model = module.Ranker(fork=None)
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    shared, last = [*model.table.parameters(), *model.bottom.parameters()], model.bottom[-2].parameters()
    optimizer, call = PUB(adam, shared=shared, solve_on=last), torch.compile(model, fullgraph=True, backend="aot_eager")
    for ids, labels in module.batches():
        optimizer.zero_grad()
        optimizer.backward(module.task_losses(call(ids), labels))
        optimizer.step()
    assert_alike(model, module.train()[0], rtol=1e-4, atol=1e-5)


def test_mixed_precision_weighs_nearly_as_full_precision_does(example) -> None:
    train = example("mixed_precision").train
    mixed, full = train(MultiBalance(TASKS)), train(MultiBalance(TASKS), enabled=False)
    assert_alike(full, example("plain").train(MultiBalance(TASKS)), rtol=0, atol=0)
    torch.testing.assert_close(mixed.fork.averages, full.fork.averages, rtol=0.05, atol=0)
    assert not torch.equal(mixed.fork.averages, full.fork.averages)


def test_every_micro_batch_is_one_observation(example) -> None:
    module: ModuleType = example("gradient_accumulation")
    accumulated, alone = module.train(MultiBalance(TASKS)), example("plain").train(MultiBalance(TASKS))
    assert torch.equal(accumulated.fork.averages[1], alone.fork.averages[1])  # 1 − (1 − γ)^k after k of them
    assert not torch.equal(accumulated.bottom[0].weight, alone.bottom[0].weight)


@pytest.mark.parametrize(
    "name", ["activation_checkpointing", "gradient_accumulation", "mixed_precision", "plain", "pub"]
)
def test_the_example_runs_as_a_script(name: str, tmp_path: Path) -> None:
    command = [sys.executable, EXAMPLES / f"{name}.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert f"weights {'of the updates' if name == 'pub' else 'at the fork'}: [" in done.stdout


@pytest.mark.parametrize("name", ["data_parallel", "fully_sharded"])
def test_two_ranks_weigh_as_one_process_does(example, tmp_path: Path, name: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, RANK_SCRIPT, EXAMPLES / f"{name}.py"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    found = done.stdout.partition("weights at the fork: [")[2].partition("]")[0]
    weights = torch.tensor([float(word) for word in found.split(",")])
    expected = example("plain").train(MultiBalance(TASKS)).fork.last_weights
    torch.testing.assert_close(weights, expected.float(), rtol=1e-4, atol=1e-5)
