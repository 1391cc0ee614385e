"""A whole step is captured into a CUDA graph, and its replays train as eager steps do.

PUB, AdaTask and MetaBalance are not captured: they count steps on the host, and which parameters have a gradient, which
tasks are present and whether α is solved are decided there. They refuse ``capturable=True`` (``tests/optim``).
"""

from __future__ import annotations

import pytest
import torch

from equipoise import Clippy
from tests.accelerator.test_agreement import assert_agree
from tests.accelerator.workload import Ranker, Training, batches
from tests.forks.every_fork import FORKS

WARM_UP, REPLAYS = 3, 5
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, capturable=True),
    "clippy": lambda p: Clippy(torch.optim.Adam(p, lr=0.01, capturable=True)),
}


def training(fork: str, optimizer: str, device: torch.device, *, stacked: bool = False) -> Training:
    model = Ranker(FORKS[fork](), stacked=stacked).to(device)
    return Training(model, OPTIMIZERS[optimizer](model.parameters()))


def captured(made: Training, device: torch.device) -> Training:
    """Train by replays of one captured step."""
    data = batches(device, WARM_UP + REPLAYS)
    fixed = tuple(part.clone() for part in data[0])
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for batch in data[:WARM_UP]:
            for place, part in zip(fixed, batch, strict=True):
                place.copy_(part)
            made.step(fixed)
    torch.cuda.current_stream().wait_stream(beside)
    made.optimizer.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made.step(fixed)
    for batch in data[WARM_UP:]:
        for place, part in zip(fixed, batch, strict=True):
            place.copy_(part)
        graph.replay()
    torch.cuda.synchronize()
    return made


def eager(made: Training, device: torch.device) -> Training:
    for step, batch in enumerate(batches(device, WARM_UP + REPLAYS)):
        if step == WARM_UP and made.model.fork is not None:
            made.model.fork.gram_every = 1  # as in a captured graph, where every step measures
        made.step(batch)
    return made


@pytest.mark.parametrize("fork", FORKS)
def test_a_fork(fork, cuda):
    found, expected = captured(training(fork, "sgd", cuda), cuda), eager(training(fork, "sgd", cuda), cuda)
    assert_agree(found.tensors(), expected.tensors())


def test_stacked_copies(cuda):
    found = captured(training("multibalance", "sgd", cuda, stacked=True), cuda)
    assert_agree(found.tensors(), eager(training("multibalance", "sgd", cuda), cuda).tensors())


@pytest.mark.parametrize("optimizer", ["adam", "clippy"])
def test_an_optimizer_whose_count_is_on_the_device(optimizer, cuda):
    found = captured(training("multibalance", optimizer, cuda), cuda)
    expected = eager(training("multibalance", optimizer, cuda), cuda)
    assert_agree(found.tensors(), expected.tensors())
