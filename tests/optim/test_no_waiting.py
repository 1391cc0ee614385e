"""A step copies nothing from the host and reads nothing back after the first: what would wait for an accelerator."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from equipoise.optim import PUB, AdaTask, joint_step
from equipoise.optim.host_counts import HostCounts
from tests.optim.task_nets import OPTIMIZERS, WRAPPERS, Net, train

aten = torch.ops.aten
# What makes tensors of host values (a copy on an accelerator), looks at values, or has a size that depends on them.
WAITING = {
    aten.lift_fresh.default, aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default,
    aten.index.Tensor, aten.index_put_.default, aten.unique_dim.default, aten._unique2.default,
}  # fmt: skip


class Watch(TorchDispatchMode):
    """Notes operations that wait, except on the step counts, which torch keeps on the host."""

    def __init__(self, counts: set[int]) -> None:
        super().__init__()
        self.counts, self.found = counts, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in WAITING and args[0].untyped_storage().data_ptr() not in self.counts:
            self.found.append((func, args[0].shape, args[1:]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("absent", [(), (1,), (0, 2)])
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("kind", ["adam", "adagrad", "sgd"])
def test_a_step_waits_for_nothing(kind, wrapper, absent):
    net = Net(3)
    optimizer = WRAPPERS[wrapper](OPTIMIZERS[kind](net.parameters()), net.shared())
    train(net, optimizer, range(2))
    train(net, optimizer, [2], absent=(0,))  # from here on tasks differ in their counts
    counts = {state["step"].untyped_storage().data_ptr() for state in optimizer.state.values() if "step" in state}
    watch = Watch(counts)
    for step in range(3, 7):
        losses = net.losses(step, absent)
        with watch:
            optimizer.zero_grad()
            optimizer.backward(losses)
            optimizer.step()
    found = [entry for entry in watch.found if entry[0] is not aten.index_put_.default or _by_list(entry)]
    assert not found


def _by_list(entry) -> bool:
    """Return whether the indices came from a list or a mask, and not from tensors on the device."""
    return any(index is not None and index.dtype == torch.bool for index in entry[2][0])


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
