"""The report is one safe, self-contained page with charts; Markdown and terminal give the same numbers."""

import ast
import itertools
import json
import re
import shlex
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser

import plotly.graph_objects as go
import pytest
from plotly.offline import get_plotlyjs

from equipoise.comparison.result_folder import FolderError, ResultFolder
from equipoise.report.analysis import analyse
from equipoise.report.charts import curve_chart
from equipoise.report.measures import MEASURES
from equipoise.report.monitor_charts import monitor_chart
from equipoise.report.page import headline, result_rows, write_markdown, write_report
from equipoise.report.tables import task_table, transfer_table
from equipoise.settings import Settings

HOSTILE = '<script>alert(1)</script> & "quoted" | {{ 7 * 7 }}'
SOME = ("single-task", "equal", "multibalance", "pub")


def page_of(folder):
    """The report without plotly.js, which holds strings that look like anything."""
    page = write_report(folder).read_text(encoding="utf-8")
    assert page.count(get_plotlyjs()) == 1
    return page.replace(get_plotlyjs(), "")


def charts_of(page):
    return [json.loads(found) for found in re.findall(r'<script type="application/json">(.*?)</script>', page)]


def rename(folder, name, other):
    """Rename a task or method label everywhere in the folder."""
    for file in folder.iterdir():
        file.write_text(file.read_text().replace(name, json.dumps(other)[1:-1]))


class Visible(HTMLParser):
    """The text a reader sees, and every tag with its attributes."""

    def __init__(self, page):
        super().__init__()
        self.text, self.tags, self.inside = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside.append(tag)

    def handle_endtag(self, tag):
        if tag in self.inside:
            while self.inside.pop() != tag:
                pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self.inside):
            self.text.append(data)


def visible(page):
    return " ".join(" ".join(Visible(page).text).split())


def test_the_page_is_small_enough_and_asks_nothing_of_a_network(comparison):
    folder = comparison()
    page = page_of(folder)
    assert (folder / "report.html").stat().st_size < 6_000_000
    assert "default-src 'none'" in page
    assert not re.search(r"https?://|@import|url\(", page)
    for tag, attributes in Visible(page).tags:
        assert tag not in {"link", "iframe", "img"}
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")


def test_links_lead_to_sections_that_exist(comparison):
    tags = Visible(page_of(comparison())).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["href"][1:] for tag, attributes in tags if tag == "a"} <= set(ids)


def test_every_chart_is_one_that_plotly_accepts(comparison):
    charts = charts_of(page_of(comparison(methods=SOME, seeds=2)))
    assert len(charts) == 6  # two gain charts, curves, weights, cosines, tuning
    figures = [panel["figure"] for chart in charts for shown in chart for panel in shown]
    for figure in figures:
        go.Figure(figure)
        assert figure["data"]


def test_the_curve_chart_has_a_panel_for_each_task_and_measure(comparison):
    page = page_of(comparison(methods=SOME, seeds=2))
    curves = next(chart for chart in charts_of(page) if len(chart) == 12)  # (5 tasks + their mean) x 2
    assert {len(panel["figure"]["data"]) for shown in curves for panel in shown} == {4}
    ends = [trace["y"][-1] for trace in curves[8][0]["figure"]["data"]]  # coupon, NE
    assert ends == pytest.approx([0.885, 0.848, 0.763, 0.863], abs=0.01)


def test_cosines_are_symmetric_and_the_slider_holds_every_frame(comparison):
    page = page_of(comparison(methods=SOME, seeds=2))
    cosines = next(chart for chart in charts_of(page) if chart[0][0]["title"] == "Mean over training")
    mean, over_time = (panel["figure"] for panel in cosines[0])
    matrix = mean["data"][0]["z"]
    assert matrix[0][1] == matrix[1][0] == pytest.approx(0.38, abs=0.03)
    assert matrix[2][2] is None
    frames = [step["args"][0]["z"][0] for step in over_time["layout"]["sliders"][0]["steps"]]
    assert len(frames) == 20
    assert frames[0] == over_time["data"][0]["z"] != frames[-1]


