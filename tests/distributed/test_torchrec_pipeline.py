"""MultiBalance in TorchRec's unchanged pipeline does what the plain loop does."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from equipoise import PUB, Fork, MultiBalance
from equipoise.training import parallelize
from tests.distributed.gloo import on_ranks

EXAMPLE = Path(__file__).parents[2] / "examples" / "torchrec_pipeline.py"


def example():
    spec = importlib.util.spec_from_file_location("torchrec_pipeline", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["torchrec_pipeline"] = module
    spec.loader.exec_module(module)
    return module


def train(rank: int, pipelined: bool, overlap: bool) -> dict:
    module = example()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ranker = module.Ranker()
        ranker.dense.fork = MultiBalance(["click", "buy"], overlap=overlap)
        model = module.sharded(ranker, torch.device("cpu"))
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


class Total(torch.nn.Module):
    """Returns the sum of the losses, or PUB's total of them; the pipeline's tracer does not look into a submodule."""

    optimizer: PUB | None = None

    def forward(self, losses: torch.Tensor) -> torch.Tensor:
        return losses.sum() if self.optimizer is None else self.optimizer.total(losses)


def train_pub(rank: int, how: str) -> dict | str:
    """Train with PUB around Adagrad and fused tables; "unaware" hands PUB no losses, only the pipeline's sum."""
    module = example()

    class Ranker(module.Ranker):
        def __init__(self) -> None:
            super().__init__()
            self.total = Total()

        def forward(self, batch):
            logits = self.dense(self.tables(batch.ids).values())
            losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.labels, reduction="none")
            losses = losses.mean(0)
            return self.total(losses), losses.detach()

    with torch.random.fork_rng():
        torch.manual_seed(0)
        ranker = Ranker()
        ranker.dense.fork = Fork(2)
        model = parallelize(ranker, "table-wise", table_optimizer=(torch.optim.Adagrad, {"lr": 0.05}))
    dense = dict(module.in_backward_optimizer_filter(model.named_parameters()))
    shared = [p for name, p in dense.items() if "towers" not in name]
    pub = PUB(torch.optim.Adagrad(dense.values(), lr=0.05), shared=shared, data_parallel=model, update_every=2)
    ranker.total.optimizer = None if how == "unaware" else pub
    pipeline = module.TrainPipelineSparseDist(model, pub, torch.device("cpu"))
    stream, losses, weights = module.batches(rank), [], []
    for _ in range(8):
        if how == "loop":
            pub.zero_grad()
            total, found = model(next(stream))
            total.backward()
            pub.step()
        else:
            try:
                found = pipeline.progress(stream)
            except RuntimeError as error:
                return str(error)
        losses.append(found.clone())
        weights.append(pub.last_weights.clone())
    return {"losses": torch.stack(losses), "weights": torch.stack(weights)}


def work(rank: int) -> dict:
    results = {
        f"{way}{', overlap' if overlap else ''}": train(rank, way == "pipeline", overlap)
        for way in ("loop", "pipeline")
        for overlap in (False, True)
    }
    return results | {f"{how}, PUB": train_pub(rank, how) for how in ("loop", "pipeline", "unaware")}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    return on_ranks(2, tmp_path_factory.mktemp("pipeline"), work)


@pytest.mark.parametrize("kind", ["", ", overlap", ", PUB"])
def test_the_pipeline_trains_as_the_plain_loop_does(ranks, kind):
    for found in ranks:
        torch.testing.assert_close(found[f"pipeline{kind}"], found[f"loop{kind}"], rtol=1e-6, atol=1e-7)


def test_overlap_weighs_by_the_step_before(ranks):
    now, before = (ranks[0][kind]["weights"] for kind in ("pipeline", "pipeline, overlap"))
    assert torch.equal(before[0], torch.ones(2, dtype=before.dtype))
    assert not torch.equal(now, before)


def test_the_pipeline_backward_is_refused_by_pub_with_what_it_needs(ranks):
    assert all("expected a call of backward(losses)" in found["unaware, PUB"] for found in ranks)
    assert (ranks[0]["pipeline, PUB"]["weights"][-1] != 1).all()


def test_the_fork_balances_alike_on_both_ranks(ranks):
    weights = [found["pipeline"]["weights"] for found in ranks]
    assert torch.equal(*weights)
    assert (weights[0] != 1).any()


def test_the_example_runs_under_torchrun():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = Path(__file__).parents[1] / "rank_script.py"
    done = subprocess.run([*command, script, EXAMPLE], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "weights at the fork" in done.stdout
