"""Methods that balance the tasks' gradients where they meet, at the fork."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from equipoise.forks.fork import Fork
from equipoise.forks.multibalance import MultiBalance
from equipoise.methods.method import Method, keyword_options

__all__ = ["MultiBalanceMethod"]


@dataclass(frozen=True)
class MultiBalanceMethod(Method):
    """MultiBalance at the fork; options are those of :class:`equipoise.MultiBalance`."""

    family: ClassVar[str] = "gradients at the fork"
    monitored: ClassVar[bool] = True

    def known_options(self) -> Mapping[str, Any]:
        """The keyword-only parameters of MultiBalance."""
        return keyword_options(MultiBalance)

    def settings(self, tasks: Sequence[str]) -> str:
        """The fork, spelled out."""
        return repr(self.fork(tasks))

    def fork(self, tasks: Sequence[str]) -> Fork:
        """MultiBalance over the tasks."""
        return MultiBalance(list(tasks), **self.options)
