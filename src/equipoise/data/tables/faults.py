"""Faults in the description of own tables: each with its place in the settings file, all in one message."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ValidationError

from equipoise.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from equipoise.data.tables.config import SplitConfig, TableConfig, TaskConfig

__all__ = ["as_message", "check_names_differ", "cross_faults", "faults_of"]

Fault = tuple[str, str]
"""A place, such as ``features.zip.kind``, and what is wrong there."""


def as_message(faults: Iterable[Fault]) -> str:
    """Return one message with a line for each fault."""
    opening = "The description of the tables (`data` in a settings file) cannot be used."
    return "\n".join([opening, *(f"  {place}: {fault}" for place, fault in faults)])


def check_names_differ(where: str, names: Iterable[str]) -> None:
    """Refuse a table that has a column name twice: no reader could tell which column is meant.

    Raises:
        DataError: a name occurs twice.
    """
    names = list(names)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        remedy = "Rename one."
        if all(name.replace(".", "", 1).isdigit() for name in twice):
            remedy = "Does the file lack a header? Then add one; else rename one."
        raise DataError(f"{where}: expected columns with different names, found twice: {', '.join(twice)}. {remedy}")


def faults_of(error: ValidationError, model: type[BaseModel]) -> Iterator[Fault]:
    """Yield the faults that pydantic found, in plain words."""
    for entry in error.errors():
        keys, owner = _walk(entry["loc"], model)
        if entry["loc"][-1] == "[key]":
            keys[-1] = str(entry["input"])
        place = ".".join(keys)
        found = f"; found {reprlib.repr(entry['input'])}"
        match entry["type"]:
            case "extra_forbidden":
                known = list(owner.model_fields)
                yield place, f"there is no such key; there are {', '.join(known)}{did_you_mean(keys[-1], known)}"
            case "missing":
                yield place, f"is missing: {owner.model_fields[keys[-1]].description}"
            case "union_tag_not_found":
                yield f"{place}.kind", f"is missing; expected one of {', '.join(_kinds(model))}"
            case "union_tag_invalid":
                kind = entry["ctx"]["tag"]
                kinds = _kinds(model)
                yield (
                    f"{place}.kind",
                    f"expected one of {', '.join(kinds)}; found {kind!r}{did_you_mean(kind, kinds)}",
                )
            case "model_type" | "model_attributes_type" | "dict_type":
                yield (
                    place,
                    "expected a mapping; found nothing" if entry["input"] is None else f"expected a mapping{found}",
                )
            case "string_type":
                quote = " (in YAML, put it in quotes)" if isinstance(entry["input"], bool | int | float) else ""
                yield place, f"expected text{quote}{found}"
            case "tuple_type":
                yield place, f"expected a list{found}"
            case "literal_error":
                expected = entry["ctx"]["expected"]
                yield place, f"expected {expected}{found}"
            case "too_short":
                yield place, f"expected at least {entry['ctx']['min_length']}, found {entry['ctx']['actual_length']}"
            case _:
                said = entry["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
                yield place, f"expected {said[0].lower()}{said[1:]}{found}"


def _walk(loc: tuple[int | str, ...], model: type[BaseModel]) -> tuple[list[str], type[BaseModel]]:
    """Return the keys that lead to a place, without pydantic's tags, and the model that holds the last of them."""
    keys: list[str] = []
    owner: Any = model
    parts = [part for part in loc if part != "[key]"]
    tag = parts.pop(2) if len(parts) > 2 and parts[0] == "features" else None
    for i, part in enumerate(parts):
        keys.append(str(part))
        if i == len(parts) - 1:
            break
        if part in {"features", "tasks"}:
            continue
        if i == 1 and tag is not None:
            owner = next(kind for kind in _feature_models(model) if kind.model_fields["kind"].default == tag)
        elif i == 1:
            owner = _models_in(model.model_fields["tasks"].annotation)[0]
        elif found := _models_in(owner.model_fields[part].annotation):
            owner = found[0]
    return keys, owner


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _feature_models(model: type[BaseModel]) -> list[type[BaseModel]]:
    return _models_in(model.model_fields["features"].annotation)


def _kinds(model: type[BaseModel]) -> list[str]:
    return [kind.model_fields["kind"].default for kind in _feature_models(model)]


def cross_faults(config: TableConfig) -> Iterator[Fault]:
    """Yield what is wrong between keys that are each right by themselves."""
    for name in config.features.keys() & config.tasks.keys():
        yield f"features.{name}", "a task has this name, too: features and tasks need different names"
    for name, feature in config.features.items():
        yield from ((f"features.{name}.{key}", fault) for key, fault in _of_feature(name, feature, config))
    for name, task in config.tasks.items():
        yield from ((f"tasks.{name}.{key}", fault) for key, fault in _of_task(task, config.tasks))
    if config.sampled is not None:
        yield from _of_binary("sampled.task", config.sampled.task, config.tasks)
    for name in config.user_groups:
        if name not in config.slices:
            yield "user_groups", _expected("columns of `slices`", config.slices, name)
    yield from ((f"split.{key}", fault) for key, fault in _of_split(config.split, config))


