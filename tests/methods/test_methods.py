import pytest
import torch
from torch import nn

from equipoise import PUB, AdaTask, Clippy, MultiBalance
from equipoise.training import METHODS, MethodError, parse_method

TASKS = ("click", "like")


def built(name: str) -> torch.optim.Optimizer:
    parameters = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))]
    base = torch.optim.Adam(parameters)
    return parse_method(name).optimizer(base, shared=parameters[:1], tasks=TASKS)


def fork(name: str) -> MultiBalance:
    found = parse_method(name).fork(TASKS)
    assert isinstance(found, MultiBalance)
    return found


def test_the_registry_holds_what_a_comparison_runs() -> None:
    assert list(METHODS) == [
        "single-task", "equal", "multibalance", "multibalance-paper", "multibalance-no-magnitude",
        "multibalance-no-direction", "pub", "pub-authors", "pub-adatask", "adatask", "clippy",
    ]  # fmt: skip


def test_the_forks_of_multibalance_are_ours_the_papers_and_the_two_ablations() -> None:
    ours, default = fork("multibalance"), MultiBalance(TASKS)
    assert repr(ours) == repr(default)
    paper = fork("multibalance-paper")
    assert (paper.magnitude, paper.direction, paper.beta) == ("own", "gram", 1.0)
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
    authors = built("pub-authors")
    assert isinstance(authors, PUB)
    assert (authors.utility, authors.step_form, authors.state_form) == ("update", "authors", "weighted")
    assert (authors.update_every, authors.tasks) == (10, TASKS)
    assert type(authors.optimizer) is torch.optim.Adam


def test_only_single_task_training_takes_a_model_per_task() -> None:
    for name, method in METHODS.items():
        expected = [("click",), ("like",)] if name == "single-task" else [TASKS]
        assert method.groups(TASKS) == expected


def test_options_are_overridden_by_name_and_the_method_says_so() -> None:
    method = parse_method("multibalance-paper:beta=0.3,direction=cosine")
    assert method.name == "multibalance-paper:beta=0.3,direction=cosine"
    found = method.fork(TASKS)
    assert isinstance(found, MultiBalance)
    assert (found.beta, found.magnitude, found.direction) == (0.3, "own", "cosine")
    assert METHODS["multibalance-paper"].options["beta"] == 1.0
    pub = built("pub:update_every=3,step=match")
    assert isinstance(pub, PUB)
    assert (pub.update_every, pub.step_form) == (3, "match")


def test_a_name_with_options_names_the_same_method_again() -> None:
    for text in ("equal", "multibalance:beta=0.30", "pub:step=match,update_every=2", "clippy:relative=1"):
        method = parse_method(text)
        assert parse_method(method.name) == method


def test_settings_change_with_the_options_and_differ_between_methods() -> None:
    assert parse_method("multibalance:beta=0.7").settings(TASKS) != METHODS["multibalance"].settings(TASKS)
    assert "beta=0.7" in parse_method("multibalance:beta=0.7").settings(TASKS)
    assert "update_every=3" in parse_method("pub:update_every=3").settings(TASKS)
    assert "AdaTask(Adam)" in METHODS["pub-adatask"].settings(TASKS)
    assert "relative=0.2" in parse_method("clippy:relative=0.2").settings(TASKS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pcgrad", "Expected a method out of single-task, equal, .*, clippy; found 'pcgrad'"),
        ("", "found ''"),
        ("equal:beta=1", "'equal' takes no options; found beta"),
        ("multibalance:alpha=1", "takes gamma, rho, beta, magnitude, direction, clip, overlap; found alpha"),
        ("multibalance:beta", "options as key=value with commas between; found 'beta'"),
        ("multibalance:", "options as key=value"),
        ("multibalance:beta=-1", "rho and beta must be finite and at least 0.*beta=-1"),
        ("multibalance:beta=high", "beta must be a number, found .high."),
        ("multibalance:direction=up", "direction must be one of .*found 'up'"),
        ("pub:update_every=0", "update_every must be at least 1, found 0"),
        ("pub:shared=1", "takes update_every, .*; found shared"),
        ("pub-adatask:utility=gradient", "AdaTask"),
        ("clippy:relative=-1", "relative must be at least 0, found -1"),
    ],
)
def test_what_cannot_be_is_refused_with_one_message(text: str, message: str) -> None:
    with pytest.raises(MethodError, match=message):
        parse_method(text)


def test_every_method_has_something_to_say_for_itself() -> None:
    assert len({method.label for method in METHODS.values()}) == len(METHODS)
    for method in METHODS.values():
        assert method.summary.endswith(".")
        assert method.family
