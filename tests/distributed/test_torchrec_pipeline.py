"""MultiBalance in TorchRec's unchanged pipeline does what the plain loop does."""

import datetime
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

EXAMPLE = Path(__file__).parents[2] / "examples" / "torchrec_pipeline.py"


def example():
    spec = importlib.util.spec_from_file_location("torchrec_pipeline", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["torchrec_pipeline"] = module
    spec.loader.exec_module(module)
    return module


def train(rank: int, pipelined: bool) -> dict:
    module = example()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = module.sharded(module.Ranker(), torch.device("cpu"))
    fork = model.module.dense.fork
    dense = dict(module.in_backward_optimizer_filter(model.named_parameters()))
    optimizer = module.KeyedOptimizerWrapper(dense, lambda parameters: torch.optim.Adagrad(parameters, lr=0.05))
    stream, losses, weights = module.batches(rank), [], []
    pipeline = module.TrainPipelineSparseDist(model, optimizer, torch.device("cpu"))
    for _ in range(8):
        if pipelined:
            found = pipeline.progress(stream)
        else:
            optimizer.zero_grad()
            total, found = model(next(stream))
            total.backward()
            optimizer.step()
        losses.append(found.clone())
        weights.append(fork.last_weights.clone())
    return {"losses": torch.stack(losses), "weights": torch.stack(weights)}


def work(rank: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo",
        init_method=(folder / "rendezvous").as_uri(),
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=120),
    )
    torch.set_num_threads(1)
    results = {way: train(rank, pipelined=way == "pipeline") for way in ("loop", "pipeline")}
    torch.save(results, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("pipeline")
    mp.spawn(work, args=(folder,), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def test_the_pipeline_trains_as_the_plain_loop_does(ranks):
    for found in ranks:
        torch.testing.assert_close(found["pipeline"], found["loop"], rtol=1e-6, atol=1e-7)


def test_the_fork_balances_alike_on_both_ranks(ranks):
    weights = [found["pipeline"]["weights"] for found in ranks]
    assert torch.equal(*weights)
    assert (weights[0] != 1).any()


def test_the_example_runs_under_torchrun():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", EXAMPLE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "weights at the fork" in done.stdout
