"""Interactions by name, and the builder of a model's input."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final

from torch import nn

from equipoise.errors import SettingError
from equipoise.ranking.embedding import FeatureEmbedding, Input
from equipoise.ranking.interactions.dcn_v2 import DCNv2
from equipoise.ranking.interactions.dlrm import DLRM
from equipoise.ranking.interactions.fm import FM
from equipoise.ranking.interactions.masknet import MaskNet
from equipoise.ranking.options import checked_options
from equipoise.registry import Registry
from equipoise.schema import Schema

__all__ = ["INTERACTIONS", "InputBuilder", "build_input", "register"]

InputBuilder = Callable[..., Input]
"""``build(schema, dim, sparse=..., **options)`` returns an :class:`Input`."""


def _input_builder(_: str, found: Any) -> InputBuilder:
    parameters = inspect.signature(found).parameters if callable(found) else {}
    if not {"schema", "dim", "sparse"} <= parameters.keys():
        what = f"one that takes ({', '.join(parameters)})" if callable(found) else f"a {type(found).__name__}"
        raise TypeError(f"expected a class or function that takes (schema, dim, sparse), found {what}.")
    builder: InputBuilder = found
    return builder


INTERACTIONS: Final = Registry[InputBuilder](
    "interaction",
    "equipoise.interactions",
    own={"none": FeatureEmbedding, "dlrm": DLRM, "dcn-v2": DCNv2, "fm": FM, "masknet": MaskNet},
    adapt=_input_builder,
)
"""The interactions by name; iterating gives the names. "none" puts embeddings and numbers side by side. Other packages
add theirs by :func:`register`, or by an entry point in the group ``equipoise.interactions``."""

register = INTERACTIONS.register


def build_input(schema: Schema, /, *, embedding_dim: int, interaction: str = "none", sparse: bool = False) -> Input:
    """Build the first layer of a model: embeddings, and how features interact before the model reads them.

    Args:
        schema: the features.
        embedding_dim: width of one categorical feature's embedding.
        interaction: one of :data:`INTERACTIONS`, or an import path such as ``"package.module:Class"``; options follow
            behind a colon, as in ``"dcn-v2:layers=3,rank=32"``.
        sparse: give the embedding table sparse gradients.

    Returns:
        A module that takes ids and numbers, and returns shape [B, ``width``].

    Raises:
        SettingError: there is no interaction of that name, or an option is not known, of another kind than its default
            or out of range.
        ValueError: the schema has no feature, or ``embedding_dim`` is under 1.

    Example:
        >>> from equipoise.schema import Categorical, Numeric, Task
        >>> schema = Schema([Categorical("user", 9), Categorical("item", 5)], [Numeric("age")], [Task("buy")])
        >>> build_input(schema, embedding_dim=4).width
        9
        >>> build_input(schema, embedding_dim=4, interaction="masknet:blocks=3,block=16").width
        48
    """
    name, stated = INTERACTIONS.parse(interaction)
    builder = INTERACTIONS[name]
    what = f"Interaction {name!r}"
    options = checked_options(what, builder, stated, given={"schema", "dim", "sparse"})
    found = builder(schema, embedding_dim, sparse=sparse, **options)
    if not isinstance(found, nn.Module) or not isinstance(getattr(found, "width", None), int):
        raise SettingError(
            f"{what}: expected a torch.nn.Module with the columns of its output as the attribute width, found a "
            f"{type(found).__name__}."
        )
    return found
