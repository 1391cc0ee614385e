"""The ranking models, and the names under which commands know them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from equipoise.ranking.models.base import ForkFactory, RankingModel
from equipoise.ranking.models.mmoe import MMoE
from equipoise.ranking.models.ple import PLE
from equipoise.ranking.models.shared_bottom import SharedBottom
from equipoise.schema import Schema

__all__ = ["MODELS", "PLE", "ForkFactory", "MMoE", "RankingModel", "SharedBottom", "build_model"]

MODELS: dict[str, Callable[..., RankingModel]] = {"shared-bottom": SharedBottom, "mmoe": MMoE, "ple": PLE}


def build_model(name: str, schema: Schema, *, fork: ForkFactory | None = None, **options: Any) -> RankingModel:
    """Builds a model by its name in ``MODELS``; ``options`` are the model's own.

    Raises:
        ValueError: there is no model of that name.

    Example:
        >>> from equipoise.schema import Categorical, Schema, Task
        >>> model = build_model("mmoe", Schema([Categorical("user", 9)], [], [Task("click")]), experts=2)
        >>> type(model).__name__
        'MMoE'
    """
    if name not in MODELS:
        raise ValueError(f"Unknown model {name!r}: expected one of {', '.join(map(repr, MODELS))}.")
    return MODELS[name](schema, fork=fork, **options)
