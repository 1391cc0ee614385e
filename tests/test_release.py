"""The checks of `make release` pass what they should, and find what should not be published."""

from __future__ import annotations

import io
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
from release.check_distributions import (
    NEEDED,
    committed_files,
    faults_of_metadata,
    faults_of_source_distribution,
    faults_of_wheel,
    left_to_do,
    package_files,
)

ROOT = Path(__file__).parents[1]
ABOUT = "equipoise-1.0.dist-info"
METADATA = """Metadata-Version: 2.4
Name: equipoise
Version: 1.0
License-Expression: Apache-2.0
License-File: LICENSE
Classifier: Typing :: Typed
Requires-Dist: torch>=2.11
Requires-Dist: polars>=2.0; extra == 'data'
"""


def wheel_of(folder: Path, names: set[str], *, licence: bool = True) -> Path:
    path = folder / "equipoise-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names | ({f"{ABOUT}/licenses/LICENSE"} if licence else set()):
            archive.writestr(name, "")
        archive.writestr(f"{ABOUT}/METADATA", METADATA)
    return path


def source_of(folder: Path, names: set[str]) -> Path:
    path = folder / "equipoise-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(f"equipoise-1.0/{name}"), io.BytesIO())
    return path


def test_a_wheel_with_every_file_of_the_package_has_no_fault(tmp_path: Path) -> None:
    assert package_files() >= NEEDED
    assert not list(faults_of_wheel(wheel_of(tmp_path, package_files()), package_files()))


def test_a_wheel_with_tests_or_without_a_file_or_licence_is_refused(tmp_path: Path) -> None:
    names = {*package_files(), "tests/test_monitor.py"} - {"equipoise/py.typed"}
    found = list(faults_of_wheel(wheel_of(tmp_path, names, licence=False), package_files()))
    assert found == [
        "lacks equipoise/py.typed",
        "should not hold tests/test_monitor.py",
        "lacks the text of its licence",
    ]


def test_a_file_that_the_package_itself_has_lost_is_missed(tmp_path: Path) -> None:
    names = package_files() - {"equipoise/py.typed"}
    assert list(faults_of_wheel(wheel_of(tmp_path, names), names)) == ["lacks equipoise/py.typed"]


def test_a_source_distribution_holds_what_is_committed(tmp_path: Path) -> None:
    archive = source_of(tmp_path, {"README.md", "notes.txt", "PKG-INFO"})
    found = list(faults_of_source_distribution(archive, {"README.md", "LICENSE"}))
    assert found == ["lacks LICENSE", "should not hold notes.txt"]


def test_the_committed_files_are_those_of_git() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("needs a clone")
    assert {"LICENSE", "Makefile", "src/equipoise/py.typed", "tests/test_monitor.py"} <= committed_files()


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        ("Requires-Dist: torch", "Requires-Dist: numpy\nRequires-Dist: torch", "where torch alone is expected"),
        ("; extra == 'data'", "", "where torch alone is expected"),
        ("License-File: LICENSE\n", "", "licence"),
        ("Classifier: Typing :: Typed\n", "", "typed"),
    ],
)
def test_metadata_with_more_than_torch_or_without_licence_is_refused(before: str, after: str, fault: str) -> None:
    assert not list(faults_of_metadata(METADATA))
    (found,) = faults_of_metadata(METADATA.replace(before, after))
    assert fault in found


DONE = {"changelog": "## [1.0] - 2027-01-31\n", "citation": "\nversion: 1.0\n", "tags": ["v1.0"], "changes": ""}


@pytest.mark.parametrize(
    ("changed", "step"),
    [
        ({"changelog": "## [Unreleased]\n"}, "CHANGELOG.md has no section [1.0] with a date"),
        ({"citation": "\nversion: 0.9\n"}, "CITATION.cff names another version than 1.0"),
        ({"changes": " M README.md\n"}, "some changes are not committed"),
        ({"tags": ["v0.9"]}, "this commit has no tag v1.0"),
    ],
)
def test_each_step_that_is_left_to_do_is_named(changed: dict[str, str], step: str) -> None:
    assert not list(left_to_do("1.0", **DONE))
    assert list(left_to_do("1.0", **DONE | changed)) == [step]


def test_make_release_builds_checks_installs_and_never_uploads() -> None:
    command = ["make", "--dry-run", "--no-print-directory", "--old-file=constraints.txt", "release"]
    lines = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    order = ["-m build", "twine check --strict", "check_distributions.py dist", "dist/*.whl", "try_core.py"]
    places = [lines.index(step) for step in order]
    assert places == sorted(places)
    assert "upload" not in lines
