"""Checks of a loaded state before anything of it is used: each says where, what was expected and what was found.

A checkpoint is data that somebody may have changed or that another version may have written, so a loaded value can be
of any kind.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

__all__ = [
    "UnexpectedStateError",
    "expect_count",
    "expect_equal",
    "expect_keys",
    "expect_kind_of",
    "expect_list",
    "expect_tensor",
    "expect_valid",
]

T = TypeVar("T")


class UnexpectedStateError(ValueError):
    """A part of a loaded state is not what was expected: the message says which, what was expected and found.

    Args:
        place: the path of the part, such as "learner/models/0".
        words: what was found, instead of a description of ``found``.
    """

    def __init__(self, place: str, expected: str, found: object, *, words: str = "") -> None:
        super().__init__(f"{place} should be {expected}, found {words or describe(found)}")


def describe(value: object) -> str:
    """Return a value in a few words, for a message."""
    if isinstance(value, Tensor):
        return f"a tensor of {list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return f"a dict of {len(value)} entries"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)} entries"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def expect_keys(found: Any, expected: Collection[object], place: str) -> Mapping[Any, Any]:
    """Return ``found`` if it is a dict with exactly these keys."""
    if not isinstance(found, Mapping):
        raise UnexpectedStateError(place, "a dict", found)
    lacking, unknown = [key for key in expected if key not in found], [key for key in found if key not in expected]
    if lacking or unknown:
        parts = [f"{word} {_list_some(keys)}" for word, keys in (("no", lacking), ("unknown", unknown)) if keys]
        raise UnexpectedStateError(place, f"a dict of {_list_some(expected)}", found, words=" and ".join(parts))
    return found


def expect_list(found: Any, place: str, *, length: int | None = None) -> Sequence[Any]:
    """Return ``found`` if it is a list that is not empty, of ``length`` entries if that is given."""
    if not isinstance(found, list) or not found or (length is not None and len(found) != length):
        raise UnexpectedStateError(place, "a list" if length is None else f"a list of {length} entries", found)
    return found


def expect_count(found: Any, place: str) -> int:
    """Return ``found`` if it is a whole number from 0 up."""
    if type(found) is not int or found < 0:
        raise UnexpectedStateError(place, "a whole number from 0 up", found)
    return found


def expect_equal(found: Any, expected: Any, place: str) -> None:
    """Check a plain value that the settings of the training determine."""
    expect_kind_of(found, expected, place)
    if found != expected:
        raise UnexpectedStateError(place, describe(expected), found)


def expect_tensor(found: Any, like: Tensor, place: str) -> None:
    """Check that ``found`` is a tensor of the shape and dtype of ``like``."""
    if not isinstance(found, Tensor) or found.shape != like.shape or found.dtype != like.dtype:
        raise UnexpectedStateError(place, describe(like), found)


def expect_kind_of(found: Any, like: Any, place: str) -> None:
    """Check that ``found`` is built as ``like`` is: the same containers, keys, lengths, types, shapes and dtypes.

    Floats must be finite.
    """
    if isinstance(like, Tensor):
        expect_tensor(found, like, place)
    elif isinstance(like, Mapping):
        for key, value in expect_keys(found, like.keys(), place).items():
            expect_kind_of(value, like[key], f"{place}/{key}")
    elif type(found) is not type(like):
        raise UnexpectedStateError(place, f"a value such as {describe(like)}", found)
    elif isinstance(like, list | tuple):
        if len(found) != len(like):
            raise UnexpectedStateError(place, describe(like), found)
        for index, (value, other) in enumerate(zip(found, like, strict=True)):
            expect_kind_of(value, other, f"{place}/{index}")
    elif isinstance(found, float) and not math.isfinite(found):
        raise UnexpectedStateError(place, "a finite number", found)


def expect_valid(kind: TypeAdapter[T], found: Any, place: str) -> T:
    """Return ``found`` as the type that the adapter validates, without any conversion but that of whole numbers."""
    try:
        return kind.validate_json(json.dumps(found), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        inner = "/".join([place, *(str(part) for part in first["loc"])])
        raise UnexpectedStateError(
            inner, first["msg"].lower().removeprefix("input should be "), first["input"]
        ) from error
    except (TypeError, ValueError) as error:  # it holds a tensor, or a number of too many digits
        raise UnexpectedStateError(place, "text and numbers", found) from error


def _list_some(keys: Collection[object]) -> str:
    names = [str(key) for key in keys]
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:5])} and {len(names) - 5} more"
