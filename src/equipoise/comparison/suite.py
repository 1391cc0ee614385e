"""A suite of comparisons: one YAML file that names several settings, each compared in a folder of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from equipoise.comparison.jobs import RunListener
from equipoise.comparison.result_folder import write_json
from equipoise.comparison.runner import run_comparison
from equipoise.errors import SettingError
from equipoise.settings import Settings, about
from equipoise.settings_file import read_settings

__all__ = ["SUITE_FILE", "Suite", "SuiteSetting", "run_suite"]

SUITE_FILE = "suite.json"
"""The file in a suite's folder that names its settings, in their order."""


class SuiteSetting(BaseModel):
    """One comparison of a suite, as its folder's :data:`SUITE_FILE` names it.

    Attributes:
        name: the name of its folder.
        title: a few words for tables.
        note: a sentence that readers of its results should know; may be empty.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    title: str = ""
    note: str = ""


class Suite(BaseModel):
    """Several comparisons with most settings in common.

    Attributes:
        title: of the pages about it.
        common: settings of `equipoise compare` that all comparisons share.
        settings: name of a comparison to its own settings, which override the common ones; ``title`` and ``note``
            describe it, and ``short`` holds what its short form overrides.
        short: settings that override those of all comparisons in the short form.

    Example:
        >>> suite = Suite.of({"title": "Two", "common": {"seeds": 3}, "settings": {"one": {"data": "funnel"}}})
        >>> suite.comparison("one").seeds, suite.comparison("one").data
        (3, 'funnel')
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    common: dict[str, Any] = Field(default_factory=dict)
    settings: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    short: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def of(cls, found: Mapping[str, Any], /, *, origin: str = "The suite") -> Suite:
        """Return the suite that these keys and values describe.

        Raises:
            SettingError: a key is unknown, or a comparison's settings cannot be used; all of them are checked.
        """
        try:
            suite = cls.model_validate(dict(found))
            for name in suite.settings:
                suite.entry(name)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise SettingError(
                f"{origin} cannot be used: {where}: {first['msg'][0].lower()}{first['msg'][1:]}; found "
                f"{first['input']!r}. Expected title, common, settings (name in lower case: settings of `equipoise "
                "compare`) and short."
            ) from error
        for name in suite.settings:
            for short in (False, True):
                suite.comparison(name, short=short)
        return suite

    @classmethod
    def read(cls, path: Path, /) -> Suite:
        """Return the suite in a YAML file.

        Raises:
            SettingError: the file cannot be read or used.
        """
        return cls.of(read_settings(path), origin=f"The suite in {path}")

    def entry(self, name: str, /) -> SuiteSetting:
        """Return name, title and note of a comparison."""
        own = self.settings[name]
        return SuiteSetting(name=name, title=own.get("title", name), note=own.get("note", ""))

    def comparison(self, name: str, /, *, short: bool = False) -> Settings:
        """Return the settings of a comparison.

        Raises:
            SettingError: one of them is unknown, out of range, or not of `equipoise compare`.
        """
        own = {key: value for key, value in self.settings[name].items() if key not in {"title", "note", "short"}}
        stated = self.common | own | (self.short | self.settings[name].get("short", {}) if short else {})
        try:
            found = Settings.of(**stated)
        except SettingError as error:
            raise SettingError(f"Setting {name!r} of the suite: {error}") from error
        if wrong := [key for key in stated if "compare" not in about(key).commands]:
            raise SettingError(f"Setting {name!r} of the suite: {', '.join(wrong)}: not of `equipoise compare`.")
        return found


def run_suite(
    suite: Suite,
    folder: Path,
    /,
    *,
    only: Sequence[str] = (),
    short: bool = False,
    speed: bool = True,
    jobs: int | None = None,
    listener: RunListener | None = None,
) -> None:
    """Run the comparisons of a suite one after the other, each in a folder of its name under ``folder``.

    Finished runs are kept, so a suite that was interrupted goes on where it was. Runs keep their metrics and groups of
    users; learning curves, slices and calibration curves are left out, to keep the folders small.

    Args:
        only: names of the comparisons to run; all if empty.
        short: the short form, in which numbers show that everything runs and no more.
        speed: measure throughput and memory too, which needs a machine that does nothing else.
        jobs: see :func:`equipoise.comparison.run_comparison`.

    Raises:
        DataError, SettingError: see :func:`equipoise.comparison.run_comparison`; or ``only`` names no comparison.
    """
    if unknown := [name for name in only if name not in suite.settings]:
        raise SettingError(f"Expected comparisons out of {', '.join(suite.settings)}; found {', '.join(unknown)}.")
    listener = listener or RunListener()
    folder.mkdir(parents=True, exist_ok=True)
    content = {"title": suite.title, "settings": [suite.entry(name).model_dump() for name in suite.settings]}
    write_json(folder / SUITE_FILE, content)
    for name in only or suite.settings:
        listener.noted(f"{suite.entry(name).title} ({name})")
        run_comparison(
            suite.comparison(name, short=short), folder / name, jobs=jobs, listener=listener, speed=speed, details=False
        )
