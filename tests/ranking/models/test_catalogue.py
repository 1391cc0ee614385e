"""Models by name: equipoise's own and any other module; options and outputs are checked with one clear message."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from equipoise.errors import SettingError
from equipoise.forks.fork import Fork
from equipoise.ranking.models import (
    MODELS,
    PLE,
    ForkFactory,
    MMoE,
    SharedBottom,
    build_model,
    partition_of,
    register,
)
from equipoise.ranking.models.trial import trial_outputs
from equipoise.schema import Categorical, Numeric, Schema, Task
from tests.ranking.models.cuts import assert_cut_is_right, losses_of, make_batch

SCHEMA = Schema([Categorical("user", 30)], [Numeric("price"), Numeric("age")], [Task("click"), Task("buy")])
NAMES = ("click", "buy")


class Foreign(nn.Module):
    """A model that knows nothing of RankingModel, with dropout, batch normalisation and a layer that nobody reads."""

    def __init__(
        self, schema: Schema, fork: ForkFactory, width: int = 4, rate: float = 0.5, widths: tuple[int, ...] = (4,),
        batch_norm: bool = True, activation: str = "relu", extra: object = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.table = nn.Embedding(schema.categorical[0].cardinality, width)
        self.bottom = nn.Sequential(nn.Linear(width + 2, width), nn.Dropout(rate))
        self.norm = nn.BatchNorm1d(width) if batch_norm else nn.Identity()
        self.fork = fork()
        self.click, self.buy, self.unread = (nn.Linear(width, 1) for _ in range(3))
        self.given = {"widths": widths, "activation": activation, "extra": extra, "rate": rate}

    def forward(self, categorical: Tensor, numeric: Tensor) -> tuple[Tensor, ...]:
        z = torch.cat((self.table(categorical[:, 0]), numeric), 1)
        for_click, for_buy = self.fork(self.norm(self.bottom(z)))
        return self.click(for_click).squeeze(1), self.buy(for_buy).squeeze(1)


def foreign(schema: Schema, fork: ForkFactory, **options: object) -> nn.Module:
    """A function in the place of a class, which takes what it likes."""
    return Foreign(schema, fork, **options)


def demanding(schema: Schema, fork: ForkFactory, *, width: int) -> nn.Module:
    return Foreign(schema, fork, width)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    before = MODELS.registered()
    register("foreign", Foreign)
    yield
    MODELS.restore(before)


def test_own_models_are_found_by_name() -> None:
    assert [type(build_model(name, SCHEMA)) for name in ("shared-bottom", "mmoe", "ple")] == [SharedBottom, MMoE, PLE]
    assert list(MODELS)[:3] == ["shared-bottom", "mmoe", "ple"]


def test_an_unknown_name_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(
        SettingError, match=r"Expected a model out of shared-bottom, mmoe, ple, .*, foreign; found 'dlrm'"
    ):
        build_model("dlrm", SCHEMA)


@pytest.mark.parametrize("name", ["foreign", f"{__name__}:Foreign", f"{__name__}:foreign"])
@pytest.mark.parametrize("fork", [None, lambda: Fork(NAMES)], ids=["plain", "forked"])
def test_any_module_can_be_built_by_name_or_import_path(name: str, fork: ForkFactory | None) -> None:
    model = build_model(name, SCHEMA, fork=fork, width=6)
    assert model.bottom[0].out_features == 6
    assert isinstance(model.fork, Fork) == (fork is not None)
    losses = losses_of(model, make_batch(SCHEMA))
    sum(losses).backward()
    assert model.table.weight.grad is not None


def test_the_trial_leaves_the_model_the_random_state_and_the_modes_as_they_were() -> None:
    torch.manual_seed(0)
    model = Foreign(SCHEMA, lambda: Fork(NAMES))
    model.norm.eval()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    trial_outputs(model, SCHEMA)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training
    assert not model.norm.training


def test_options_are_brought_to_the_kind_of_their_default() -> None:
    model = build_model("foreign", SCHEMA, rate=1, widths=[8, 4], activation="gelu", extra={"a": 1})
    assert model.given == {"widths": (8, 4), "activation": "gelu", "extra": {"a": 1}, "rate": 1}
    assert build_model("foreign", SCHEMA, widths=8).given["widths"] == (8,)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("foreign", {"colour": 1}, "'foreign' takes the options width, rate, .* extra; found colour"),
        ("mmoe", {"fork_": 1}, "'mmoe' takes the options embedding_dim, .* sparse; found fork_"),
        ("foreign", {"width": 2.0}, "'foreign', width: expected a value like 4, found 2.0"),
        ("foreign", {"width": True}, "'foreign', width: expected a value like 4, found True"),
        ("foreign", {"rate": "half"}, "rate: expected a value like 0.5, found 'half'"),
        ("foreign", {"batch_norm": 1}, "batch_norm: expected a value like True, found 1"),
        ("foreign", {"widths": "wide"}, "widths: expected whole numbers such as 128-64, found 'wide'"),
        ("mmoe", {"experts": 0}, "'mmoe': MMoE needs at least 1 expert, found 0"),
        ("ple", {"levels": 0}, "'ple': PLE needs at least 1 level, found 0"),
        (f"{__name__}:demanding", {}, "needs the options width, which have no default"),
    ],
)  # fmt: skip
def test_bad_options_are_refused_by_name(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        build_model(name, SCHEMA, **options)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda z: z.t(), r"one tensor of shape \[2, 3\] torch.float32\. Return torch\.stack\(outputs, dim=1\)"),
        (lambda z: z[:, :1], r"one tensor of shape \[3, 1\]"),
        (lambda z: z.long(), r"one tensor of shape \[3, 2\] torch\.int64"),
        (lambda z: {"click": z[:, 0], "bye": z[:, 1]}, r"a dict with 'click': \[3\] .* There is none for buy"),
        (lambda z: (z[:, 0],), r"per task, in the order click, buy or by name.* for B = 3 it returned 1 values: \[3\]"),
        (lambda z: (z[:, 0], z), r"2 values: \[3\] torch.float32, \[3, 2\] torch.float32"),
        (lambda z: (z[:, 0], z[:, 1].long()), r"2 values: \[3\] torch.float32, \[3\] torch.int64"),
        (lambda z: (z[:, 0], 0.5), r"2 values: \[3\] torch.float32, 0\.5"),
        (lambda z: (z[:, 0].mean(), z[:, 1].mean()), r"\[\] torch.float32"),
        (lambda _: None, "it returned a NoneType"),
        (lambda _: (), "it returned 0 values: none"),
        (lambda z: z[:, 5], r"fails on a batch of 3 rows \(categorical \[3, 1\] int64.*IndexError: index 5"),
    ],
)
def test_what_is_not_one_output_per_row_and_task_is_refused_with_what_to_return(returned, message: str) -> None:
    class Odd(nn.Module):
        def forward(self, categorical: Tensor, numeric: Tensor) -> object:
            return returned(numeric)

    register("odd", Odd)
    with pytest.raises(SettingError, match=f"Model 'odd' .*{message}"):
        build_model("odd", SCHEMA)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (3, "expected a class or function that builds the model, found a int"),
        (nn.Linear(2, 2), "found a Linear that is built: every training starts from new weights"),
    ],
)
def test_what_is_no_model_is_refused(entry: object, message: str) -> None:
    register("wrong", entry)
    with pytest.raises(SettingError, match=f"The model 'wrong' cannot be used: .*{message}"):
        build_model("wrong", SCHEMA)


def test_a_builder_that_returns_no_module_is_refused() -> None:
    register("words", lambda schema, fork: f"a model of {schema} with {fork}")
    with pytest.raises(SettingError, match=r"'words': expected a torch\.nn\.Module, found a str"):
        build_model("words", SCHEMA)


@pytest.mark.parametrize("name", ["mmoe", "foreign"])
def test_the_partition_is_that_of_the_gradients_whoever_states_it(name: str) -> None:
    model = build_model(name, SCHEMA)
    partition = partition_of(model, SCHEMA)
    gradients = [
        torch.autograd.grad(losses_of(model, make_batch(SCHEMA))[task], list(model.parameters()), allow_unused=True)
        for task in range(2)
    ]
    shared = {id(parameter) for parameter in partition.shared_parameters(model)}
    own = [{id(parameter) for parameter in partition.task_parameters(model, task)} for task in NAMES]
    for (parameter_name, parameter), *reached in zip(model.named_parameters(), *gradients, strict=True):
        tasks = {task for task, gradient in zip(NAMES, reached, strict=True) if gradient is not None}
        assert (id(parameter) in shared) == (len(tasks) == 2)
        assert [id(parameter) in part for part in own] == [tasks == {task} for task in NAMES]
        assert (parameter_name in partition.unused) == (not tasks)


def test_a_partition_holds_for_another_copy_of_the_model() -> None:
    partition = partition_of(build_model("mmoe", SCHEMA), SCHEMA)
    other = build_model("mmoe", SCHEMA)
    assert [id(p) for p in partition.shared_parameters(other)] == [id(p) for p in other.shared_parameters()]
    assert [id(p) for p in partition.task_parameters(other, "buy")] == [id(p) for p in other.task_parameters("buy")]


def test_the_proof_of_cuts_serves_foreign_models_too() -> None:
    def build(fork: ForkFactory | None) -> nn.Module:
        torch.manual_seed(0)
        return build_model("foreign", SCHEMA, fork=fork, rate=0.0)

    assert_cut_is_right(build, make_batch(SCHEMA))


def test_the_registry_of_models_imports_no_optional_package() -> None:
    code = (
        "import equipoise.ranking.models, sys; "
        "print(sorted({'torchmetrics', 'torchrec', 'torchjd', 'polars', 'pydantic'} & sys.modules.keys()))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
