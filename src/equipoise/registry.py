"""Names for methods, models and data sets, open to other packages.

An entry comes from one of four places: equipoise itself, :meth:`Registry.register` at run time, an entry point of an
installed package, or an import path such as ``"package.module:attribute"`` given as the name. An entry is imported when
it is first looked up, so a broken package does not affect the others.
"""

from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from equipoise.errors import SettingError, did_you_mean
from equipoise.scalars import Value, parse_value

__all__ = ["Registry", "registered", "restore"]

Entry = TypeVar("Entry")

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_IMPORT_PATH: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_PATH_AND_OPTIONS: Final = re.compile(r"(?P<path>\w+(\.\w+)*:[A-Za-z_]\w*(\.\w+)*)(:(?P<options>.*))?")
_REGISTRIES: Final[dict[str, Registry[Any]]] = {}


@dataclass(frozen=True)
class _Pickled:
    """An entry from another process, unpickled when it is first looked up."""

    content: bytes


class Registry(Generic[Entry]):
    """Entries of one kind by name; iterating gives the names.

    Args:
        kind: the kind of entry in messages, such as ``"method"``.
        group: the group of entry points that other packages use, such as ``"equipoise.methods"``.
        own: the entries of equipoise itself; a string is an import path.
        adapt: called with a name and what was found under it; returns the entry, or raises ``TypeError`` with a
            message that says what was expected and found.
        error: the type of all errors raised.

    Example:
        >>> colours = Registry("colour", "example.colours", own={"red": 0xFF0000})
        >>> colours.register("green", 0x00FF00)
        >>> list(colours), colours["green"], colours["math:pi"]
        (['red', 'green'], 65280, 3.141592653589793)
        >>> colours["blue"]
        Traceback (most recent call last):
        equipoise.errors.SettingError: Expected a colour out of red, green; found 'blue'.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        *,
        own: Mapping[str, Entry | str] | None = None,
        adapt: Callable[[str, Any], Entry] | None = None,
        error: type[ValueError] = SettingError,
    ) -> None:
        self.kind = kind
        self.group = group
        self.error = error
        self._own: dict[str, Any] = dict(own or {})
        self._adapt = adapt
        self._at_run_time: dict[str, Any] = {}
        self._registered_at: dict[str, str] = {}
        _REGISTRIES[group] = self

    def register(self, name: str, entry: Entry | str, *, replace: bool = False) -> None:
        """Add an entry under a name, in this process and in the worker processes that it starts.

        Args:
            name: letters, digits, ``-``, ``_`` and ``.``.
            entry: the entry, or its import path ``"package.module:attribute"``, which is followed when it is used.
            replace: replace an entry registered before under this name, for example when a notebook cell runs twice.

        Raises:
            SettingError: (or the registry's own error) the name is taken, or has another form.
        """
        if not _NAME.fullmatch(name):
            raise self.error(f"A {self.kind}'s name takes letters, digits, '-', '_' and '.'; found {name!r}.")
        before = [origin for place, origin in self._origins(name) if not (replace and place is self._at_run_time)]
        if before:
            raise self.error(
                f"The {self.kind} name {name!r} is taken by {' and '.join(before)}: choose another name"
                + (", or pass replace=True." if name in self._at_run_time and not replace else ".")
            )
        self._at_run_time[name] = entry
        self._registered_at[name] = _caller()

    def __getitem__(self, name: str, /) -> Entry:
        origins = self._origins(name)
        if len(origins) > 1:
            raise self.error(
                f"The {self.kind} name {name!r} is taken more than once, by {' and '.join(o for _, o in origins)}: "
                "uninstall one of the packages, or write the import path of yours (package.module:attribute)."
            )
        if not origins:
            if _IMPORT_PATH.fullmatch(name):
                return self._adapted(name, self._follow(name, f"{self.kind} {name!r}"))
            article = "an" if self.kind[0] in "aeiou" else "a"
            guess = did_you_mean(name, self) or "."
            raise self.error(f"Expected {article} {self.kind} out of {', '.join(self)}; found {name!r}{guess}")
        ((place, origin),) = origins
        found = place[name]
        if place is self._own:
            return self._adapted(name, _attribute(found) if isinstance(found, str) else found)
        if isinstance(found, EntryPoint):
            return self._adapted(name, self._follow(found.value, origin))
        if isinstance(found, _Pickled):
            found = place[name] = self._unpickle(name, found)
        return self._adapted(name, self._follow(found, f"{self.kind} {name!r}") if isinstance(found, str) else found)

    def parse(self, text: str, /) -> tuple[str, dict[str, Value]]:
        """Split a name or import path from the options behind a colon.

        Raises:
            SettingError: (or the registry's own error) the options have another form, or one occurs twice.

        Example:
            >>> colours = Registry("colour", "example.colours", own={"red": 0xFF0000})
            >>> colours.parse("red:light=0.5,mix=1-2"), colours.parse("math:pi:light=true")
            (('red', {'light': 0.5, 'mix': [1, 2]}), ('math:pi', {'light': True}))
        """
        name, colon, stated = text.partition(":")
        if name not in self and (path := _PATH_AND_OPTIONS.fullmatch(text)) and "=" not in path["path"]:
            name, colon, stated = path["path"], ":" if path["options"] is not None else "", path["options"] or ""
        options: dict[str, Value] = {}
        for pair in stated.split(",") if colon else ():
            key, equals, value = pair.partition("=")
            what = f"{self.kind.capitalize()} {name!r}"
            if not equals or not key:
                raise self.error(f"{what}: expected options as key=value with commas between; found {pair!r}.")
            if key in options:
                raise self.error(f"{what}: expected every option once, found {key} twice.")
            options[key] = parse_value(value)
        return name, options

    def __contains__(self, name: object, /) -> bool:
        return name in self._own or name in self._at_run_time or name in self._entry_points

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._own, *self._at_run_time, *self._entry_points]))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def usable(self) -> dict[str, Entry]:
        """Return all entries that can be loaded, by name."""
        return self._tried()[0]

    def broken(self) -> dict[str, str]:
        """Return the error messages of the entries that cannot be loaded, by name."""
        return self._tried()[1]

    def registered(self) -> dict[str, bytes]:
        """Return the entries registered at run time, for :meth:`restore` in another process.

        Raises:
            SettingError: (or the registry's own error) an entry cannot be pickled, such as a lambda.
        """
        return {name: self._pickled(name, entry) for name, entry in self._at_run_time.items()}

    def restore(self, entries: Mapping[str, bytes], /) -> None:
        """Replace the entries registered at run time by those that :meth:`registered` returned in any process."""
        self._at_run_time = {name: _Pickled(content) for name, content in entries.items()}
        self._registered_at = dict.fromkeys(entries, "in the main process")

    @cached_property
    def _entry_points(self) -> dict[str, list[EntryPoint]]:
        found: dict[str, list[EntryPoint]] = {}
        for point in sorted(entry_points(group=self.group), key=lambda point: point.name):
            found.setdefault(point.name, []).append(point)
        return found

    def _origins(self, name: str) -> list[tuple[dict[str, Any], str]]:
        """Return the places that hold an entry of this name, each with its description."""
        found: list[tuple[dict[str, Any], str]] = []
        if name in self._own:
            found.append((self._own, "equipoise itself"))
        if name in self._at_run_time:
            found.append((self._at_run_time, f"register, called {self._registered_at[name]}"))
        found += [({name: point}, _in_words(point)) for point in self._entry_points.get(name, [])]
        return found

    def _tried(self) -> tuple[dict[str, Entry], dict[str, str]]:
        usable: dict[str, Entry] = {}
        broken: dict[str, str] = {}
        for name in self:
            try:
                usable[name] = self[name]
            except self.error as error:
                broken[name] = str(error)
        return usable, broken

    def _follow(self, path: str, origin: str) -> Any:
        try:
            return _attribute(path)
        except Exception as error:
            raise self.error(
                f"Cannot use {origin}: importing {path!r} failed with {type(error).__name__}: {error}"
            ) from error

    def _adapted(self, name: str, found: Any) -> Entry:
        if self._adapt is None:
            entry: Entry = found
            return entry
        try:
            return self._adapt(name, found)
        except TypeError as error:
            raise self.error(f"The {self.kind} {name!r} cannot be used: {error}") from error

    def _pickled(self, name: str, entry: Any) -> bytes:
        if isinstance(entry, _Pickled):
            return entry.content
        try:
            return pickle.dumps(entry)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise self.error(
                f"The {self.kind} {name!r} cannot be handed to worker processes ({error}). Define it, and the "
                "functions that it holds, at the top level of a module; or register an import path "
                "(package.module:attribute); or use one job."
            ) from error

    def _unpickle(self, name: str, entry: _Pickled) -> Any:
        try:
            return pickle.loads(entry.content)
        except (ImportError, AttributeError) as error:
            raise self.error(
                f"The {self.kind} {name!r} was registered in the main process, but this worker process cannot import "
                f"it ({error}). Define it in a module that can be imported, not in a notebook or an interactive "
                "session, or use one job."
            ) from error


def registered() -> dict[str, dict[str, bytes]]:
    """Return the entries registered at run time in all registries, by group, to hand to worker processes.

    Raises:
        SettingError: an entry cannot be pickled; see :meth:`Registry.registered`.
    """
    return {group: registry.registered() for group, registry in _REGISTRIES.items()}


def restore(entries: Mapping[str, Mapping[str, bytes]], /) -> None:
    """Register in this process the entries that :func:`registered` returned in another one."""
    for group, of_group in entries.items():
        if group in _REGISTRIES:
            _REGISTRIES[group].restore(of_group)


def _attribute(path: str) -> Any:
    module, _, names = path.partition(":")
    found: Any = import_module(module)
    for name in names.split("."):
        found = getattr(found, name)
    return found


def _caller() -> str:
    """Return the file and line of the call into equipoise."""
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "equipoise":
        frame = frame.f_back
    return f"in {Path(frame.f_code.co_filename).name}, line {frame.f_lineno}"


def _in_words(point: EntryPoint) -> str:
    package = f"package {point.dist.name} {point.dist.version}" if point.dist is not None else "an unknown package"
    return f"the entry point {point.name!r} = {point.value!r} of {package}"
