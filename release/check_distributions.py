"""Checks what the wheels and the source distribution hold, and says what is left to do before they are published.

`make release` runs it: python release/check_distributions.py dist
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "equipoise"
NEEDED = {
    "equipoise/py.typed",
    "equipoise/report/templates/report.html.j2",
    "equipoise/comparison/tuned/complete-journey-shared-bottom.json",
}
LIBRARY = "equipoise/forks/libcpu_kernels.so"  # of a wheel for one kind of machine: hatch_build.py
OLDEST_GLIBC = (2, 17)  # as the name of such a wheel promises: manylinux_2_17


def package_files() -> set[str]:
    """Return the files of the package as a wheel for any machine names them."""
    files = (path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {f"equipoise/{path.relative_to(PACKAGE).as_posix()}" for path in files} - {LIBRARY}


def committed_files() -> set[str]:
    """Return the files that git tracks."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    return {name for name in listed.stdout.split("\0") if name}


def differences(found: set[str], expected: set[str]) -> Iterator[str]:
    """Yield one line for each file that is missing or should not be there."""
    yield from (f"lacks {name}" for name in sorted(expected - found))
    yield from (f"should not hold {name}" for name in sorted(found - expected))


def faults_of_metadata(text: str) -> Iterator[str]:
    """Yield what is wrong with the core metadata: licence, type hints, and torch as the only thing always needed."""
    metadata = Parser().parsestr(text)
    if metadata["License-Expression"] != "Apache-2.0" or metadata.get_all("License-File") != ["LICENSE"]:
        yield "does not name its licence"
    if "Typing :: Typed" not in (metadata.get_all("Classifier") or []):
        yield "does not say that it is typed"
    always = [line for line in metadata.get_all("Requires-Dist") or [] if "extra ==" not in line]
    if [re.split(r"[^\w-]", line)[0] for line in always] != ["torch"]:
        yield f"needs {always} where torch alone is expected"


def faults_of_library(code: bytes) -> Iterator[str]:
    """Yield which versions of glibc the C library needs that are newer than the name of its wheel says."""
    for major, minor in sorted({(int(major), int(minor)) for major, minor in re.findall(rb"GLIBC_(\d+)\.(\d+)", code)}):
        if (major, minor) > OLDEST_GLIBC:
            yield f"holds a library that needs glibc {major}.{minor}"


def faults_of_wheel(wheel: Path, expected: set[str]) -> Iterator[str]:
    """Yield what is wrong with a wheel that should hold the `expected` files of the package, and the library's."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        about = next(name.partition("/")[0] for name in names if ".dist-info/" in name)
        yield from faults_of_metadata(archive.read(f"{about}/METADATA").decode())
        if LIBRARY in names:
            yield from faults_of_library(archive.read(LIBRARY))
    for_one_machine = set() if wheel.stem.endswith("-any") else {LIBRARY}
    found = {name for name in names if not name.startswith(f"{about}/")}
    yield from differences(found, expected | NEEDED | for_one_machine)
    if f"{about}/licenses/LICENSE" not in names:
        yield "lacks the text of its licence"


def faults_of_source_distribution(archive: Path, expected: set[str]) -> Iterator[str]:
    """Yield what is wrong with a source distribution that should hold the `expected` files of the repository."""
    with tarfile.open(archive) as opened:
        found = {member.name.partition("/")[2] for member in opened.getmembers() if member.isfile()}
    yield from differences(found, expected | {"PKG-INFO"})


def left_to_do(version: str, *, changelog: str, citation: str, tags: Iterable[str], changes: str) -> Iterator[str]:
    """Yield the steps of a release that are not done yet."""
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE):
        yield f"CHANGELOG.md has no section [{version}] with a date"
    if f"\nversion: {version}\n" not in citation:
        yield f"CITATION.cff names another version than {version}"
    if changes:
        yield "some changes are not committed"
    if f"v{version}" not in tags:
        yield f"this commit has no tag v{version}"


def git(*words: str) -> str:
    """Return what a git command prints."""
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def main() -> None:
    """Check the files of the folder; exit with their faults, if there are any."""
    folder = Path(sys.argv[1])
    wheels, (source,) = sorted(folder.glob("*.whl")), folder.glob("*.tar.gz")
    faults = [
        *(f"{wheel.name} {fault}" for wheel in wheels for fault in faults_of_wheel(wheel, package_files())),
        *(f"{source.name} {fault}" for fault in faults_of_source_distribution(source, committed_files())),
    ]
    if faults:
        sys.exit("\n".join(faults))
    waiting = left_to_do(
        source.name.removesuffix(".tar.gz").split("-")[1],
        changelog=(ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        citation=(ROOT / "CITATION.cff").read_text(encoding="utf-8"),
        tags=git("tag", "--points-at", "HEAD").split(),
        changes=git("status", "--porcelain"),
    )
    print(f"{', '.join(wheel.name for wheel in wheels)} and {source.name} hold what they should.")
    for step in waiting:
        print(f"Before publishing: {step}.")


if __name__ == "__main__":
    main()
