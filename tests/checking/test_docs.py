"""The page on where to fork shows the output that `check` really prints."""

import re
from pathlib import Path

import torch

from equipoise import MultiBalance, check

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "where-to-fork.md").read_text()


def test_the_page_prints_what_check_prints():
    shared_bottom = re.search(r"^```python\n(class SharedBottom.*?)^```", PAGE, re.M | re.S)[1]
    section = PAGE[PAGE.index("## Ask `check`") :]
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", section, re.M | re.S)
    assert [kind for kind, _ in blocks] == ["python", "text", "python", "text"]
    names = {"torch": torch, "MultiBalance": MultiBalance}
    exec(shared_bottom + blocks[0][1] + blocks[2][1], names)
    assert str(names["report"]) == blocks[1][1].rstrip()
    wrong = names["Bypassed"]()
    losses = [logit.square().mean() for logit in wrong(torch.randn(4, 8))]
    assert str(check(wrong, losses)) == blocks[3][1].rstrip()