@pytest.mark.parametrize("name", ["coupon", "MultiBalance"])
def test_hostile_names_are_shown_and_never_run(comparison, name):
    folder = comparison(methods=SOME, seeds=2)
    rename(folder, name, HOSTILE)
    page = page_of(folder)
    assert "<script>alert" not in page
    assert HOSTILE in visible(page)
    scripts = [attributes for tag, attributes in Visible(page).tags if tag == "script"]
    assert len(scripts) == 6 + 2
    shown = [
        trace.get("name", "") for chart in charts_of(page) for panels in chart for panel in panels
        for trace in panel["figure"]["data"]
    ]  # fmt: skip
    assert not any("<" in label for label in shown)
    assert any(unescape(label) == HOSTILE for label in shown)
    markdown = write_markdown(folder).read_text(encoding="utf-8")
    assert "<script" not in markdown
    assert "&lt;script>alert(1)&lt;/script>" in markdown
    tables = re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE)
    assert len(tables) > 5
    for table in tables:  # no name adds a column
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_generated_data_are_labelled_loudly(comparison):
    assert "Generated data." in visible(page_of(comparison(seeds=1, plan={"generated": True})))
    assert "Generated data." not in visible(page_of(comparison(seeds=1)))


def test_notes_best_reachable_ne_and_command_are_shown(comparison):
    notes = {"dataset_notes": ["Not comparable with published numbers."], "best_ne": {"coupon": 0.7123}}
    shown = visible(page_of(comparison(methods=SOME, seeds=1, plan=notes)))
    assert "Not comparable with published numbers." in shown
    assert "Best reachable" in shown
    assert "0.7123" in shown
    assert "equipoise compare --model shared-bottom --epochs 2 --batch-size 2048 --data complete-journey" in shown


def test_the_command_says_what_to_do_with_losses_that_are_not_finite_where_that_was_chosen(comparison):
    assert "--non-finite" not in visible(page_of(comparison(seeds=1, plan={"options": {"non_finite": "raise"}})))
    assert "--non-finite skip-step" in visible(
        page_of(comparison(seeds=1, plan={"options": {"non_finite": "skip-step"}}))
    )


def test_both_views_are_there_only_where_rows_were_sampled(comparison):
    assert page_of(comparison(seeds=1)).count('class="view"') == 2
    page = page_of(comparison(seeds=1, natural=False))
    assert page.count('class="view"') == 1
    assert "natural rate" not in visible(page)


@pytest.mark.parametrize(
    "changes",
    [
        {"methods": ("equal",), "seeds": 1, "tuned": False, "natural": False, "speed": False},
        {"methods": ("single-task",), "seeds": 1, "tuned": False},
        {"methods": ("multibalance", "pub"), "seeds": 2, "natural": False},
        {"methods": SOME, "seeds": 1, "diverged": tuple((name, 0) for name in SOME)},
        {"methods": SOME, "seeds": 3, "left_out": (("pub", 0), ("pub", 1), ("pub", 2), ("equal", 2))},
    ],
)
def test_little_data_still_makes_a_report(comparison, changes):
    folder = comparison(**changes)
    shown = visible(page_of(folder))
    for nothing in ("None", "nan", "inf "):
        assert nothing not in shown
    assert write_markdown(folder).is_file()
    assert len(result_rows(folder)) == len(changes["methods"])


def test_before_the_first_run_ends_there_is_a_report(comparison):
    folder = comparison(methods=SOME, seeds=2)
    for name in ("runs.jsonl", "tuning.jsonl", "throughput.json"):
        (folder / name).unlink()
    shown = visible(page_of(folder))
    assert "0 of 8 runs finished" in shown
    assert "No run has ended well yet." in shown
    assert "AUC by task" not in shown
    assert "nothing to compare" in shown


