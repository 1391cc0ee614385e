"""The committed suite names methods, data sets and models that exist; its short form runs at night."""

from pathlib import Path

import pytest

from equipoise.comparison.result_folder import ResultFolder
from equipoise.comparison.suite import Suite, run_suite
from equipoise.data import DATASETS
from equipoise.methods import CATALOGUE, parse_method
from equipoise.report.evidence import write_evidence

SUITE = Suite.read(Path(__file__).parents[1] / "benchmarks" / "evidence.yaml")


def test_every_name_in_the_suite_exists_and_every_comparison_has_its_references() -> None:
    for name in SUITE.settings:
        settings = SUITE.comparison(name)
        assert settings.data in DATASETS
        assert {"equal", "single-task", "static", "multibalance"} <= set(settings.methods)
        assert all(parse_method(method) for method in settings.methods)
        assert (settings.tune, settings.seeds) == (True, 10)


def test_every_method_of_the_catalogue_is_in_the_suite() -> None:
    compared = {method for name in SUITE.settings for method in SUITE.comparison(name).methods}
    assert {method.name for method in CATALOGUE} == compared


@pytest.mark.nightly
def test_the_short_form_runs_and_gives_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))  # the suite names a model of the examples
    run_suite(SUITE, tmp_path, short=True, speed=False)
    for name in SUITE.settings:
        results = ResultFolder(tmp_path / name).results()
        assert len(results.runs) == results.planned
    assert write_evidence(tmp_path).is_file()
