"""The extension of griffe that hands mkdocstrings every docstring as Markdown, and no values that fill a page."""

from __future__ import annotations

from typing import Any, Final

from docstrings import markdown
from griffe import Attribute, Extension, Object

LINES_OF_A_VALUE: Final = 12
"""A constant with a longer value, as the catalogue of methods, is shown without it."""


class Docstrings(Extension):
    """Convert the docstring of every object that is loaded, and shorten attributes."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Convert the docstring of one object, if it has one."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)

    def on_attribute(self, *, attr: Attribute, **_: Any) -> None:
        """Leave out a value that fills the page."""
        if (attr.endlineno or 0) - (attr.lineno or 0) >= LINES_OF_A_VALUE:
            attr.value = None
