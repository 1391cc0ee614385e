"""The evidence page is whole, self-contained and honest about what is missing; Markdown gives the same words."""

import json
import shutil
import subprocess

import plotly.graph_objects as go
import pytest
from plotly.offline import get_plotlyjs

from equipoise.comparison.result_folder import FolderError
from equipoise.report.evidence import evidence_section, write_evidence, write_evidence_markdown
from tests.made_up_comparison import Comparison
from tests.report.test_page import HOSTILE, charts_of, rename, visible

FEW = ("single-task", "equal", "multibalance", "pub", "static")


def page_of(folder):
    """The page without plotly.js, which holds strings that look like anything."""
    page = write_evidence(folder).read_text(encoding="utf-8")
    assert page.count(get_plotlyjs()) == 1
    return page.replace(get_plotlyjs(), "")


@pytest.fixture
def two(suite):
    """Return the folder of two settings with users, and a third that has not begun."""
    return suite(
        first=Comparison(methods=FEW, seeds=3, users=True), second=Comparison(methods=FEW, seeds=3), third=None
    )


def test_the_page_holds_every_part(two):
    shown = visible(page_of(two))
    for expected in (
        "5 methods compared in 2 settings; 30 of 30 runs finished.", "Not begun: Third.", "Average ranks",
        "Cost against quality", "coupon, 609 positives", "Negative transfer", "Log loss by task", "AUC by task",
        "Calibration by task", "… seeds and users", "excludes 0", "log loss 0.", "off by 3.0",
        "How much tuning a method needs", "All trials",
        "NE gains of static weights, and over them", "Gain against how well the baseline is tuned", "Peak memory", "Δm",
        "A run that diverged counts in its seed as a model without skill",
    ):  # fmt: skip
        assert expected in shown


def test_regressions_and_diverged_runs_are_shown_too(suite):
    made = Comparison(methods=FEW, seeds=3, rich=True, users=True, diverged=(("pub", 0), ("static", 1)))
    shown = visible(page_of(suite(one=made)))
    for expected in (
        "spend, 40,600 rows", "NE (of regressions NSE) by task", "Diverged: PUB (1 of 3) and Static weights (1 of 3).",
        "2 of 3", "1 diverged",
    ):  # fmt: skip
        assert expected in shown


def test_every_chart_is_one_that_plotly_accepts(two):
    charts = charts_of(page_of(two))
    assert [len(chart) for chart in charts] == [1, 1, 2, 2, 2]  # ranks and cost; gains, trials, tuning by setting
    for figure in (panel["figure"] for chart in charts for shown in chart for panel in shown):
        go.Figure(figure)
        assert figure["data"]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium on the PATH")
