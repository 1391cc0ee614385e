"""Balanced multi-task training for recommender systems.

Put :class:`MultiBalance` between the shared layers and the tasks' towers and train as before, or wrap the optimizer in
:class:`PUB`. :func:`check` finds misplaced forks and wrong shared parameters; :class:`Monitor` reads gradient norms,
weights and cosines during training.
"""

from importlib import import_module
from typing import Any, Final

from equipoise.checking import check
from equipoise.errors import MisplacedForkWarning
from equipoise.forks import Elementwise, Fork, GradDrop, MultiBalance, Weighted, paused
from equipoise.monitor import Monitor
from equipoise.optim import PUB, AdaTask, Clippy, MetaBalance

__all__ = [
    "PUB",
    "AdaTask",
    "Clippy",
    "Elementwise",
    "Fork",
    "GradDrop",
    "MetaBalance",
    "MisplacedForkWarning",
    "Monitor",
    "MultiBalance",
    "Weighted",
    "check",
    "paused",
]
__version__ = "0.1.0"

# What needs more than torch is imported when it is first used.
_LATER: Final = {
    "audit": "equipoise.report.audit_from_python:audit",
    "compare": "equipoise.comparison:compare",
    "data": "equipoise.data",
    "train": "equipoise.serving:train",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _LATER[name].partition(":")
    found = import_module(module)
    return getattr(found, attribute) if attribute else found
