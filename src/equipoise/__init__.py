"""Balanced multi-task training for recommender systems.

Put :class:`MultiBalance` between the shared layers and the tasks' towers and train as before, or wrap the optimizer in
:class:`PUB`. :func:`check` finds misplaced forks and wrong shared parameters; :class:`Monitor` reads gradient norms,
weights and cosines during training.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
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

# Imported when first used: torch takes a second, for which the command's --help need not wait. What does not stand in
# __all__ needs more than torch.
_HOMES: Final = {
    "equipoise.checking": ("check",),
    "equipoise.errors": ("MisplacedForkWarning",),
    "equipoise.forks": ("Elementwise", "Fork", "GradDrop", "MultiBalance", "Weighted", "paused"),
    "equipoise.monitor": ("Monitor",),
    "equipoise.optim": ("PUB", "AdaTask", "Clippy", "MetaBalance"),
    "equipoise.comparison": ("compare",),
    "equipoise.report.audit_from_python": ("audit",),
    "equipoise.serving": ("train",),
}
_HOME_OF: Final = {name: home for home, names in _HOMES.items() for name in names}
_ROOMS: Final = ("checking", "data", "forks", "monitor", "optim")


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_HOME_OF[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF, *_ROOMS})
