"""A check sees through wrappers, says what it cannot see, and changes nothing."""

import copy
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from equipoise import PUB, MultiBalance, check
from tests.checking.rankers import TASKS, Ranker, losses_of

torch_warns = pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore::DeprecationWarning:torch")


class Round(Ranker):
    """`buy` goes round the fork."""

    def wire(self, z, _):
        click, like, _ = self.fork(z)
        return [click, like, z]


def test_disturbs_nothing():
    model = Ranker()
    losses = losses_of(model)
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    check(model, losses)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    sum(losses).backward()
    undisturbed = Ranker()
    undisturbed.load_state_dict(before)
    sum(losses_of(undisturbed)).backward()
    for p, q in zip(model.parameters(), undisturbed.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    assert torch.equal(model.fork.averages, undisturbed.fork.averages)


def test_a_function_is_called_once_and_leaves_buffers_and_random_state_alone():
    model = Ranker()
    model.bottom.append(nn.BatchNorm1d(3)).append(nn.Dropout())
    random, calls = torch.get_rng_state(), []

    def losses():
        calls.append(1)
        return losses_of(model)

    assert check(model, losses).ok
    assert calls == [1]
    assert torch.equal(torch.get_rng_state(), random)
    assert model.bottom[2].num_batches_tracked == 0
    assert not model.bottom[2].running_mean.any()


def test_a_model_whose_every_layer_is_checkpointed():
    model = Round()
    plain = model.bottom.forward
    model.bottom.forward = lambda e: checkpoint(plain, e, use_reentrant=False)
    (_, around) = check(model, losses_of(model)).problems
    assert "bottom" in around


def test_says_that_reentrant_checkpoints_hide_parameters():
    model = Round()
    plain = model.bottom.forward
    model.bottom.forward = lambda e: checkpoint(plain, e, use_reentrant=True)
    report = check(model, losses_of(model))
    assert not report.ok
    assert "Not checked: activation checkpointing of the reentrant kind hides the parameters" in str(report)


@torch_warns
def test_says_that_a_compiled_model_hides_its_tasks():
    model = torch.compile(Round(), backend="aot_eager")
    report = check(model, losses_of(model))
    assert not report.ok
    assert "before torch.compile" in str(report)


@torch_warns
def test_says_that_a_compiled_model_hides_its_fork():
    class OneTask(nn.Module):
        def __init__(self):
            super().__init__()
            self.bottom, self.fork, self.tower = nn.Linear(2, 2), MultiBalance(["buy"]), nn.Linear(2, 1)

        def forward(self, x):
            return self.tower(self.fork(self.bottom(x))[0]).mean()

    model = torch.compile(OneTask(), backend="aot_eager")
    report = check(model, [model(torch.ones(3, 2))])
    assert not report.problems
    assert report.unseen == ["a fork may be inside a compiled graph. Ask the same model before torch.compile."]


@torch_warns
def test_sees_the_fork_between_compiled_parts():
    model = Round()
    model.bottom = torch.compile(model.bottom, backend="aot_eager")
    for task in TASKS:
        model.towers[task] = torch.compile(model.towers[task], backend="aot_eager")
    report = check(model, losses_of(model))
    assert len(report.problems) == 2
    assert "_orig_mod" not in str(report)
    assert "bottom.0.weight → " in str(report)


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("options", [{}, {"find_unused_parameters": True}, {"static_graph": True}])
def test_sees_through_ddp(options):
    model = DistributedDataParallel(Round(), **options)
    report = check(model, losses_of(model))
    assert len(report.problems) == 2
    assert "fork 'fork'" in report.problems[0]
    assert set(report.shared) == {"table.weight", "bottom.0.weight", "bottom.0.bias"}
    assert check(DistributedDataParallel(Ranker(), **options), lambda: losses_of(model.module)).problems


@pytest.mark.usefixtures("one_process")
def test_says_that_fsdp_hides_parameters():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
    model, mesh = Round(), init_device_mesh("cpu", (1,))
    fully_shard(model.bottom, mesh=mesh)
    fully_shard(model, mesh=mesh)
    report = check(model, [logit.square().mean() for logit in model(torch.arange(6))])
    assert report.problems == []
    assert report.unseen == [
        "FSDP puts other tensors in the place of the model's parameters. Ask the same model before fully_shard."
    ]


def test_an_input_that_requires_a_gradient_is_nothing_to_balance():
    class OfInputs(Ranker):
        def forward(self, x):
            return [
                tower(z + x[:, :3]).mean()
                for tower, z in zip(self.towers.values(), self.fork(self.bottom(x)), strict=True)
            ]

    model = OfInputs()
    del model.table
    assert check(model, model(torch.ones(2, 4, requires_grad=True))).ok


def test_frozen_shared_layers_leave_nothing_to_balance():
    model = Ranker()
    for layers in (model.table, model.bottom):
        layers.requires_grad_(False)
    report = check(model, losses_of(model))
    assert report.ok
    assert report.shared == []


class Batched(Ranker):
    """All towers in one batched product; each task's logits are a slice of its result."""

    def __init__(self):
        super().__init__()
        self.towers = nn.ParameterDict({"weight": torch.randn(3, 3, 1)})

    def forward(self, ids):
        return list(torch.bmm(torch.stack(self.fork(self.bottom(self.table(ids)))), self.towers["weight"]).squeeze(2))


def test_towers_in_one_batched_product():
    model = Batched()
    optimizer = PUB(torch.optim.Adam(model.parameters()), shared=model.parameters())
    report = check(model, losses_of(model), optimizer=optimizer)
    assert report.sliced == ["towers.weight"]
    assert report.own == {"click": [], "like": [], "buy": []}
    (problem,) = report.problems
    assert "Two methods balance" in problem
    assert "Each task trains a slice: towers.weight." in str(report)


def test_sparse_tables_are_parameters_like_others():
    model = Round()
    model.table = nn.Embedding(10, 4, sparse=True)
    assert "table.weight" in check(model, losses_of(model)).shared


def test_tied_parameters_are_named_once():
    model = Ranker()
    model.towers["buy"] = model.towers["like"]
    report = check(model, losses_of(model))
    (problem,) = report.problems
    assert "reach shared parameters without crossing fork 'fork': towers.like." in problem


@pytest.mark.parametrize("mixed", [False, True])
def test_a_loss_that_does_not_depend_on_the_model(mixed):
    model = Ranker()
    click, like, _ = losses_of(model)
    stranger = nn.Linear(1, 1)(torch.ones(1, 1)).mean() if mixed else torch.ones(())
    problems = check(model, [click, like, stranger]).problems
    expected = "depends on no parameter of the model" if mixed else "requires no gradient"
    assert f"The loss of 'buy' {expected}" in problems[0]


def test_a_model_without_forks_is_described():
    model = Ranker(["a"])
    model.fork = nn.Identity()
    model.wire = lambda z, _: [z]
    model.unused = nn.Linear(2, 2)
    report = check(model, {"a": losses_of(model)[0]})
    assert report.ok
    assert str(report).splitlines() == [
        "Shared: nothing.",
        "Only 'a' trains: table.weight, bottom, towers.",
        "Reached by no loss: unused.",
        "No problem found.",
    ]


@pytest.mark.parametrize(
    ("losses", "error", "message"),
    [
        (torch.ones(3), TypeError, r"one tensor of shape \(3,\). Pass the losses as a list"),
        ([], ValueError, "Expected the loss of at least one task, found none"),
        ({"a": None}, ValueError, "Take a batch in which tasks have labels"),
        (3, TypeError, "Expected one scalar loss per task, found int"),
        ([torch.ones(4), None, None], ValueError, r"loss of 'click' must be a scalar, found shape \(4,\)"),
        (["1", None, None], TypeError, "must be a tensor, or None; found str"),
    ],
)
def test_says_what_it_takes(losses, error, message):
    with pytest.raises(error, match=message):
        check(Ranker(), losses)
