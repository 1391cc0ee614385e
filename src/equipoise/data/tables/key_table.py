"""The keys of the ``data`` section as a table in Markdown, for ``docs/own-data.md``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from equipoise.data.tables.config import FeatureConfig, SampledConfig, SplitConfig, TableConfig, TaskConfig, TimeConfig

__all__ = ["key_table"]


def key_table() -> str:
    """Return all keys, those of features by their kind.

    Example:
        >>> key_table().splitlines()[0]
        '| key | meaning | default |'
    """
    lines = ["| key | meaning | default |", "|---|---|---|"]
    parts: list[tuple[str, type[BaseModel]]] = [("", TableConfig), ("time", TimeConfig)]
    union, _ = get_args(FeatureConfig)
    parts += [(f"features.NAME ({kind.model_fields['kind'].default})", kind) for kind in get_args(union)]
    parts += [("tasks.NAME", TaskConfig), ("sampled", SampledConfig), ("split", SplitConfig)]
    for place, model in parts:
        lines += _rows(place, model)
    return "\n".join(lines) + "\n"


def _rows(place: str, model: type[BaseModel]) -> Iterator[str]:
    if place:
        key, _, kind = place.partition(" ")
        meaning = (model.__doc__ or "").replace("``", "`")
        yield f"| **`{key}`** {kind} | {meaning} | |"
    for name, field in model.model_fields.items():
        if name == "kind" and field.description is None:
            continue
        default = field.get_default(call_default_factory=True, validated_data={})
        shown = "" if default in (PydanticUndefined, None, "", {}, ()) else f"`{_as_yaml(default)}`"
        shown = "*required*" if field.is_required() else shown
        meaning = (field.description or "").replace("|", "\\|")
        yield f"| `{name}` | {meaning} | {shown} |"


def _as_yaml(value: object) -> str:
    if isinstance(value, BaseModel):
        return "{}"
    return json.dumps(value).replace("|", "\\|")
