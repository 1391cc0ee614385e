"""The evidence page is whole, self-contained and honest about what is missing; Markdown gives the same words."""

import pytest

from equipoise.comparison.result_folder import FolderError
from equipoise.report.evidence import evidence_section, write_evidence, write_evidence_markdown
from tests.made_up_comparison import Comparison


def test_a_suite_becomes_one_page_and_one_markdown_file(suite):
    folder = suite(first=Comparison(), second=Comparison(methods=("equal", "multibalance", "pub")), third=None)
    page = write_evidence(folder).read_text(encoding="utf-8")
    words = write_evidence_markdown(folder).read_text(encoding="utf-8")
    assert page.count("<!doctype html>") == 1
    assert 'http-equiv="Content-Security-Policy" content="default-src \'none\'' in page
    for shown in (page, words):
        assert "Not begun: Third." in shown
        assert "Critical-difference" in shown or shown is words
    assert evidence_section(folder).strip() in words


@pytest.mark.parametrize("content", [None, "{}", '{"title": "A", "settings": []}', "no JSON"])
def test_a_folder_without_a_suite_is_refused_with_what_to_do(tmp_path, content):
    if content is not None:
        (tmp_path / "suite.json").write_text(content)
    with pytest.raises(FolderError, match="equipoise evidence"):
        write_evidence(tmp_path)
    assert not (tmp_path / "evidence.html").exists()
