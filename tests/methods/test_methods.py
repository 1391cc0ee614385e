import dataclasses
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from equipoise import PUB, AdaTask, Clippy, Fork, MultiBalance
from equipoise.methods import CATALOGUE, METHODS, NEEDS, Method, MethodError, methods_table, parse_method, register
from equipoise.optim import MetaBalance
from equipoise.optim.task_optimizer import TaskOptimizer

TASKS = ("click", "like")
ROOT = Path(__file__).parents[2]


def built(name: str) -> torch.optim.Optimizer:
    parameters = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))]
    base = torch.optim.Adam(parameters)
    return parse_method(name).build_optimizer(base, shared=parameters[:1], tasks=TASKS)


def fork(name: str) -> MultiBalance:
    found = parse_method(name).fork_factory(TASKS)()
    assert isinstance(found, MultiBalance)
    return found


class Halving(Fork):
    """A fork of somebody else's, with an option that its repr does not show."""

    def __init__(self, tasks: list[str], *, factor: float = 0.5) -> None:
        super().__init__(tasks)
        self.factor = factor


class Relative(Fork):
    """A fork whose option has the name of one of Clippy's."""

    def __init__(self, tasks: list[str], *, relative: float = 0.5) -> None:
        super().__init__(tasks)
        self.relative = relative


def test_the_rows_of_before_are_there() -> None:
    assert [method.name for method in CATALOGUE] == list(METHODS)[: len(CATALOGUE)]
    assert {
        "single-task", "equal", "multibalance", "multibalance-own-gram", "multibalance-no-magnitude",
        "multibalance-no-direction", "pub", "pub-authors", "pub-literal", "pub-shipped", "pub-adatask", "adatask",
        "clippy",
    } <= set(METHODS)  # fmt: skip


def test_the_forks_of_multibalance_are_ours_and_three_that_say_how_they_differ() -> None:
    ours, default = fork("multibalance"), MultiBalance(TASKS)
    assert repr(ours) == repr(default)
    own = fork("multibalance-own-gram")
    assert (own.magnitude, own.direction, own.beta) == ("own", "gram", 1.0)
    ablation = fork("multibalance-no-magnitude")
    assert (ablation.magnitude, ablation.direction, ablation.beta) == ("none", ours.direction, ours.beta)
    ablation = fork("multibalance-no-direction")
    assert (ablation.magnitude, ablation.direction) == (ours.magnitude, "none")


def test_the_optimizers_are_the_ones_named() -> None:
    for name in ("single-task", "equal", "multibalance"):
        assert type(built(name)) is torch.optim.Adam
    assert isinstance(built("clippy"), Clippy)
    assert isinstance(built("adatask"), AdaTask)
    pub = built("pub-adatask")
    assert isinstance(pub, PUB)
    assert isinstance(pub.optimizer, AdaTask)
    bounded = built("pub-clippy:relative=0.2")
    assert isinstance(bounded, PUB)
    assert isinstance(bounded.optimizer, Clippy)
    assert (bounded.optimizer.relative, bounded.form) == (0.2, "ours")
    rescaled = built("pub-metabalance:target=like,update_every=3")
    assert isinstance(rescaled, PUB)
    assert isinstance(rescaled.optimizer, MetaBalance)
    assert (rescaled.optimizer.target, rescaled.update_every) == ("like", 3)
    assert built("pcd-parameters:primary=like").aggregator.primary == "like"
    authors = built("pub-authors")
    assert isinstance(authors, PUB)
    assert authors.form == "authors"
    assert (authors.update_every, authors.tasks) == (10, TASKS)
    assert type(authors.optimizer) is torch.optim.Adam


@pytest.mark.parametrize("name", [method.name for method in CATALOGUE if "whole gradients" in method.needs], ids=str)
def test_optimizers_of_several_losses_know_the_tasks_by_name(name: str) -> None:
    optimizer = built(name)
    assert isinstance(optimizer, TaskOptimizer)
    assert optimizer.tasks == TASKS
    other = parse_method(name).build_optimizer(
        torch.optim.Adam(optimizer.param_groups[0]["params"]), shared=optimizer.shared, tasks=("like", "buy")
    )
    with pytest.warns(UserWarning, match="leaves out the saved state of tasks that it does not have: click"):
        other.load_state_dict(optimizer.state_dict())
    assert other.tasks == ("like", "buy")


def test_only_single_task_training_takes_a_model_per_task() -> None:
    for method in CATALOGUE:
        expected = [("click",), ("like",)] if method.name == "single-task" else [TASKS]
        assert method.groups(TASKS) == expected


