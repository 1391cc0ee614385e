"""Write who gains and who loses by balancing, from the folders of finished comparisons, as one page of Markdown.

equipoise compare --data complete-journey --methods equal,multibalance,pub --seeds 5 --out cj
equipoise compare --data census-income --methods equal,multibalance,pub --seeds 5 --out census
python benchmarks/user_groups.py cj census --out benchmarks/results/user-groups.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

from equipoise.comparison.result_folder import ResultFolder
from equipoise.report.analysis import analyse
from equipoise.report.markdown import markdown_table, no_tags
from equipoise.report.phrases import counted
from equipoise.report.user_groups import gap_table, group_findings, group_tables


def page(folders: list[Path]) -> str:
    lines = [
        "# Who gains, who loses by balancing",
        "",
        "Every method at its own rate, against equal weights with the same seeds. In a cell the gain in NE, in "
        "brackets the change of AUC (means: its interval); ▲ ▼ clear over the seeds after Holm's adjustment. "
        "`docs/ethics.md` says what this does not tell.",
    ]
    for folder in folders:
        results = ResultFolder(folder).results()
        analysis, plan = analyse(results), results.plan
        rates = ", ".join(f"{method.label} {plan.rate(method.name)}" for method in plan.methods)
        lines += [
            "",
            f"## {plan.dataset}",
            "",
            f"{len(plan.seeds)} seeds, {counted(plan.epochs, 'epoch')}, rates: {rates}.",
            "",
        ]
        lines += [f"- {no_tags(found)}" for found in group_findings(results, analysis)]
        if (gaps := gap_table(results, analysis)) is not None:
            lines += ["", "### Gap in AUC between the groups served best and worst", "", *markdown_table(gaps)]
        for title, table in group_tables(results, analysis):
            lines += ["", f"### {title}", "", *markdown_table(table)]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    chosen.out.write_text(page(chosen.folders), encoding="utf-8")
