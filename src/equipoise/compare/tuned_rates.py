"""Learning rates that tuning on validation data chose, for comparisons that do not tune."""

from __future__ import annotations

from typing import Final

__all__ = ["DEFAULT_RATE", "GRID", "rate"]

GRID: Final = (1e-3, 3e-3, 1e-2, 3e-2)
"""The rates that ``compare --tune`` tries for every method."""

DEFAULT_RATE: Final = 3e-3
"""The rate of a method that was never tuned on that data set and model: inside the grid."""

# (data set, model) -> method -> rate, as `equipoise compare --tune` chose it at that data set's defaults
_TUNED: Final[dict[tuple[str, str], dict[str, float]]] = {
    ("complete-journey", "shared-bottom"): {
        "single-task": 3e-3,
        "equal": 3e-2,
        "multibalance": 3e-2,
        "multibalance-own-gram": 3e-2,
        "multibalance-no-magnitude": 3e-2,
        "multibalance-no-direction": 1e-2,
        "pub": 3e-2,
        "pub-authors": 1e-2,
        "pub-adatask": 1e-2,
        "adatask": 1e-2,
        "clippy": 3e-2,
    },
    ("complete-journey", "mmoe"): {
        "single-task": 3e-3,
        "equal": 3e-2,
        "multibalance": 3e-2,
        "multibalance-own-gram": 3e-2,
        "multibalance-no-magnitude": 3e-2,
        "multibalance-no-direction": 3e-2,
        "pub": 3e-2,
        "pub-authors": 1e-2,
        "pub-adatask": 3e-3,
        "adatask": 3e-2,
        "clippy": 3e-2,
    },
    ("census-income", "shared-bottom"): {
        "single-task": 3e-2,
        "equal": 3e-2,
        "multibalance": 3e-2,
        "multibalance-own-gram": 3e-2,
        "multibalance-no-magnitude": 3e-2,
        "multibalance-no-direction": 3e-2,
        "pub": 3e-2,
        "pub-authors": 3e-3,
        "pub-adatask": 1e-2,
        "adatask": 1e-2,
        "clippy": 3e-2,
    },
}


def rate(dataset: str, model: str, method: str) -> float:
    """The tuned rate of a method, else of the method without its options, else :data:`DEFAULT_RATE`.

    Example:
        >>> rate("my-data", "shared-bottom", "equal")
        0.003
    """
    tuned = _TUNED.get((dataset, model), {})
    return tuned.get(method, tuned.get(method.partition(":")[0], DEFAULT_RATE))
