"""Docstrings and names keep to plain English: verb first, one sentence, a name that says what it holds."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).parents[1]
FOLDERS = ("src/equipoise", "tests", "benchmarks", "examples", "docs/hooks", "release")
OPENINGS = re.compile(r"(What|Whether|How|Who|Whose|Whom|Where|When|That|Every rank)\b")
UNCLEAR_NAMES = {"_like", "_whom", "_apart", "_of", "heeded"}
# Each was the name of two unlike things: bars in a terminal, values over a run, a monitor of forks.
TAKEN_NAMES = {"progress", "watch"}
WORDS_OF_FIRST_SENTENCE = 35


class Documented(NamedTuple):
    """A module, class or function and its docstring."""

    place: str
    name: str
    docstring: str | None


def definitions(source: str, path: str) -> Iterator[Documented]:
    """Yield the module itself, then its classes and functions at any depth."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Module():
                yield Documented(path, Path(path).stem, ast.get_docstring(node))
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                yield Documented(f"{path}:{node.lineno}", node.name, ast.get_docstring(node))


def first_sentence(docstring: str) -> str:
    """Return the text up to the first full stop that ends a sentence, or the whole first paragraph without one."""
    paragraph = " ".join(docstring.split("\n\n", maxsplit=1)[0].split())
    end = re.search(r"(?<!e\.g)(?<!i\.e)(?<!Eq)(?<!Eqs)(?<!Sec)(?<!Fig)\.[)\"]?(?= [A-Z`\"(*]|$)", paragraph)
    return paragraph[: end.end()] if end else paragraph


def faults_of_docstring(docstring: str, *, is_public: bool) -> Iterator[str]:
    """Yield what is wrong with a docstring; a public one of the package has to be a sentence, too."""
    if opening := OPENINGS.match(docstring):
        yield f"opens with {opening.group()!r} instead of a verb or a noun"
    if is_public:
        sentence = first_sentence(docstring)
        if not sentence.rstrip(")\"'").endswith("."):
            yield f"first sentence ends without a full stop: {sentence!r}"
        if len(words := sentence.split()) > WORDS_OF_FIRST_SENTENCE:
            yield f"first sentence has {len(words)} words, more than {WORDS_OF_FIRST_SENTENCE}: {sentence!r}"


def faults_of_name(name: str, *, in_package: bool) -> Iterator[str]:
    """Yield what is wrong with the name of a module, class or function."""
    if name in UNCLEAR_NAMES:
        yield f"the name {name!r} does not say what it gives"
    if in_package and name.lower() in TAKEN_NAMES:
        yield f"the name {name!r} has stood for several things"


def faults(source: str, path: str) -> Iterator[str]:
    """Yield `place: fault` for each fault of a file."""
    in_package = path.startswith("src/")
    for place, name, docstring in definitions(source, path):
        found = list(faults_of_name(name, in_package=in_package))
        if docstring is not None:
            found += faults_of_docstring(docstring, is_public=in_package and not name.startswith("_"))
        yield from (f"{place}: {fault}" for fault in found)


@pytest.mark.parametrize("folder", FOLDERS)
def test_docstrings_and_names_are_plain(folder: str) -> None:
    files = sorted((REPOSITORY / folder).rglob("*.py"))
    assert files
    found = [fault for file in files for fault in faults(file.read_text(), str(file.relative_to(REPOSITORY)))]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ('"""How a thing works."""', "opens with 'How'"),
        ('def f():\n    """Every rank\'s."""', "opens with 'Every rank'"),
        ('class A:\n    """No full stop"""', "without a full stop"),
        (f'def f():\n    """Return {"a " * 40}word."""', "has 42 words"),
        ("class A:\n    def _of(self):\n        pass", "'_of' does not say"),
        ("class Watch:\n    pass", "'Watch' has stood for several things"),
    ],
)
def test_a_fault_is_found(source: str, fault: str) -> None:
    (found,) = faults(source, "src/equipoise/example.py")
    assert fault in found


def test_names_of_modules_count() -> None:
    (found,) = faults('"""Show bars."""', "src/equipoise/cli/progress.py")
    assert "'progress'" in found


@pytest.mark.parametrize(
    "source",
    [
        '"""Show bars."""',
        'def whatever():\n    """Whatsoever is given, return it (Eq. 3) e.g. as text. What comes next is free."""',
        'def _helper():\n    """Return a fragment without a stop"""',
    ],
)
def test_plain_text_passes(source: str) -> None:
    assert not list(faults(source, "src/equipoise/example.py"))
