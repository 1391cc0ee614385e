"""The methods that can be trained and compared, by name."""

from __future__ import annotations

from typing import Any, Final

from equipoise.methods.forks import MultiBalanceMethod
from equipoise.methods.loss_weights import EqualWeights, SingleTask
from equipoise.methods.method import Method, MethodError
from equipoise.methods.updates import AdaTaskMethod, ClippyMethod, PubMethod

__all__ = ["METHODS", "Method", "MethodError", "parse_method"]

_METHODS: Final[tuple[Method, ...]] = (
    SingleTask("single-task", "Single task", "One model per task, trained on its loss alone."),
    EqualWeights("equal", "Equal weights", "The plain sum of the losses."),
    MultiBalanceMethod(
        "multibalance", "MultiBalance",
        "Gradients at the fork brought to equal length, then balanced by their cosines.",
    ),
    MultiBalanceMethod(
        "multibalance-paper", "MultiBalance (paper)",
        "Gradients at the fork in their own averaged length, balanced by their Gram matrix.",
        {"magnitude": "own", "direction": "gram", "beta": 1.0},
    ),
    MultiBalanceMethod(
        "multibalance-no-magnitude", "MultiBalance, no magnitude", "Ablation: direction alone.",
        {"magnitude": "none"},
    ),
    MultiBalanceMethod(
        "multibalance-no-direction", "MultiBalance, no direction", "Ablation: magnitude alone.",
        {"direction": "none"},
    ),
    PubMethod("pub", "PUB", "Updates weighed so that every task gains from the joint one; our defaults."),
    PubMethod(
        "pub-authors", "PUB (authors)", "Updates weighed as the authors of PUB publish it.",
        {"utility": "update", "step": "authors", "state": "weighted", "update_every": 10},
    ),
    PubMethod(
        "pub-adatask", "PUB + AdaTask", "PUB on updates from an optimizer state of each task's own.",
        {"utility": "update"}, own_state=True,
    ),
    AdaTaskMethod("adatask", "AdaTask", "An optimizer state of each task's own on shared parameters."),
    ClippyMethod("clippy", "Clippy", "The plain sum of the losses, updates bounded by the parameters' size."),
)  # fmt: skip

METHODS: Final[dict[str, Method]] = {method.name: method for method in _METHODS}
"""Every method under its name."""


def parse_method(text: str, /) -> Method:
    """A method by its name, options behind a colon.

    Raises:
        MethodError: there is no such method or option, or an option's value is refused.

    Example:
        >>> parse_method("multibalance:beta=0.1,direction=gram").options
        {'beta': 0.1, 'direction': 'gram'}
        >>> parse_method("pcgrad")
        Traceback (most recent call last):
        equipoise.methods.method.MethodError: Expected a method out of ...; found 'pcgrad'.
    """
    name, colon, stated = text.partition(":")
    if name not in METHODS:
        raise MethodError(f"Expected a method out of {', '.join(METHODS)}; found {name!r}.")
    options: dict[str, Any] = {}
    for pair in stated.split(",") if colon else ():
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise MethodError(f"Method {name!r}: expected options as key=value with commas between; found {pair!r}.")
        options[key] = parse_scalar(value)
    return METHODS[name].with_options(**options)


def parse_scalar(text: str, /) -> bool | int | float | str:
    """A word of the command line as the number or truth value that it spells, else as it is.

    Example:
        >>> parse_scalar("0.3"), parse_scalar("10"), parse_scalar("true"), parse_scalar("gram")
        (0.3, 10, True, 'gram')
    """
    if text in {"true", "false"}:
        return text == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
