"""A nested state as JSON and a flat table of its tensors, so that no file of a checkpoint can hold code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["decode", "encode"]


def encode(state: Any, tensors: dict[str, Tensor], /, path: str = "") -> Any:
    """Return the state as JSON can hold it, and put its tensors into ``tensors`` under their paths.

    Raises:
        TypeError: the state holds something that is neither a tensor nor plain.

    Example:
        >>> found = {}
        >>> encode({"betas": (0.9, 0.999), "steps": {3: None}}, found)
        {'betas': {'tuple': [0.9, 0.999]}, 'steps': {'items': [[3, None]]}}
    """
    if isinstance(state, Tensor):
        tensors[path] = state
        return {"tensor": path}
    if state is None or isinstance(state, bool | int | float | str):
        return state
    if isinstance(state, list | tuple):
        entries = [encode(entry, tensors, f"{path}/{place}") for place, entry in enumerate(state)]
        return entries if isinstance(state, list) else {"tuple": entries}
    if isinstance(state, Mapping):
        if all(isinstance(key, str) for key in state) and len(state) != 1:
            return {key: encode(entry, tensors, f"{path}/{key}") for key, entry in state.items()}
        # A single key could be "tensor", "tuple" or "items"; JSON has no keys but strings.
        items = [[encode(key, tensors), encode(entry, tensors, f"{path}/{key}")] for key, entry in state.items()]
        return {"items": items}
    raise TypeError(
        f"Expected tensors, numbers, strings and containers of them at {path}, found {type(state).__name__}."
    )


def decode(plain: Any, tensors: Mapping[str, Tensor], /) -> Any:
    """Return the state that :func:`encode` was given.

    Raises:
        KeyError: a tensor is missing.
        ValueError, TypeError: ``plain`` is not what :func:`encode` gives.

    Example:
        >>> decode({"betas": {"tuple": [0.9, 0.999]}, "steps": {"items": [[3, None]]}}, {})
        {'betas': (0.9, 0.999), 'steps': {3: None}}
    """
    if isinstance(plain, list):
        return [decode(entry, tensors) for entry in plain]
    if not isinstance(plain, dict):
        return plain
    if len(plain) == 1:
        ((kind, content),) = plain.items()
        if kind == "tensor":
            return tensors[content]
        if kind == "tuple":
            return tuple(decode(entry, tensors) for entry in content)
        if kind != "items":
            raise ValueError(f"expected tensor, tuple or items, found {kind!r}")
        return {decode(key, tensors): decode(entry, tensors) for key, entry in content}
    return {key: decode(entry, tensors) for key, entry in plain.items()}
