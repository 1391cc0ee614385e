"""Models of somebody else: every form of constructor and output, and a fork placed where they say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equipoise.errors import SettingError
from equipoise.forks import Fork, MultiBalance
from equipoise.ranking.models import MODELS, ForkFactory, OwnModel, SharedBottom, build_model, name_of, partition_of
from equipoise.ranking.models.base import Unforked
from equipoise.schema import Categorical, Numeric, Schema, Task
from tests.ranking.models.cuts import PRIMES, FixedWeights, assert_cut_is_right, losses_of, make_batch

SCHEMA = Schema([Categorical("user", 30)], [Numeric("price"), Numeric("age")], [Task("click"), Task("buy")])
NAMES = SCHEMA.task_names
HERE = __name__


@pytest.fixture(autouse=True)
def _registered() -> object:
    before = MODELS.registered()
    yield
    MODELS.restore(before)


class Plain(nn.Module):
    """A model of a fixed size, without a fork; subclasses return the outputs in another form."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 4)
        self.bottom = nn.Linear(6, 4)
        self.click, self.buy = nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, categorical: Tensor, numeric: Tensor) -> Any:
        z = self.bottom(torch.cat((self.table(categorical[:, 0]), numeric), 1)).relu()
        return self.form(self.click(z), self.buy(z))

    def form(self, click: Tensor, buy: Tensor) -> Any:
        return click, buy


class Flat(Plain):
    def form(self, click: Tensor, buy: Tensor) -> Any:
        return [click.squeeze(1), buy.squeeze(1)]


class ByName(Plain):
    def form(self, click: Tensor, buy: Tensor) -> Any:
        return {"buy": buy, "click": click.squeeze(1), "attention": torch.zeros(3)}


class Matrix(Plain):
    def form(self, click: Tensor, buy: Tensor) -> Any:
        return torch.cat((click, buy), 1)


class OfSchema(Plain):
    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.schema = schema


class Sized(Plain):
    def __init__(self, users: int, *, width: int = 4) -> None:
        super().__init__()
        self.users, self.width = users, width


def sized(width: int = 4) -> nn.Module:
    """A function in the place of a class."""
    return Sized(30, width=width)


@pytest.mark.parametrize("kind", [Plain, Flat, ByName, Matrix])
def test_outputs_of_every_form_become_one_tensor_per_task(kind: type[Plain]) -> None:
    torch.manual_seed(0)
    model = build_model(f"{HERE}:{kind.__name__}", SCHEMA)
    torch.manual_seed(0)
    own, batch = Flat(), make_batch(SCHEMA)
    found, expected = model(batch.categorical, batch.numeric), own(batch.categorical, batch.numeric)
    assert [output.shape for output in found] == [(16,), (16,)]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert isinstance(model, kind) == (kind is Flat)  # what is right already stays as it is


def test_a_square_trial_cannot_hide_that_tasks_come_first() -> None:
    for tasks in (2, 3):
        schema = Schema([], SCHEMA.numeric, [Task(name) for name in "abc"[:tasks]])

        class Stacked(nn.Module):
            def forward(self, categorical: Tensor, numeric: Tensor) -> Tensor:
                return torch.stack([numeric[:, 0]] * len(self.of.tasks))

            of = schema

        MODELS.register("stacked", Stacked, replace=True)
        with pytest.raises(SettingError, match=r"Return torch\.stack\(outputs, dim=1\)"):
            build_model("stacked", schema)


def test_a_constructor_gets_the_schema_if_it_takes_it_and_options_by_name() -> None:
    assert build_model(f"{HERE}:OfSchema", SCHEMA).model.schema is SCHEMA
    assert build_model(f"{HERE}:Sized", SCHEMA, users=30, width=5).model.width == 5
    assert build_model(f"{HERE}:sized", SCHEMA, width=6).model.width == 6
    with pytest.raises(SettingError, match=r"needs the options users, which have no default"):
        build_model(f"{HERE}:Sized", SCHEMA)


@pytest.mark.parametrize("kind", [Plain, ByName])
def test_without_a_fork_the_graph_says_what_the_tasks_share(kind: type[Plain]) -> None:
    model = build_model(f"{HERE}:{kind.__name__}", SCHEMA)
    partition = partition_of(model, SCHEMA)
    assert partition.own == {
        task: {f"model.{task}.weight", f"model.{task}.bias"} for task in NAMES
    }  # the rest is shared
    assert len(partition.shared_parameters(model)) == 3