def _of_feature(name: str, feature: Any, config: TableConfig) -> Iterator[Fault]:
    stated = _changed(feature)
    if {"min_count", "rows"} <= stated and feature.kind != "cross":
        yield "rows", "goes without min_count: hashing has no vocabulary"
    if feature.kind == "number" and "bins" in stated and feature.scale != "bins":
        yield "bins", f"goes with `scale: bins`; found {feature.scale!r}"
    if feature.kind in {"category", "categories"} and feature.table:
        owner = config.features.get(feature.table)
        owners = [other for other, its in config.features.items()
                  if other != name and its.kind in {"category", "categories"} and not its.table]  # fmt: skip
        if owner is None or feature.table not in owners:
            yield "table", _expected("a category feature with a table of its own", owners, feature.table)
        if given := sorted(stated & {"min_count", "rows"}):
            yield given[0], f"is set by {feature.table!r}, whose table this feature shares"
    if feature.kind == "categories":
        targets = [other for other, its in config.features.items() if its.kind == "category"]
        if feature.pooling == "attention" and not feature.target:
            yield "target", "is missing: attention compares the values with a category feature"
        elif feature.target and feature.pooling != "attention":
            yield "target", f"goes with `pooling: attention`; found {feature.pooling!r}"
        elif feature.target and feature.target not in targets:
            yield "target", _expected("a category feature", targets, feature.target)


def _of_task(task: TaskConfig, tasks: Mapping[str, TaskConfig]) -> Iterator[Fault]:
    stated = _changed(task)
    if task.kind == "binary" and "loss" in stated:
        yield "loss", "goes with `kind: regression`; a binary task has the log loss"
    if task.kind == "regression" and "positive_weight" in stated:
        yield "positive_weight", "goes with `kind: binary`"
    if not task.after:
        if "over" in stated:
            yield "over", "goes with `after`"
        return
    yield from _of_binary("after", task.after, tasks)
    seen, parent = [task.after], tasks.get(task.after)
    while parent is not None and parent.after and len(seen) <= len(tasks):
        seen.append(parent.after)
        parent = tasks.get(parent.after)
    if len(seen) > len(tasks):
        yield "after", f"comes back to itself: {' after '.join(dict.fromkeys(seen))}"


def _of_binary(place: str, name: str, tasks: Mapping[str, TaskConfig]) -> Iterator[Fault]:
    binary = [other for other, task in tasks.items() if task.kind == "binary"]
    if name not in binary:
        yield place, _expected("a binary task", binary, name)


def _of_split(split: SplitConfig, config: TableConfig) -> Iterator[Fault]:
    takes = {
        "time": {"validation", "test"},
        "column": {"column", "values"},
        "random": {"validation", "test", "seed"},
        "user": {"validation", "test", "seed"},
    }[split.by or "random"]
    for key in sorted(_changed(split) - takes - {"by"}):
        yield key, f"does not go with `by: {split.by}`, which takes {' and '.join(sorted(takes))}"
    if split.by == "time" and config.time is None:
        yield "by", "a split by time needs the key `time` of the table, with the column of the time"
    if split.by == "user" and not config.user:
        yield "by", "a split by user needs the key `user` of the table, with the column of the user"
    if split.by == "column":
        if not split.column:
            yield "column", "is missing: the column that names the split of a row"
        if split.values and len(split.values) < 3:
            missing = [name for name in ("train", "validation", "test") if name not in split.values]
            yield "values", f"expected values for each split; missing for {' and '.join(missing)}"
        listed = [value for values in split.values.values() for value in values]
        if twice := sorted({value for value in listed if listed.count(value) > 1}):
            yield "values", f"each value belongs to one split; found twice: {', '.join(twice)}"
    if split.validation + split.test >= 1:
        yield "test", f"validation and test leave no rows for train: {split.validation:g} + {split.test:g}"


def _changed(part: BaseModel) -> set[str]:
    """Return the keys that do not have their default, so that a description printed with defaults can be read."""
    fields = type(part).model_fields
    return {
        key
        for key in fields
        if getattr(part, key) != fields[key].get_default(call_default_factory=True, validated_data={})
    }


def _expected(what: str, names: Iterable[str], found: str) -> str:
    names = list(names)
    known = f", out of {', '.join(names)}" if names else "; there is none"
    return f"expected {what}{known}; found {found!r}{did_you_mean(found, names)}"