def test_the_table_holds_rate_gain_interval_test_speed_memory_and_seeds(comparison):
    rows = result_rows(comparison(diverged=(("pub", 4),)))
    first = rows[0]
    assert first["Method"] == "MultiBalance"
    assert first["Learning rate"] == "0.01"
    assert re.fullmatch(r"▲ \+2\.\d\d\s% \(\+\d\.\d\d to \+\d\.\d\d\)", first["NE gain over equal weights"])
    assert first["p"].startswith("< 0.001 (Holm")
    assert first["Speed"] == "× 0.987 (0.972 to 0.999)"
    assert first["Peak memory"] == "193 MB"
    assert first["Seeds"] == "5 of 5"
    assert [row["Seeds"] for row in rows if row["Method"] == "PUB"] == ["4 of 5 (1 diverged)"]


def test_markdown_holds_the_tables_of_the_report(comparison):
    folder = comparison()
    rows = result_rows(folder)
    table = write_markdown(folder).read_text(encoding="utf-8")
    for row in rows:
        assert f"| {' | '.join(row.values())} |" in table
    assert "## Weighted back to the natural rate" in table
    assert "### Against training each task alone" in table


def test_no_folder_of_this_machine_reaches_the_report(comparison):
    options = {"data": "census-income", "data_options": {"folder": "/home/someone/data"}, "seeds": 1}
    folder = comparison(seeds=1, plan={"options": options})
    assert "/home" not in page_of(folder) + write_markdown(folder).read_text(encoding="utf-8")
    assert str(folder) not in page_of(folder)


def test_writing_twice_gives_the_same_and_leaves_nothing_else(comparison):
    folder = comparison(methods=SOME, seeds=1)
    first = write_report(folder).read_bytes()
    before = sorted(file.name for file in folder.iterdir())
    assert write_report(folder).read_bytes() == first
    assert sorted(file.name for file in folder.iterdir()) == before


