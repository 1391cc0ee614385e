"""A settings file in full: every key with its value and, as a comment, its meaning."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

import yaml
from pydantic import BaseModel

from equipoise.data.tables.config import TableConfig
from equipoise.settings import Settings

__all__ = ["settings_in_full"]

_EXAMPLE: Final = {
    "files": "logs/*.parquet",
    "time": "timestamp",
    "user": "user_id",
    "features": {
        "user_id": "category",
        "item_id": {"kind": "category", "rows": 100_000},
        "price": {"kind": "number", "scale": "log1p"},
        "last_items": {"kind": "categories", "pooling": "attention", "target": "item_id", "table": "item_id"},
        "image": {"kind": "vector", "width": 64},
        "user_and_item": {"kind": "cross", "of": ["user_id", "item_id"]},
        "hour": {"kind": "time", "part": "hour"},
    },
    "tasks": {
        "click": "click",
        "long_view": "watch_time > 30",
        "purchase": {"label": "purchase", "after": "click"},
        "spend": {"kind": "regression", "loss": "log", "after": "purchase"},
    },
    "sampled": {"task": "click", "rate": 0.1},
    "slices": ["item_id", "country"],
    "user_groups": ["country"],
}
_TUNED: Final = ("lr", "table_decay")
_WIDTH: Final = 46  # where comments begin


def settings_in_full(settings: Settings | None = None, /) -> str:
    """Return the YAML of all settings, those not stated with their defaults, each with its meaning.

    Args:
        settings: those of a file; None: the defaults, with own tables that have a feature and a task of each kind.

    Raises:
        DataError: the description of own tables has a fault.

    Example:
        >>> print(settings_in_full(Settings.of(data="funnel")).splitlines()[1])
        data: funnel                                   # Data set: a registered name, package.module:attribute, ...
    """
    lines = ["# All settings. Those at their default may be left out."]
    example = settings is None
    settings = settings or Settings.of(data=_EXAMPLE)
    names = ["data", *(name for name in Settings.model_fields if name != "data")]
    for name in names:
        value = getattr(settings, name)
        if name == "data" and isinstance(value, Mapping):
            about = " An example with a feature of each kind." if example else ""
            lines += [f"data:{' ' * (_WIDTH - 5)} # Own tables.{about}", *_entries(TableConfig.of(value), "  ")]
        else:
            tuned = name in _TUNED and name not in settings.model_fields_set  # stating it would replace the tuned value
            lines.append(
                _line(f"# {name}" if tuned else name, value, Settings.model_fields[name].description or "", "")
            )
    return "\n".join(lines) + "\n"


def _entries(model: BaseModel, indent: str) -> Iterator[str]:
    for name, field in type(model).model_fields.items():
        yield from _entry(name, getattr(model, name), field.description or "", indent)


def _entry(name: str, value: Any, meaning: str, indent: str) -> Iterator[str]:
    of_models = isinstance(value, Mapping) and any(isinstance(part, BaseModel) for part in value.values())
    if not of_models and not isinstance(value, BaseModel):
        yield _line(name, value, meaning, indent)
        return
    yield f"{f'{indent}{name}:'.ljust(_WIDTH)} # {meaning}" if meaning else f"{indent}{name}:"
    if isinstance(value, BaseModel):
        yield from _entries(value, f"{indent}  ")
    else:
        for key, part in value.items():
            yield from _entry(key, part, "", f"{indent}  ")


def _line(name: str, value: Any, meaning: str, indent: str) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=math.inf, allow_unicode=True)
    line = f"{indent}{name}: {text.strip().removesuffix('...').strip()}"
    return f"{line.ljust(_WIDTH)} # {meaning}" if meaning else line
