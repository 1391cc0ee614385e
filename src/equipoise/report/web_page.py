"""Web pages that open offline: style, script, plotly.js and all data are in the one file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from equipoise.report.charts import Chart
from equipoise.whole_files import write_whole

__all__ = ["write_page"]


def write_page(path: Path, template: str, content: Mapping[str, Any], /) -> Path:
    """Write a page from one of the templates, whole or not at all, and return its path."""
    environment = Environment(
        loader=PackageLoader("equipoise.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["with_code"] = _with_code
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    folder = files("equipoise.report").joinpath("templates")
    shared = {
        "chart_json": _chart_json,
        "style": folder.joinpath("report.css").read_text(encoding="utf-8"),
        "script": folder.joinpath("report.js").read_text(encoding="utf-8"),
        "plotly": get_plotlyjs(),
    }
    return write_whole(path, environment.get_template(template).render(content, **shared))


def _with_code(sentence: str) -> Markup:
    """Show what stands between backticks as code; notes of a suite are Markdown."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(sentence))))


def _chart_json(chart: Chart) -> list[list[dict[str, Any]]]:
    return [[{"title": panel.title, "figure": panel.figure} for panel in shown] for shown in chart.panels]
