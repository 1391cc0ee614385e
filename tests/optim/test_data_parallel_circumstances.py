"""PUB and AdaTask on two ranks with buffers, clipping, half precision, mistakes and copies."""

import copy
import datetime
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from equipoise.optim import PUB, AdaTask
from tests.gloo_end import end_rank

FORMS = {
    "pub": lambda net, **where: PUB(adam(net), shared=net.bottom.parameters(), update_every=2, **where),
    "adatask": lambda net, **where: AdaTask(adam(net), shared=net.bottom.parameters(), **where),
}


def adam(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(net.parameters(), lr=0.1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.bottom = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
            self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(2))

    def forward(self, x: Tensor) -> list[Tensor]:
        z = self.bottom(x)
        return [head(z).square().mean() for head in self.heads]


def inputs(rank: int, step: int) -> Tensor:
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(2 * step + rank)) + rank


def running_statistics(rank: int, form: str) -> Tensor:
    """Return the running statistics that the next evaluation would use."""
    net = Net()
    call = DistributedDataParallel(net)
    optimizer = FORMS[form](net, data_parallel=call)
    for step in range(4):
        optimizer.zero_grad()
        optimizer.backward(call(inputs(rank, step)))
        optimizer.step()
    call.eval()(inputs(rank, 9))  # buffers are broadcast before a forward pass
    return net.bottom[1].running_mean


def heads_clipped(rank: int, form: str) -> Tensor:
    net = Net()
    call = DistributedDataParallel(net)
    optimizer = FORMS[form](net, data_parallel=call)
    for step in range(3):
        optimizer.zero_grad()
        optimizer.backward(call(inputs(rank, step)))
        torch.nn.utils.clip_grad_norm_(net.heads.parameters(), 0.1)
        optimizer.step()
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


def shared_clipped(rank: int) -> str:
    net = Net()
    optimizer = FORMS["adatask"](net, data_parallel=DistributedDataParallel(net))
    optimizer.backward(net(inputs(rank, 0)))
    torch.nn.utils.clip_grad_norm_(net.bottom.parameters(), 1e-3)
    with pytest.raises(RuntimeError) as caught:
        optimizer.step()
    return str(caught.value)


def half_precision(form: str) -> Tensor:
    """Train with gradients whose sum over the ranks overflows float16, but whose mean does not."""
    weight = nn.Parameter(torch.ones(2, dtype=torch.float16))
    optimizer = {"pub": PUB, "adatask": AdaTask}[form](
        torch.optim.SGD([weight], lr=1e-5), shared=[weight], data_parallel=dist.group.WORLD
    )
    optimizer.backward([(weight * torch.tensor([40_000.0, 1.0])).sum()])
    return weight.grad


def after_a_refusal(rank: int) -> Tensor:
    net = Net()
    call = DistributedDataParallel(net)
    with pytest.raises(ValueError, match="update_every"):
        PUB(adam(net), shared=net.bottom.parameters(), update_every=0, data_parallel=call)
    with pytest.raises(ValueError, match="dampening"):
        AdaTask(torch.optim.SGD(net.parameters(), dampening=0.1), shared=net.bottom.parameters(), data_parallel=call)
    sum(call(inputs(rank, 0))).backward()
    return net.heads[0].weight.grad


def refused_modules(rank: int) -> dict[str, str]:
    del rank
    found = {}
    net = Net()
    foreign = torch.optim.Adam([*net.bottom.parameters(), *net.heads[0].parameters()])
    for name, call, optimizer in (
        ("static", DistributedDataParallel(net, static_graph=True), adam(net)),
        ("foreign", DistributedDataParallel(net), foreign),
    ):
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the caller looks at the message
            PUB(optimizer, shared=net.bottom.parameters(), data_parallel=call)
        found[name] = str(caught.value)
    return found


def made_before_the_group(net: Net, optimizer: PUB) -> str:
    with pytest.raises(RuntimeError) as caught:
        optimizer.backward(net(inputs(0, 0)))
    return str(caught.value)


