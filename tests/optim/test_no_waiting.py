"""A step copies nothing from the host and reads nothing back after the first: what would wait for an accelerator."""

from __future__ import annotations

import pytest
import torch

from equipoise.optim import PUB, AdaTask, joint_step
from equipoise.optim.host_counts import HostCounts
from tests.made_up_device import DEVICE, on_host, the_device
from tests.optim.task_nets import BUILDERS, KINDS, Net, take_step, train

CASES = [
    *((kind, builder) for kind in ("adam", "adam-fused", "sgd") for builder in BUILDERS),
    *(
        (kind, builder)
        for kind in ("adam-amsgrad", "adamw", "adagrad", "rmsprop")
        for builder in ("pub-ours", "adatask")
    ),
]


def run(optimizer, net, steps, absent=(), waits=None):
    for step in steps:
        losses = net.losses(step, absent)
        if waits is not None:
            waits.clear()  # of the batch
        take_step(optimizer, losses)
        assert not waits


def trained(net, kind, builder, waits=None):
    optimizer = BUILDERS[builder](KINDS[kind](net.parameters()), net.shared())
    run(optimizer, net, range(2))
    run(optimizer, net, [2], absent=(0,), waits=waits)  # from here on tasks differ in their counts
    run(optimizer, net, range(3, 6), waits=waits)
    run(optimizer, net, [6], absent=(1,), waits=waits)
    run(optimizer, net, range(7, 9), absent=(0, 2), waits=waits)
    return [on_host(p.detach()) for p in net.parameters()]


@pytest.mark.parametrize(("kind", "builder"), CASES)
def test_a_step_waits_for_nothing_and_moves_as_on_the_cpu(kind, builder):
    expected = trained(Net(3), kind, builder)
    with the_device() as waits:
        found = trained(Net(3).to(DEVICE), kind, builder, waits)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_counts_on_the_device_are_read_once_and_counted_along(monkeypatch):
    reads = []
    whole = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: reads.append(tensor.shape) or whole(tensor))
    counts, steps = HostCounts(), [torch.tensor(3.0), torch.tensor([1.0, 2.0])]
    assert counts.read(steps) == [[3.0], [1.0, 2.0]]
    assert len(reads) == 1
    for _ in range(4):
        steps[0] += 1
        counts.counted(steps[:1])
        steps[1][1] += 1
        counts.counted(steps[1:], rows=[1])
        assert counts.read(steps) == [[whole(steps[0])], whole(steps[1])]
    assert len(reads) == 1
    steps[0] += 1  # by somebody else
    assert counts.read(steps)[0] == [8.0]
    assert len(reads) == 2
    steps[0] = torch.tensor(20.0)  # as after a load
    assert counts.read(steps)[0] == [20.0]


@pytest.mark.parametrize("make", [PUB, AdaTask])
def test_parameters_with_equal_counts_share_a_block_though_tasks_differ(make):
    net = Net(3)
    options = {"update_every": 1} if make is PUB else {}
    optimizer = make(torch.optim.Adam(net.parameters(), fused=True), shared=net.shared(), **options)
    train(net, optimizer, range(2))
    train(net, optimizer, [2], absent=(0,))
    found = []
    whole = joint_step.blocks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joint_step, "blocks", lambda *args: found.append(list(whole(*args))) or iter(found[-1]))
        train(net, optimizer, [3])
    assert [len(blocks) for blocks in found] == [1]