def test_options_are_overridden_by_name_and_the_method_says_so() -> None:
    method = parse_method("multibalance-own-gram:gamma=0.3")
    assert method.name == "multibalance-own-gram:gamma=0.3"
    assert method.label == "MultiBalance, own lengths and Gram matrix (gamma=0.3)"
    found = method.fork_factory(TASKS)()
    assert isinstance(found, MultiBalance)
    assert (found.gamma, found.magnitude, found.direction) == (0.3, "own", "gram")
    assert "gamma" not in METHODS["multibalance-own-gram"].options
    pub = built("pub:update_every=3,form=matched")
    assert isinstance(pub, PUB)
    assert (pub.update_every, pub.form) == (3, "matched")
    assert "solve_on='last'" in repr(built("pub:solve_on=last"))
    assert "solve_on='last'" in repr(built("pub-clippy:solve_on=last"))
    assert built("pub-adatask:update_every=3").update_every == 3


def test_options_can_be_added_one_after_the_other() -> None:
    method = parse_method("multibalance:beta=0.3").with_options(gamma=0.1)
    assert method.name == "multibalance:beta=0.3,gamma=0.1"
    assert method == parse_method(method.name)


@pytest.mark.parametrize(
    "text",
    [
        "equal", "multibalance:beta=0.30", "pub:form=matched,update_every=2", "clippy:relative=1",
        "static:weights=1-0.5-3", "static:weights=.00001-2", "multibalance:overlap=true", "multibalance:gram_every=4",
    ],
)  # fmt: skip
def test_a_name_with_options_names_the_same_method_again(text: str) -> None:
    method = parse_method(text)
    assert parse_method(method.name) == method


def test_settings_change_with_the_options_and_differ_between_methods() -> None:
    assert parse_method("multibalance:beta=0.7").settings(TASKS) != METHODS["multibalance"].settings(TASKS)
    assert "beta=0.7" in parse_method("multibalance:beta=0.7").settings(TASKS)
    assert "update_every=3" in parse_method("pub:update_every=3").settings(TASKS)
    assert "AdaTask(Adam)" in METHODS["pub-adatask"].settings(TASKS)
    assert "relative=0.2" in parse_method("clippy:relative=0.2").settings(TASKS)
    assert len({method.settings(TASKS) for method in CATALOGUE}) == len(CATALOGUE)


def test_settings_of_an_own_method_hold_its_options_and_no_address() -> None:
    class Plain:
        """Its repr is object's own, with an address."""

        def __init__(self, optimizer: torch.optim.Optimizer, *, strength: float = 1.0) -> None:
            self.param_groups = optimizer.param_groups

    own = Method("own", fork=Halving, optimizer=Plain)
    changed = own.with_options(factor=0.25, strength=2.0)
    assert "factor=0.25,strength=2.0" in changed.settings(TASKS)
    assert "Halving" in changed.settings(TASKS)
    assert "0x" not in changed.settings(TASKS)
    assert own.settings(TASKS) != changed.settings(TASKS)


def test_an_optimizers_factory_is_given_what_it_asks_for() -> None:
    given = {}

    def tasks_alone(optimizer, *, tasks, strength: float = 1.0):
        given.update(tasks=tasks, strength=strength)
        return optimizer

    parameter = nn.Parameter(torch.ones(1))
    base = torch.optim.SGD([parameter])
    method = Method("own", optimizer=tasks_alone, options={"strength": 2.0})
    assert method.build_optimizer(base, shared=[parameter], tasks=TASKS) is base
    assert given == {"tasks": ["click", "like"], "strength": 2.0}
    assert method.known_options() == {"strength": 1.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pcgard", r"Expected a method out of single-task, equal, .*; found 'pcgard'"),
        ("", "found ''"),
        ("equal:beta=1", "'equal' takes no options; found beta"),
        (
            "multibalance:alpha=1",
            "takes gamma, rho, beta, magnitude, direction, reduction, clip, overlap, gram_every; found alpha",
        ),
        ("multibalance:beta", "options as key=value with commas between; found 'beta'"),
        ("multibalance:", "options as key=value"),
        ("multibalance:beta=-1", r"rho and beta must be finite and at least 0.*beta=-1"),
        ("multibalance:beta=high", "beta must be a number, found .high."),
        ("multibalance:direction=up", r"direction must be one of .*found 'up'"),
        ("multibalance:beta=0.1,beta=0.2", "expected every option once, found beta twice"),
        ("multibalance-no-direction:direction=gram", "stands for direction=none, which cannot be set again"),
        ("pub:solve_on=last,form=matched", "found form 'matched', which needs them in any case"),
        ("pub-authors:solve_on=last", "stands for solve_on=all, which cannot be set again"),
        ("pub:solve_on=first", 'must be "auto", "all", "last" or a list of shared parameters, found \'first\''),
        ("pub:update_every=0", "update_every must be a whole number of at least 1, found 0"),
        ("pub:shared=1", "takes form, update_every, solve_on; found shared"),
        ("pub-adatask:form=ours", "Around AdaTask form must be"),
        ("clippy:relative=-1", "relative must be at least 0, found -1"),
        ("static:weights=1", "expected one number per task, with hyphens between as in 1-0.5-3; found 1"),
        ("static:weights=1--1", "expected one number per task.*found '1--1'"),
        ("static:weights=0-0", r"finite numbers of at least 0, one of them above 0; found \[0, 0\]"),
        ("no_such_package:METHOD", r"function|method 'no_such_package:METHOD'.*No module named 'no_such_package'"),
        ("math:pi", "'math:pi' cannot be used: expected an equipoise.methods.Method, found float"),
    ],
)
def test_what_cannot_be_is_refused_with_one_message(text: str, message: str) -> None:
    with pytest.raises(MethodError, match=message):
        parse_method(text)


