"""The extension of griffe that hands every docstring of the reference to mkdocstrings as Markdown."""

from __future__ import annotations

from typing import Any

from docstrings import markdown
from griffe import Extension, Object


class Docstrings(Extension):
    """Convert the docstring of every object that is loaded."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Convert the docstring of one object, if it has one."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
