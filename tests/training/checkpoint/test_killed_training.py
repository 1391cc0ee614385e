"""A training killed at any moment resumes from a complete checkpoint and ends like an uninterrupted one."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("killed_training.py")


def test_a_training_killed_at_fifty_random_moments_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, SCRIPT, "50", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["killed"] == 50
    assert found["loaded"] > 25  # the others were killed before their first checkpoint
    assert found["writing"] > 0  # a checkpoint, while they were killed
    assert found["equal"]
    assert all(found["equal"])