def test_a_method_that_cannot_be_meant_is_refused_when_it_is_made() -> None:
    with pytest.raises(MethodError, match=r"expected needs out of a model per task, .*; found more memory"):
        Method("own", needs={"more memory"})
    with pytest.raises(MethodError, match="takes factor; found beta"):
        Method("own", fork=Halving, options={"beta": 1})
    with pytest.raises(MethodError, match="relative is an option of two factories"):
        Method("own", fork=Relative, optimizer=Clippy)


def test_options_with_one_number_per_task_go_with_preferences() -> None:
    method = parse_method("static:weights=1-0.5-2-4").with_task_weights({"b": 3.0})
    weighting = method.build_loss_weighting(("a", "b", "c", "d"))
    assert weighting.weigh(torch.ones(4), torch.ones(4) > 0).tolist() == pytest.approx([2 / 3, 1, 4 / 3, 8 / 3])


def test_every_row_has_something_to_say_for_itself() -> None:
    assert len({method.label for method in CATALOGUE}) == len(CATALOGUE)
    for method in CATALOGUE:
        assert method.summary.endswith(".")
        assert method.family
        assert bool(method.paper) == bool(method.year)
        assert pickle.loads(pickle.dumps(method)) == method


def test_the_documented_table_is_that_of_the_catalogue() -> None:
    page = (ROOT / "docs" / "methods.md").read_text()
    assert methods_table() in page
    assert "".join(f"| `{need}` | {meaning} |\n" for need, meaning in NEEDS.items()) in page


@pytest.mark.usefixtures("own_methods")
def test_the_documented_example_of_an_own_method_runs() -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "methods.md").read_text(), re.MULTILINE | re.DOTALL)
    exec(compile(code, "methods.md", "exec"), {"__name__": "documented"})
    shared = torch.ones(3, requires_grad=True)
    for_click, for_like = parse_method("norms:power=0.5").fork_factory(TASKS)()(shared)
    (4 * for_click.sum() + for_like.sum()).backward()
    torch.testing.assert_close(shared.grad, torch.full((3,), (4**0.5 + 1) / 3**0.25))


@pytest.mark.usefixtures("own_methods")
def test_a_registered_method_is_found_by_name_with_options() -> None:
    register(Method("halving", fork=Halving))
    assert "halving" in METHODS
    found = parse_method("halving:factor=0.25").fork_factory(TASKS)()
    assert isinstance(found, Halving)
    assert (found.tasks, found.factor) == (TASKS, 0.25)
    with pytest.raises(MethodError, match=r"'halving' is taken by register, called in test_methods\.py, line \d+"):
        register(Method("halving"))
    with pytest.raises(MethodError, match="'equal' is taken by equipoise itself"):
        register(Method("equal"))


def test_a_method_by_its_import_path_keeps_the_path_as_its_name(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "my_methods.py").write_text(
        "from equipoise import MultiBalance\n"
        "from equipoise.methods import Method\n"
        "class Shelf:\n"
        "    slow = Method('slow', 'Slow', fork=MultiBalance, options={'gamma': 0.001})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    method = parse_method("my_methods:Shelf.slow:beta=0.3")
    assert (method.name, method.label) == ("my_methods:Shelf.slow:beta=0.3", "Slow (beta=0.3)")
    assert parse_method(method.name) == method
    assert dict(method.options) == {"gamma": 0.001, "beta": 0.3}
    assert parse_method("my_methods:Shelf.slow").name == "my_methods:Shelf.slow"


def test_a_method_is_immutable_and_stays_itself_when_replaced() -> None:
    method = METHODS["multibalance"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.name = "other"  # type: ignore[misc]
    assert dataclasses.replace(method, name="other").label == "MultiBalance"


def test_the_names_are_known_without_importing_any_optional_package() -> None:
    code = "import sys; from equipoise.methods import METHODS; list(METHODS); print('torchjd' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_search_names_one_open_option_with_values() -> None:
    method = Method("searched", fork=MultiBalance, search={"gamma": (0.01, 0.1)})
    assert method.with_options(beta=0.5).search == {"gamma": (0.01, 0.1)}
    assert method.with_options(gamma=0.5).search == {}  # what is stated is not searched
    for wrong in ({"gamma": ()}, {"gamma": (0.1,), "beta": (0.1,)}, {"gama": (0.1,)}):
        with pytest.raises(MethodError, match=r"search|takes"):
            Method("searched", fork=MultiBalance, search=wrong)
    with pytest.raises(MethodError, match="not fixed"):
        Method("searched", fork=MultiBalance, options={"gamma": 0.5}, search={"gamma": (0.1,)})
