"""Line breaks of the built pages: numbers stay with their units, and names of options stay whole."""

from __future__ import annotations

import re
from typing import Final

NO_BREAK: Final = "\N{NO-BREAK SPACE}"
PIECES: Final = re.compile(r"(<pre\b.*?</pre>|<code\b.*?</code>|<[^>]+>)", re.DOTALL)
"""Blocks of code, inline code and other tags: what lies between them is text."""
TOGETHER: Final = (
    (re.compile(r"(?<=\d) (?=%)"), NO_BREAK),
    (re.compile(r"(?<=[▲▼△▽]) (?=[+−\d])"), NO_BREAK),
    (re.compile(r"(?<=&lt;) (?=\d)"), NO_BREAK),
    (re.compile(r"(?<=\bp) (?=(=|&lt;) ?\d)"), NO_BREAK),
    (re.compile(r"(?<=\d) / (?=\d)"), f"{NO_BREAK}/{NO_BREAK}"),
    (re.compile(r"(?<=\d) of (?=\d)"), f"{NO_BREAK}of{NO_BREAK}"),
    (re.compile(r" ± "), f"{NO_BREAK}±{NO_BREAK}"),
    (re.compile(r"(?<=×) (?=\d)"), NO_BREAK),
    (re.compile(r"(?<=\b[A-Za-zαβγλρ]) = (?=\d)"), f"{NO_BREAK}={NO_BREAK}"),
    (re.compile(r"\(([+−-]?[\d.,]+) to ([+−-]?[\d.,]+)(?=[),])"), rf"(\1{NO_BREAK}to{NO_BREAK}\2"),
)
OPTION: Final = re.compile(r"(?<![\w-])(?:--|…-)[a-z][\w-]*")


def keep_together(html: str) -> str:
    """Return a page without line breaks inside a percentage, an interval, an equation or an option's name."""
    parts = PIECES.split(html)
    return "".join(_inline_code(part) if place % 2 else _text(part) for place, part in enumerate(parts))


def _text(text: str) -> str:
    for pattern, replacement in TOGETHER:
        text = pattern.sub(replacement, text)
    return text


def _inline_code(tag: str) -> str:
    """Wrap the options in inline code, and unescape the bars that a table of Markdown escapes."""
    if not tag.startswith("<code"):
        return tag
    return OPTION.sub(r'<span class="whole">\g<0></span>', tag).replace(r"\|", "|")
