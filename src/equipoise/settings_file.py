"""Reads settings from a YAML file that can hold data only, never code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from equipoise.errors import SettingError, did_you_mean

__all__ = ["read_settings"]

_TABLES: Final = (".parquet", ".csv", ".tsv", ".csv.gz", ".tsv.gz", ".csv.zst", ".tsv.zst")


def read_settings(path: Path, /) -> Mapping[str, Any]:
    """Return the settings in a YAML file, by name.

    Raises:
        SettingError: the file cannot be read, is not YAML, names Python objects, states a setting twice, or holds
            something else than settings.
    """
    if path.name.endswith(_TABLES):
        raise SettingError(
            f"Expected a YAML file with settings, found the table {path}: write one for it first, by "
            f"`equipoise init {path} > {path.name.partition('.')[0]}.yaml`."
        )
    try:
        found = yaml.load(path.read_text(), _Loader)
    except OSError as error:
        others = [other.name for other in path.parent.glob("*.y*ml")] if isinstance(error, FileNotFoundError) else []
        guess = did_you_mean(path.name, others) or "."
        raise SettingError(f"Expected a YAML file at {path}; it cannot be read: {error.strerror}{guess}") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        mistake = " ".join(str(error).split())
        raise SettingError(f"Expected YAML in {path}; found a mistake: {mistake}.") from error
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise SettingError(f"Expected settings in {path}, one `name: value` per line; found {type(found).__name__}.")
    return found


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Reads 3e-2 as a number, which YAML 1.1 takes for a word, and refuses a key that occurs twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        found: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        if len(found) < len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a name occurs twice", node.start_mark)
        return found


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)
