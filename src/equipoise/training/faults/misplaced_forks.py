"""A warning at the first step of a training if a fork is not where the tasks meet."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from torch import Tensor, nn

from equipoise.checking import check
from equipoise.errors import MisplacedForkWarning

__all__ = ["warn_of_misplaced_forks"]


def warn_of_misplaced_forks(model: nn.Module, losses: Mapping[str, Tensor], /) -> None:
    """Check one batch's losses before their backward pass, and warn of every problem.

    What cannot be seen, as in a compiled model, is no reason to warn; see :func:`equipoise.check`. PUB and AdaTask warn
    of their ``shared`` themselves, in their first backward.

    Warns:
        MisplacedForkWarning: a problem was found; the training goes on.
    """
    problems = check(model, losses).problems
    if problems:
        warnings.warn("\n".join(problems), MisplacedForkWarning, stacklevel=2)