class Heads(Plain):
    """Says where its fork belongs, and has no forward."""

    forward = nn.Module.forward

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({"buy": self.buy, "click": nn.Sequential(self.click, nn.Flatten(0))})

    def representation(self, categorical: Tensor, numeric: Tensor) -> Tensor:
        return self.bottom(torch.cat((self.table(categorical[:, 0]), numeric), 1)).relu()


class InOrder(Heads):
    """Heads in the order of the tasks, a representation of two tensors, and a forward that agrees."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Joined() for _ in NAMES)

    def representation(self, categorical: Tensor, numeric: Tensor) -> Any:
        z = super().representation(categorical, numeric)
        return {"z": z, "more": z.square()}

    def forward(self, categorical: Tensor, numeric: Tensor) -> Any:
        shared = self.representation(categorical, numeric)
        return torch.stack([head(shared) for head in self.heads], 1)


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(8, 1)

    def forward(self, shared: dict[str, Tensor]) -> Tensor:
        return self.last(torch.cat((shared["z"], shared["more"]), 1)).squeeze(1)


class Disagreeing(InOrder):
    def forward(self, categorical: Tensor, numeric: Tensor) -> Any:
        return super().forward(categorical, numeric) + numeric  # a wide part beside the heads


class OneHead(Heads):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({"click": self.click})


class OwnFork(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.balance = MultiBalance(NAMES)

    def form(self, click: Tensor, buy: Tensor) -> Any:
        return self.balance(click)[0], self.balance(buy)[1]


class Ignoring(Flat):
    def __init__(self, schema: Schema, fork: ForkFactory) -> None:
        super().__init__()


@pytest.mark.parametrize("kind", [Heads, InOrder])
def test_the_fork_is_placed_between_representation_and_heads(kind: type[Heads]) -> None:
    def build(fork: ForkFactory | None) -> nn.Module:
        torch.manual_seed(0)
        return build_model(f"{HERE}:{kind.__name__}", SCHEMA, fork=fork)

    batch = make_batch(SCHEMA)
    assert_cut_is_right(build, batch)
    plain, forked = build(None), build(lambda: Fork(NAMES))
    assert isinstance(plain.fork, Unforked)
    assert isinstance(forked.fork, Fork)
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in forked.named_parameters()]
    sum(losses_of(forked, batch)).backward()
    assert forked.fork.last_gram.shape == (2, 2)
    own = partition_of(forked, SCHEMA).own
    assert own["click"].isdisjoint(own["buy"])
    assert all("heads" in name or name.startswith("model.click") for name in own["click"])


class Batched(nn.Module):
    """Towers that are one batched product over stacked copies."""

    def __init__(self, fork: ForkFactory) -> None:
        super().__init__()
        self.bottom, self.fork = nn.Linear(2, 4), fork()
        self.weights, self.biases = nn.Parameter(torch.randn(2, 4, 1)), nn.Parameter(torch.zeros(2, 1, 1))

    def forward(self, categorical: Tensor, numeric: Tensor) -> list[Tensor]:
        z = self.fork.stacked(self.bottom(numeric).relu())
        return list(torch.baddbmm(self.biases, z, self.weights).squeeze(2))


def test_batched_towers_are_each_tasks_own_with_a_fork_and_without() -> None:
    def build(fork: ForkFactory | None) -> Any:
        torch.manual_seed(0)
        return build_model(f"{HERE}:Batched", SCHEMA, fork=fork)

    batch = make_batch(SCHEMA)
    plain, forked = build(None), build(lambda: FixedWeights(NAMES))
    for model in (plain, forked):
        losses = losses_of(model, batch)
        sum(losses).backward()
        found = partition_of(model, SCHEMA)
        assert {name.rpartition(".")[2] for name in found.sliced} == {"weights", "biases"}
        assert len(found.shared_parameters(model)) == 2
    apart = [torch.autograd.grad(loss, list(plain.parameters()), retain_graph=True) for loss in losses_of(plain, batch)]
    for (name, parameter), *of_tasks in zip(forked.named_parameters(), *apart, strict=True):
        weights = PRIMES if "bottom" in name else (1.0, 1.0)
        torch.testing.assert_close(
            parameter.grad, weights[0] * of_tasks[0] + weights[1] * of_tasks[1], rtol=1e-4, atol=1e-6
        )


def test_heads_by_name_go_to_their_tasks_whatever_their_order() -> None:
    model, batch = build_model(f"{HERE}:Heads", SCHEMA), make_batch(SCHEMA)
    z = model.model.representation(batch.categorical, batch.numeric)
    click, buy = model(batch.categorical, batch.numeric)
    assert torch.equal(click, model.model.click(z).squeeze(1))
    assert torch.equal(buy, model.model.buy(z).squeeze(1))


@pytest.mark.parametrize(
    ("kind", "forked", "message"),
    [
        (Plain, True, r"Plain' places no fork, .* Either let Plain\.__init__ take `fork`, .* click, buy = self\.fork\("
                      r"shared\)\. Or give Plain a method representation\(categorical, numeric\), .* self\.heads"),
        (Ignoring, True, r"Ignoring' places no fork"),
        (OneHead, False, r"expected in heads one module for each task \(click, buy\), found click\."),
        (Disagreeing, False, r"for 'click', forward returns something else than the head .* Disagreeing\.__init__"),
        (OwnFork, False, r"holds a fork of its own \(balance\), .* OwnFork\.__init__ take `fork` and call it: self\."
                         r"balance = fork\(\)"),
    ],
)  # fmt: skip
def test_what_has_no_place_for_a_fork_is_told_what_to_write(kind: type, forked: bool, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        build_model(f"{HERE}:{kind.__name__}", SCHEMA, fork=(lambda: Fork(NAMES)) if forked else None)


def test_a_model_that_takes_a_fork_without_using_it_is_trained_by_methods_without_one() -> None:
    assert isinstance(build_model(f"{HERE}:Ignoring", SCHEMA), Ignoring)


class Stating(ByName):
    """Says itself what is shared, against what the graph shows."""

    def shared_parameters(self) -> list[nn.Parameter]:
        return [self.table.weight]

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        return list(getattr(self, task).parameters())


def test_a_partition_that_the_author_states_is_kept() -> None:
    model = build_model(f"{HERE}:Stating", SCHEMA)
    assert isinstance(model, OwnModel)
    found = partition_of(model, SCHEMA)
    assert found.shared_parameters(model) == [model.model.table.weight]
    assert found.unused == {"model.bottom.weight", "model.bottom.bias"}


class Auxiliary(ByName):
    def auxiliary_losses(self, labels: Tensor) -> dict[str, Tensor]:
        return {"buy": labels[:, 1] * self.buy.weight.square().sum()}


def test_auxiliary_losses_of_an_own_model_are_handed_on() -> None:
    model = build_model(f"{HERE}:Auxiliary", SCHEMA)
    assert model.auxiliary_losses(torch.ones(3, 2))["buy"].shape == (3,)
    assert build_model(f"{HERE}:ByName", SCHEMA).auxiliary_losses(torch.ones(3, 2)) is None


@pytest.mark.parametrize("kind", [Heads, InOrder, ByName, Matrix, Batched])
def test_an_own_model_is_exported_and_compiled(kind: type[nn.Module]) -> None:
    model, batch = build_model(f"{HERE}:{kind.__name__}", SCHEMA).eval(), make_batch(SCHEMA)
    expected = model(batch.categorical, batch.numeric)
    program = torch.export.export(model, (batch.categorical, batch.numeric))
    torch.compiler.reset()
    compiled: Callable[..., Any] = torch.compile(model, fullgraph=True, backend="aot_eager")
    for run in (program.module(), compiled):
        for one, other in zip(run(batch.categorical, batch.numeric), expected, strict=True):
            torch.testing.assert_close(one, other)


def test_a_name_leads_back_to_the_model() -> None:
    assert name_of(Plain) == f"{HERE}:Plain"
    assert MODELS[name_of(SharedBottom)] is SharedBottom
    notebook = type("Mine", (Plain,), {"__module__": "__main__", "__qualname__": "Mine"})
    assert name_of(notebook) == "Mine"
    assert MODELS["Mine"] is notebook


@pytest.mark.parametrize("model", [lambda width: sized(width=width), Plain()], ids=["lambda", "module"])
def test_what_no_worker_could_find_is_refused(model: Any) -> None:
    with pytest.raises(SettingError, match="a class or function at the top level of a module, found"):
        name_of(model)
