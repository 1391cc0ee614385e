"""Write a made-up log of an e-mail campaign: 64,000 customers, who visited the shop, who bought, and for how much.

python examples/email_campaign.py email.csv
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np

ROWS = 64_000


def write_campaign(path: Path, rows: int = ROWS, seed: int = 0) -> None:
    """Write one row per customer: six features, ``visit`` and ``conversion`` (0 or 1), and ``spend``."""
    random = np.random.default_rng(seed)
    recency = random.integers(1, 13, rows)
    history = np.round(np.exp(random.normal(5.0, 1.0, rows)), 2)
    zip_code = random.choice(["Suburban", "Urban", "Rural"], rows, p=[0.45, 0.40, 0.15])
    newbie = random.integers(0, 2, rows)
    channel = random.choice(["Web", "Phone", "Multichannel"], rows, p=[0.44, 0.44, 0.12])
    segment = random.choice(["Mens E-Mail", "Womens E-Mail", "No E-Mail"], rows)
    mailed = segment != "No E-Mail"
    interest = 0.9 * mailed - 0.12 * recency + 0.35 * np.log(history / 150) - 0.5 * newbie + 0.4 * (zip_code == "Rural")
    visit = random.random(rows) < 1 / (1 + np.exp(1.9 - interest))
    need = 0.6 * (channel == "Web") + 0.5 * (segment == "Womens E-Mail") - 0.3 * (zip_code == "Rural")
    conversion = visit & (random.random(rows) < 1 / (1 + np.exp(2.0 - need)))
    spend = np.where(conversion, np.round(np.exp(random.normal(3.6 + 0.25 * np.log(history / 150), 0.6)), 2), 0.0)
    columns = {
        "recency": recency, "history": history, "zip_code": zip_code, "newbie": newbie, "channel": channel,
        "segment": segment, "visit": visit.astype(int), "conversion": conversion.astype(int), "spend": spend,
    }  # fmt: skip
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))


if __name__ == "__main__":
    write_campaign(Path(sys.argv[1]))
