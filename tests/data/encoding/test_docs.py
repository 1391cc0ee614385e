"""The section on the encoding in docs/own-data.md is true."""

import json
import re
from pathlib import Path

from equipoise.data.encoding import Encoding

PAGE = (Path(__file__).parents[3] / "docs" / "own-data.md").read_text(encoding="utf-8")
SECTION = PAGE[PAGE.index("## The encoding\n") :]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", SECTION, flags=re.MULTILINE | re.DOTALL)


def test_the_example_runs() -> None:
    (example, *_) = blocks("python")
    exec(compile(example, "docs/own-data.md", "exec"), {"__name__": "page"})


def test_the_json_has_every_kind_and_every_key() -> None:
    (content, *_) = blocks("json")
    encoding = Encoding.from_json(content)
    written = json.loads(encoding.to_json())
    shown = json.loads(content)
    assert {feature["kind"] for feature in shown["features"]} == {
        "category", "categories", "number", "bins", "vector", "cross", "time",
    }  # fmt: skip
    assert written["tables"] == shown["tables"]
    assert written["features"] == shown["features"]