def test_a_browser_draws_every_chart(two, tmp_path):
    found = subprocess.run(
        [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=20000",
            "--dump-dom", write_evidence(two).as_uri(),
        ],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert found.stdout.count('data-drawn="yes"') == 5


def test_the_rank_picture_joins_what_the_test_does_not_tell_apart(two):
    figure = charts_of(page_of(two))[0][0][0]["figure"]
    dots, *bars = figure["data"]
    assert dots["x"] == [1.0, 2.0, 3.0]
    assert [bar["y"] for bar in bars] == [["MultiBalance", "Equal weights"]]
    (line,) = figure["layout"]["shapes"]
    assert line["x1"] - line["x0"] == pytest.approx(2.344 * (3 * 4 / 12) ** 0.5, abs=1e-3)


def test_the_front_is_marked_and_named(two):
    others, front = charts_of(page_of(two))[1][0][0]["figure"]["data"]
    assert front["text"] == ["Equal weights", "MultiBalance"]
    assert front["textposition"] == ["bottom left", "top right"]  # one above the line, one below it
    assert others["text"] == ["PUB"]


def test_a_method_far_below_all_others_is_named_beside_the_picture(suite):
    folder = suite(one=Comparison(diverged=(("clippy", 0), ("clippy", 1))))
    gains = next(chart for chart in charts_of(page_of(folder)) if "← " in json.dumps(chart, ensure_ascii=False))
    layout = gains[0][0]["figure"]["layout"]
    (note,) = layout["annotations"]
    assert note["text"].startswith("left of the picture: Clippy (−")
    assert layout["xaxis"]["range"][0] > -10


@pytest.mark.parametrize("name", ["coupon", "MultiBalance", "A suite", "First"])
def test_hostile_names_are_shown_and_never_run(two, name):
    for folder in (two / "first", two / "second"):
        rename(folder, name, HOSTILE)
    (two / "suite.json").write_text((two / "suite.json").read_text().replace(name, json.dumps(HOSTILE)[1:-1]))
    page = page_of(two)
    assert "<script>alert" not in page
    assert HOSTILE in visible(page)
    assert "<script>" not in write_evidence_markdown(two).read_text()


def test_the_code_of_a_note_is_shown_as_code_and_the_rest_as_text(two):
    content = json.loads((two / "suite.json").read_text())
    content["settings"][0]["note"] = "`coupon` is rare <b>here</b>."
    (two / "suite.json").write_text(json.dumps(content))
    assert "<code>coupon</code> is rare &lt;b&gt;here&lt;/b&gt;." in page_of(two)


def test_long_names_have_several_lines_beside_a_picture(two):
    for folder in (two / "first", two / "second"):
        rename(folder, "MultiBalance", "MultiBalance & uncertainty weighting")
    ranks = charts_of(page_of(two))[0][0][0]["figure"]
    assert "MultiBalance &amp;<br>uncertainty weighting" in ranks["data"][0]["y"]


def test_markdown_holds_answer_cautions_and_tables(two):
    words = write_evidence_markdown(two).read_text(encoding="utf-8")
    assert words.startswith("# A suite\n")
    for heading in (
        "## Over all settings", "## NE gain over equal weights", "## Static weights", "## Which tasks gain",
        "### First", "## How much tuning a method needs", "## Setting by setting", "## How it was done",
    ):  # fmt: skip
        assert f"\n{heading}\n" in words
    assert "\n\nTo be kept in mind:\n\n" in words
    assert "- Not begun: Third." in words
    assert evidence_section(two).strip().replace("\n###", "\n##") in words


def test_a_section_leaves_out_methods_of_few_settings_and_says_so(suite):
    few = ("equal", "multibalance", "static")
    folder = suite(one=Comparison(methods=few), two=Comparison(methods=few), three=Comparison(methods=(*few, "pub")))
    section, whole = evidence_section(folder), write_evidence_markdown(folder).read_text(encoding="utf-8")
    assert "| PUB |" in whole
    assert "| PUB |" not in section
    assert "Left out here: 1 method with results in fewer than half of the settings." in section
    assert "Left out" not in whole
    (row,) = [line for line in section.partition("### Where nearly all methods ran")[2].splitlines() if "Three" in line]
    assert row.startswith("| Three | ")
    assert "One" not in section.partition("### Where nearly all methods ran")[2]


def test_a_suite_that_has_just_begun_is_a_page_too(suite):
    folder = suite(
        first=Comparison(methods=FEW, left_out=tuple((name, at) for name in FEW for at in range(5))), second=None
    )
    (folder / "first" / "tuning.jsonl").unlink()
    (folder / "first" / "throughput.json").unlink()
    shown = visible(page_of(folder))
    assert "so there is nothing to compare" in shown
    assert "Not finished: First (0 of 25 runs)" in shown
    assert "0 of 2" in shown


def test_writing_twice_gives_the_same(two):
    before = write_evidence(two).read_bytes(), write_evidence_markdown(two).read_bytes()
    assert (write_evidence(two).read_bytes(), write_evidence_markdown(two).read_bytes()) == before


@pytest.mark.parametrize("content", [None, "{}", '{"title": "A", "settings": []}', "no JSON"])
def test_a_folder_without_a_suite_is_refused_with_what_to_do(tmp_path, content):
    if content is not None:
        (tmp_path / "suite.json").write_text(content)
    with pytest.raises(FolderError, match="equipoise evidence"):
        write_evidence(tmp_path)
    assert not (tmp_path / "evidence.html").exists()
