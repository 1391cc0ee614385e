"""The application that the files of commands add their commands to."""

from __future__ import annotations

from typing import Any, Final

import typer
from typer.core import TyperGroup

__all__ = ["app", "data_app"]

_ORDER_OF_USE: Final = (
    "init",
    "data",
    "audit",
    "compare",
    "evidence",
    "train",
    "predict",
    "export",
    "replay",
    "auction",
    "report",
    "methods",
    "config",
)


class _InOrderOfUse(TyperGroup):
    """Lists the commands as a user comes to them, whichever file is imported first."""

    def list_commands(self, ctx: Any) -> list[str]:
        known = [name for name in _ORDER_OF_USE if name in self.commands]
        return [*known, *(name for name in self.commands if name not in known)]


app = typer.Typer(
    cls=_InOrderOfUse,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)
data_app = typer.Typer(help="Check, describe, fetch or build data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")