def test_a_damaged_folder_keeps_the_report_it_had(comparison):
    folder = comparison(methods=SOME, seeds=1)
    first = write_report(folder).read_bytes()
    (folder / "plan.json").write_text("{}")
    with pytest.raises(FolderError, match=r"plan\.json"):
        write_report(folder)
    assert (folder / "report.html").read_bytes() == first


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium on the PATH")
def test_a_browser_draws_every_visible_chart(comparison, tmp_path):
    page = write_report(comparison(methods=SOME, seeds=2))
    found = subprocess.run(
        [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=20000",
            "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    # one of the two gain charts is hidden with its view
    assert found.stdout.count('data-drawn="yes"') == 5
    assert found.stdout.count('class="main-svg"') >= 2 * 7


def test_a_task_without_positives_in_validation_makes_no_rate_look_diverged(comparison):
    folder = comparison(methods=("equal", "pub"), seeds=2)
    runs = [json.loads(line) for line in (folder / "tuning.jsonl").read_text().splitlines()]
    for run in runs:
        run["validation"]["coupon"] = {"auc": None, "ne": None}
    (folder / "tuning.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))
    page = page_of(folder)
    assert (
        "diverged"
        not in write_markdown(folder).read_text(encoding="utf-8").split("## Learning rates")[1].split("## Data")[0]
    )
    tuning = charts_of(page)[-1]
    assert {len(trace["x"]) for trace in tuning[0][0]["figure"]["data"]} == {3}


def test_no_sentence_anywhere_claims_a_speed_that_its_interval_does_not_carry(comparison):
    folder = comparison(methods=SOME, speeds={"multibalance": (1.421, 0.9, 4.6), "pub": (0.71, 0.4, 1.2)})
    written = (visible(page_of(folder)), write_markdown(folder).read_text(encoding="utf-8"), str(result_rows(folder)))
    for shown in (*written, headline(folder)):
        assert "42.1" not in shown
        assert "1.421" not in shown
        assert "faster than equal weights" not in shown.replace(
            "faster or slower than equal weights cannot be told", ""
        )
        assert "slower than equal weights" not in shown.replace(
            "faster or slower than equal weights cannot be told", ""
        )
    assert all("not clear" in shown for shown in written)


def test_tiles_and_terminal_follow_the_same_rule_as_the_summary(comparison):
    busy = comparison(methods=SOME, speeds={"equal": (1.0, 0.5, 2.0), "multibalance": (1.421, 1.2, 4.6)})
    assert "not clear the machine was too busy" in visible(page_of(busy))
    assert "× 1.421" not in visible(page_of(busy))
    assert result_rows(busy)[0]["Speed"] == "not clear (1.200 to 4.600)"
    few = visible(page_of(comparison(methods=SOME, seeds=2)))
    assert "NE gain over equal weights not clear too few seeds" in few


def printed(folder):
    """The command in the report, as a shell splits it."""
    markdown = write_markdown(folder).read_text(encoding="utf-8")
    return markdown.rsplit("```", 2)[1].strip()


def test_the_printed_command_states_what_differs_from_the_defaults_and_can_be_read_back(comparison):
    options = {
        "data": "package.module:load", "data_options": {"rows": 3000}, "model": "own-model", "seeds": 3, "epochs": 2,
        "methods": ["equal", "package.module:METHOD:beta=0.3"], "tune": True, "tune_seeds": 2, "evaluations": 8,
        "model_options": {"bottom": [128, 64]}, "rates": {"equal": 0.01}, "grid": [0.01, 0.1],
    }  # fmt: skip
    words = shlex.split(printed(comparison(methods=SOME, seeds=1, plan={"options": options})))
    assert words[:2] == ["equipoise", "compare"]
    assert "--evaluations" not in words
    for pair in (
        ("--data", "package.module:load"), ("--data-option", "rows=3000"), ("--model", "own-model"),
        ("--model-option", "bottom=128-64"), ("--methods", "equal,package.module:METHOD:beta=0.3"),
        ("--rate", "equal=0.01"), ("--grid", "0.01,0.1"), ("--tune-seeds", "2"),
    ):  # fmt: skip
        assert pair in list(itertools.pairwise(words))


def test_the_printed_command_of_own_tables_writes_their_settings_file_first(comparison, tmp_path):
    tables = {"files": "logs.csv", "features": {"größe": "number"}, "tasks": {"visit": "a = 'x'"}, "epochs": 2}
    options = {"data": tables, "model": "mmoe", "seeds": 3, "methods": list(SOME)}
    script = printed(comparison(methods=SOME, seeds=1, plan={"options": options}))
    stub = 'equipoise() { echo "$@"; }\n'
    done = subprocess.run(["bash", "-c", stub + script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("compare settings.yaml --model mmoe")
    assert Settings.of(tmp_path / "settings.yaml").data == tables


@pytest.mark.parametrize("given", [["data"], ["data", "model", "methods"]])
def test_what_was_given_from_python_is_printed_as_a_call(comparison, given):
    options = {"data": "my logs", "model": "MyRanker", "methods": ["equal", "my-method"], "seeds": 3, "tune": True}
    call = printed(comparison(methods=SOME, seeds=1, plan={"options": options, "from_python": given}))
    assert "equipoise compare " not in call
    assert call.startswith("# given from Python: dataset")
    tree = ast.parse(call)
    (positional,), keywords = tree.body[0].value.args, {k.arg: k.value for k in tree.body[0].value.keywords}
    assert positional.id == "dataset"
    assert ast.literal_eval(keywords["methods"]) == ["equal", "my-method"]
    assert isinstance(keywords["model"], ast.Name) == ("model" in given)


def test_the_report_says_what_its_intervals_do_not_cover(comparison):
    shown = visible(page_of(comparison(seeds=1)))
    assert "not the choice of rows: all seeds are tested on the same rows" in shown


def test_rate_and_table_decay_are_shown_where_they_were_chosen(comparison):
    folder = comparison(methods=("equal", "pub"), seeds=3)
    plan = json.loads((folder / "plan.json").read_text())
    plan |= {"table_decays": {"equal": 0.3, "pub": 1.0}, "decay_grid": [0.0, 0.3, 1.0]}
    (folder / "plan.json").write_text(json.dumps(plan))
    for name in ("runs.jsonl", "tuning.jsonl"):
        runs = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        if name == "runs.jsonl":
            runs = [run | {"table_decay": plan["table_decays"][run["method"]]} for run in runs]
        else:
            runs = [run | {"table_decay": decay} for run in runs for decay in (0.0, 0.3, 1.0)]
        (folder / name).write_text("".join(json.dumps(run) + "\n" for run in runs))
    assert {row["Method"]: row["Learning rate"] for row in result_rows(folder)} == {
        "Equal weights (the reference)": "0.003 (table decay 0.3)", "PUB": "0.001 (table decay 1)",
    }  # fmt: skip
    tuning = write_markdown(folder).read_text(encoding="utf-8").split("validation mean NE")[1].split("##")[0]
    assert len(re.findall(r"^\| (?:Equal weights|PUB) \|", tuning, re.MULTILINE)) == 2 * 3
    assert re.search(r"\| Equal weights \| 0\.3 \|.*\| 0\.003 \|\n", tuning)
    assert re.search(r"\| PUB \| 1 \|.*\| 0\.001 \(edge of the grid\) \|\n", tuning)
    shown = visible(page_of(folder))
    assert "Learning rate or table decay at the edge of the grid: PUB." in shown
    assert "each with decays of the embedding tables of 0, 0.3, 1" in shown


def test_a_task_with_few_positives_has_neither_mark_nor_colour(comparison):
    labels = {"test": {"coupon": {"labelled": 10_000, "positives": 20}}}
    folder = comparison(methods=SOME, plan={"label_counts": labels})
    analysis = analyse(ResultFolder(folder).results())
    tasks = analysis.tasks
    for table in (task_table(analysis, MEASURES["ne"], tasks), transfer_table(analysis, MEASURES["ne"], tasks)):
        at = [column.title for column in table.columns].index("coupon (too few)")
        cells = [row.cells[at] for row in table.rows]
        assert not any(cell.background or cell.tone for cell in cells)
        assert not any(mark in cell.text + cell.below for cell in cells for mark in "▲▼△▽")
        others = [cell for row in table.rows for cell in row.cells[1:at]]
        assert any(cell.background for cell in others)


def test_weights_of_losses_are_charted_and_those_that_never_move_are_not(comparison):
    folder = comparison(methods=("equal", "multibalance", "pub", "adatask"), seeds=2)
    runs = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    for run in runs:
        if run["method"] == "adatask":
            run["monitor"] = [{"step": step, "loss/weight/coupon": 0.5 + step} for step in (1, 2)]
        if run["method"] == "pub":
            run["monitor"] = [{"step": step, "fork/shared/weight/coupon": 1.0} for step in (1, 2)]
    (folder / "runs.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))
    weights = monitor_chart(ResultFolder(folder).results()).panels[0]
    assert [panel.title for panel in weights] == ["MultiBalance", "AdaTask"]
    coupon = next(trace for trace in weights[1].figure["data"] if trace["name"] == "coupon")
    assert coupon["y"] == [1.5, 2.5]


def test_a_task_that_is_not_defined_at_some_points_is_in_no_point_of_the_mean_curve(comparison):
    """Only the last point evaluates all rows, so a rare task may be defined there alone."""
    folder = comparison(methods=("equal", "pub"), seeds=2)
    runs = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    for run in runs:
        for point in run["curve"]:
            for task, metrics in point["validation"].items():
                metrics["ne"] = 0.5 if task != "coupon" else 0.9 if point is run["curve"][-1] else None
    (folder / "runs.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))
    mean = curve_chart(ResultFolder(folder).results()).panels[0][0].figure["data"]
    assert [trace["y"] for trace in mean] == [[0.5] * 8] * 2
