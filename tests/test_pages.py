"""The pages of the documentation: their code runs, their commands parse, and the site shows all of them."""

from __future__ import annotations

import json
import re
import shlex
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from typer.core import TyperGroup
from typer.main import get_command

from equipoise.cli import app
from equipoise.comparison import runner as runner_module
from equipoise.comparison.results import Throughput
from equipoise.methods import CATALOGUE
from equipoise.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [
    *sorted(path for path in DOCS.glob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CODE_OF_CONDUCT.md", "SECURITY.md")),
]
RUN_HERE = [
    "CONTRIBUTING.md", "gpu.md", "methods-at-the-fork.md", "methods-loss-weights.md", "methods-updates.md",
    "missing-labels.md", "performance.md", "preferences.md", "reading-the-monitor.md", "reading-the-report.md",
    "resume.md", "start.md",
]  # fmt: skip
RUN_ELSEWHERE = {
    "README.md": "test_readme.py",
    "beyond-memory.md": "data/stream/test_docs.py",
    "data-sets.md": "data/test_registry.py",
    "from-python.md": "comparison/test_from_python.py",
    "methods.md": "test_readme.py",
    "metrics.md": "ranking/metrics/test_docs.py",
    "models.md": "ranking/models/test_presets.py",
    "own-data.md": "data/tables/test_docs.py",
    "own-model.md": "test_own_model.py",
    "recipes.md": "training/test_recipes_page.py",
    "replay.md": "serving/replay/test_docs.py",
    "serving.md": "serving/test_docs.py",
    "where-to-fork.md": "checking/test_docs.py",
}
NOT_RUN = re.compile(r"<!-- not run: ([^>]+) -->\n+```python\n")


def blocks(page: Path, *languages: str) -> list[str]:
    kinds = "|".join(languages)
    return re.findall(rf"^ *```(?:{kinds})\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", RUN_HERE)
def test_the_code_of_a_page_runs_from_top_to_bottom(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner_module, "throughput_ratio", lambda *_: Throughput(ratio=1.0))
    monkeypatch.setattr(runner_module, "peak_memory", lambda *_: 1000)
    page = next(page for page in PAGES if page.name == name)
    names: dict[str, Any] = {"__name__": "__main__"}
    assert blocks(page, "python")
    for block in blocks(page, "python"):
        exec(compile(block, name, "exec"), names)
    if name == "reading-the-report.md":
        assert capsys.readouterr().out.splitlines()[-1] == "see cmp/report.html"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_code_is_run_by_a_test_or_says_why_not(page: Path) -> None:
    excused = len(NOT_RUN.findall(page.read_text()))
    found = blocks(page, "python")
    for block in found:
        if ">>> " not in block:
            compile(block, page.name, "exec")
    if len(found) > excused and page.name not in RUN_HERE:
        test = ROOT / "tests" / RUN_ELSEWHERE[page.name]
        assert page.name in test.read_text(), f"{page.name} has code that {test} does not run"


def commands() -> Iterator[str]:
    for page in PAGES:
        for block in blocks(page, "sh", "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                if re.match(r"(torchrun .* -m )?equipoise\b", line):
                    yield re.sub(r"^torchrun .* -m ", "", line)


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """Return the command that the first words name, and the words left for it."""
    command: Any = get_command(app)
    while isinstance(command, TyperGroup) and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    assert not isinstance(command, TyperGroup) or not words or words[0].startswith("-"), f"no command {words[0]!r}"
    return command, words


def parse(words: list[str]) -> None:
    """Parse a command line as typer does, without running anything."""
    command, rest = command_of(words)
    command.make_context(command.name, list(rest))


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_the_commands_of_the_pages_parse(line: str) -> None:
    words = shlex.split(line, comments=True)
    words = words[1 : words.index(">")] if ">" in words else words[1:]
    parse([word for word in words if word != "--help"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_settings_and_tables_of_a_page_can_be_read(page: Path) -> None:
    for block in blocks(page, "yaml"):
        found = yaml.safe_load(block)
        assert isinstance(found, dict), f"{page.name}: {block}"
        if found.keys() <= Settings.model_fields.keys():
            Settings.of(**found)
    for block in blocks(page, "json"):
        json.loads(block)
    for block in blocks(page, "toml"):
        tomllib.loads(textwrap.dedent(block))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_within_sentences_exist(page: Path) -> None:
    prose = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for found in re.findall(r"`equipoise ([^`]*)`", prose):
        command, words = command_of(found.split())
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        unknown = [word for word in words if word.startswith("--") and word.partition("=")[0] not in known]
        assert not unknown, f"{page.name}: equipoise {command.name} has no {unknown}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_make_targets_and_scripts_that_a_page_names_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = page.read_text()
    assert set(re.findall(r"(?:`|^)make ([a-z][a-z-]*)", text, re.MULTILINE)) <= targets
    for script in re.findall(r"(?:`|^)python ((?:benchmarks|examples)/[\w/]+\.py)", text, re.MULTILINE):
        assert (ROOT / script).is_file(), f"{page.name} names {script}"


def test_a_command_with_an_unknown_option_is_found() -> None:
    with pytest.raises(Exception, match="No such option: --metod"):
        parse(["train", "ranker.yaml", "--metod", "equal"])


def places(entries: list[Any]) -> Iterator[str]:
    """Yield every page of a navigation of MkDocs."""
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            if isinstance(value, str):
                yield value
            else:
                yield from places(value)


def test_the_site_has_every_page_once_and_no_other() -> None:
    found = list(places(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert len(found) == len(set(found))
    own = {name for name in found if "/" not in name}
    assert own == {page.name for page in DOCS.glob("*.md")}
    for name in found:
        if name.startswith("repository/"):
            path = re.sub(r"about\.md$", "README.md", name.removeprefix("repository/"))
            assert (ROOT / path).is_file() or (ROOT / path.removesuffix(".md")).is_file()


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    monkeypatch.syspath_prepend(DOCS / "hooks")
    import docstrings
    import method_pages
    import rooms
    import typography

    return {"docstrings": docstrings, "method_pages": method_pages, "rooms": rooms, "typography": typography}


def test_the_site_has_a_page_for_every_room_of_the_reference(hooks: dict[str, ModuleType]) -> None:
    nav = set(places(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    stems = {room.removeprefix("equipoise.").replace(".", "-") for room in hooks["rooms"].ROOMS}
    assert {f"reference/{stem}.md" for stem in stems} | {"reference/index.md"} == {
        name for name in nav if name.startswith("reference/")
    }
    for name in hooks["rooms"].public_names("equipoise"):
        assert hooks["rooms"].public_place(name), f"equipoise.{name} has no place in the reference"


def test_every_method_has_its_section_on_one_page(hooks: dict[str, ModuleType]) -> None:
    text = ""
    for page in DOCS.glob("methods-*.md"):
        assert "<!-- methods: " in page.read_text()
        text += hooks["method_pages"].fill(page.read_text())
    for method in CATALOGUE:
        assert len(re.findall(rf"^`{re.escape(method.name)}`{{ #", text, re.MULTILINE)) == 1, method.name
    assert "û_m = u_m / (1 − (1 − γ)^k_m)" in text  # a formula of a docstring


def test_the_table_of_methods_leads_to_their_sections_and_papers(hooks: dict[str, ModuleType]) -> None:
    text = hooks["method_pages"].link_rows((DOCS / "methods.md").read_text())
    for method in CATALOGUE:
        (page,) = set(re.findall(rf"^\| \[`{method.name}`\]\((.+)#{method.name}\)", text, re.MULTILINE))
        assert f"<!-- methods: {method.family} -->" in (DOCS / page).read_text()
    assert "[arXiv 2411.11871](https://arxiv.org/abs/2411.11871), 2024" in text


def test_numbers_stay_with_their_units_and_code_stays_as_it_is(hooks: dict[str, ModuleType]) -> None:
    page = (
        "<td>▲ +1.3 % (\N{MINUS SIGN}0.2 to +2.8), 0.5 ± 0.1, γ = 0.01</td><pre>5 % (1 to 2)</pre>"
        r'<code>--data-option rows=9 "\|"</code>'
    )
    assert hooks["typography"].keep_together(page).replace("\N{NO-BREAK SPACE}", "_") == (
        "<td>▲_+1.3_% (\N{MINUS SIGN}0.2_to_+2.8), 0.5_±_0.1, γ_=_0.01</td><pre>5 % (1 to 2)</pre>"
        '<code><span class="whole">--data-option</span> rows=9 "|"</code>'
    )


def test_the_pages_say_when_to_take_each_method() -> None:
    written = "".join(page.read_text() for page in DOCS.glob("methods-*.md"))
    named = set(re.findall(r"`([a-z-]+)`", written))
    forms = {tuple(method.factories) for method in CATALOGUE if method.name in named and method.factories}
    for method in CATALOGUE:
        same = {method.name, method.name.removesuffix("-parameters")}
        assert same & named or tuple(method.factories) in forms, f"no page says when to take {method.name}"


def test_docstrings_become_markdown(hooks: dict[str, ModuleType]) -> None:
    docstring = (
        "See `a paper\n<https://example.org>`_ and :class:`equipoise.Fork` or :func:`nothing`::\n\n    a + ``b``\n\n"
        "===  =====\nx    y\n===  =====\n1    one\n     more\n2    two\n===  =====\n\nExample:\n    >>> 1\n    1\n"
    )
    assert hooks["docstrings"].markdown(docstring) == (
        "See [a paper](https://example.org) and [`Fork`][equipoise.forks.Fork] or `nothing`:\n\n    a + b\n\n"
        "| x | y |\n|---|---|\n| 1 | one more |\n| 2 | two |\n\nExamples:\n    >>> 1\n    1"
    )
