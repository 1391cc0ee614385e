"""One rank under ``DistributedDataParallel`` trains as no rank does; on CUDA the collectives are NCCL's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from equipoise import PUB, AdaTask
from tests.accelerator.test_agreement import assert_agree
from tests.accelerator.workload import Ranker, Training, batches
from tests.forks.every_fork import FORKS


@pytest.fixture
def one_rank(device, tmp_path) -> Iterator[None]:
    """Provide a process group of this process alone."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend, init_method=(tmp_path / "rendezvous").as_uri(), rank=0, world_size=1,
        device_id=device if device.index is not None else None,
    )  # fmt: skip
    yield
    dist.destroy_process_group()


def of_fork(model: Ranker, _: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05)


def of_pub(model: Ranker, call: torch.nn.Module) -> torch.optim.Optimizer:
    ranks = call if isinstance(call, DistributedDataParallel) else None
    return PUB(torch.optim.Adam(model.parameters()), shared=model.shared(), update_every=3, data_parallel=ranks)


def of_adatask(model: Ranker, call: torch.nn.Module) -> torch.optim.Optimizer:
    ranks = call if isinstance(call, DistributedDataParallel) else None
    return AdaTask(torch.optim.Adam(model.parameters()), shared=model.shared(), data_parallel=ranks)


CASES = {
    "multibalance": (FORKS["multibalance"], of_fork),
    "multibalance-overlap": (FORKS["multibalance-overlap"], of_fork),
    "pub": (lambda: None, of_pub),
    "adatask": (lambda: None, of_adatask),
}


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("name", CASES)
def test_one_rank(name, device):
    make_fork, make_optimizer = CASES[name]
    found = []
    for ranks in (False, True):
        model = Ranker(make_fork()).to(device)
        call = DistributedDataParallel(model) if ranks else model
        training = Training(model, make_optimizer(model, call), call)
        for batch in batches(device, 6):
            training.step(batch)
        found.append(training.tensors())
    assert_agree(found[1], found[0])
