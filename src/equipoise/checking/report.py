"""The result of a check, and the words for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

__all__ = ["Report", "by_module", "quoted", "some"]

_MOST = 4  # names in one sentence


@dataclass
class Report:
    """The findings of :func:`equipoise.check`; ``print(report)`` shows them in words.

    Attributes:
        tasks: the names of the tasks.
        shared: the names of the parameters that at least two tasks' losses reach.
        sliced: the names of the parameters of which each task's loss reaches a slice of its own.
        own: task -> the names of the parameters that its loss alone reaches.
        unreached: the names of the trainable parameters that no loss reaches.
        forks: one sentence per use of a fork.
        problems: what is wrong and what to do, in a few sentences each.
        unseen: what could not be checked, and why.
    """

    tasks: list[str]
    shared: list[str] = field(default_factory=list)
    sliced: list[str] = field(default_factory=list)
    own: dict[str, list[str]] = field(default_factory=dict)
    unreached: list[str] = field(default_factory=list)
    forks: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if no problem was found and everything could be checked."""
        return not self.problems and not self.unseen

    def __str__(self) -> str:
        known = [*self.shared, *self.sliced, *(name for names in self.own.values() for name in names), *self.unreached]
        lines = []
        if self.shared or self.own:
            lines.append(f"Shared: {some(by_module(self.shared, known))}.")
            lines += [f"Only {task!r} trains: {some(by_module(names, known))}." for task, names in self.own.items()]
        if self.sliced:
            lines.append(f"Each task trains a slice: {some(by_module(self.sliced, known))}.")
        if self.unreached:
            lines.append(f"Reached by no loss: {some(by_module(self.unreached, known))}.")
        lines += self.forks
        lines += [f"Not checked: {reason}" for reason in self.unseen]
        lines += [f"Problem {number}: {problem}" for number, problem in enumerate(self.problems, start=1)]
        return "\n".join([*lines, "No problem found."] if self.ok else lines)


def by_module(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Put parameters together under their module's name where no other known parameter lies in it.

    Example:
        >>> by_module(["a.0.weight", "a.0.bias", "b.weight"], ["a.0.weight", "a.0.bias", "b.weight", "b.bias"])
        ['a', 'b.weight']
    """
    wanted = dict.fromkeys(names)
    inside: Counter[str] = Counter()
    of_all: Counter[str] = Counter()
    for name in dict.fromkeys([*known, *wanted]):
        above = [name[:place] for place, letter in enumerate(name) if letter == "."]
        of_all.update(above)
        if name in wanted:
            inside.update(above)
    found: dict[str, None] = {}
    for name in wanted:
        above = [name[:place] for place, letter in enumerate(name) if letter == "."]
        whole = (module for module in above if inside[module] == of_all[module] > 1)
        found[next(whole, name)] = None
    return list(found)


def some(names: Sequence[str]) -> str:
    """Join the first few names, and count the others."""
    if not names:
        return "nothing"
    more = len(names) - _MOST
    return ", ".join(names[:_MOST]) + (f" and {more} more" if more > 0 else "")


def quoted(names: Iterable[str]) -> str:
    """Join names in quotation marks: 'a', 'b' and 'c'."""
    words = [repr(name) for name in names]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