def copied(rank: int) -> Tensor:
    net = Net()
    optimizer = FORMS["pub"](net, data_parallel=dist.group.WORLD)
    net, optimizer = copy.deepcopy((net, optimizer))
    optimizer.backward(net(inputs(rank, 0)))
    return net.heads[0].weight.grad


def other_leaves(rank: int, form: str) -> dict[str, object]:
    """A parameter of another optimizer, and an input whose gradient is wanted."""
    net, foreign = Net(), nn.Parameter(torch.ones(3))
    optimizer = FORMS[form](net, data_parallel=dist.group.WORLD)
    with pytest.raises(RuntimeError) as caught:
        optimizer.backward(net(inputs(rank, 0) * foreign))
    optimizer.zero_grad()
    x = inputs(rank, 0).requires_grad_()
    expected = torch.autograd.grad(sum(net(x)), x)[0]
    optimizer.backward(net(x))
    return {"message": str(caught.value), "input": x.grad, "expected": expected}


def work(rank: int, folder: Path) -> None:
    early = Net()
    optimizer = FORMS["pub"](early)
    dist.init_process_group(
        "gloo", init_method=(folder / "rendezvous").as_uri(), rank=rank, world_size=2,
        timeout=datetime.timedelta(seconds=120),
    )  # fmt: skip
    torch.set_num_threads(1)
    results = {
        **{f"statistics, {form}": running_statistics(rank, form) for form in FORMS},
        **{f"heads clipped, {form}": heads_clipped(rank, form) for form in FORMS},
        "shared clipped": shared_clipped(rank),
        **{f"half precision, {form}": half_precision(form) for form in FORMS},
        "refused": after_a_refusal(rank),
        "refused modules": refused_modules(rank),
        "early": made_before_the_group(early, optimizer),
        "copied": copied(rank),
        **{f"other leaves, {form}": other_leaves(rank, form) for form in FORMS},
    }
    torch.save(results, folder / f"rank{rank}.pt")
    end_rank()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("gloo")
    mp.spawn(work, args=(folder,), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("form", FORMS)
def test_buffers_go_on_being_broadcast(ranks, form):
    assert torch.equal(*(found[f"statistics, {form}"] for found in ranks))


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_heads_may_be_clipped(ranks, form):
    assert torch.equal(*(found[f"heads clipped, {form}"] for found in ranks))


def test_clipping_those_of_shared_parameters_is_noticed(ranks):
    assert "were changed between AdaTask.backward and step" in ranks[0]["shared clipped"]


@pytest.mark.parametrize("form", FORMS)
def test_the_mean_over_ranks_does_not_overflow_where_their_sum_does(ranks, form):
    assert torch.equal(ranks[0][f"half precision, {form}"], torch.tensor([40_000.0, 1.0], dtype=torch.float16))


def test_a_constructor_that_refuses_leaves_the_averaging_to_the_module(ranks):
    assert torch.equal(ranks[0]["refused"], ranks[1]["refused"])


def test_modules_whose_averaging_cannot_be_taken_over_are_refused(ranks):
    assert "found one with static_graph=True" in ranks[0]["refused modules"]["static"]
    assert (
        "parameters there that are not the optimizer's and would drift apart: heads.1.weight, heads.1.bias"
        in (ranks[0]["refused modules"]["foreign"])
    )


def test_a_group_that_comes_later_is_noticed(ranks):
    assert "average of its tasks' gradients over the ranks, found 2" in ranks[0]["early"]


def test_a_copy_trains_with_the_same_ranks(ranks):
    assert torch.equal(ranks[0]["copied"], ranks[1]["copied"])


@pytest.mark.parametrize("form", FORMS)
def test_a_parameter_of_another_optimizer_is_refused_and_an_input_gets_its_ranks_gradient(ranks, form):
    for found in ranks:
        of_form = found[f"other leaves, {form}"]
        assert "found 1 parameters in the losses' graph that are not its own" in of_form["message"]
        torch.testing.assert_close(of_form["input"], of_form["expected"], rtol=1e-5, atol=1e-6)
