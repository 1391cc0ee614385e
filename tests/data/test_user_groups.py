"""Groups of users: activity by train rows, and data sets that name who their users are."""

import numpy as np
import polars as pl
import pytest
import torch

from equipoise.data import DataError, Dataset, Split, from_frame
from equipoise.data.user_groups import ACTIVITY, ACTIVITY_NAMES, with_activity
from equipoise.schema import Numeric, Schema, Task

SCHEMA = Schema([], [Numeric("age")], [Task("visit")])


def split(users: np.ndarray) -> Split:
    rows = len(users)
    return Split(
        torch.empty(rows, 0, dtype=torch.int32), torch.zeros(rows, 1), torch.zeros(rows, 1), torch.ones(rows),
        keys={"user": torch.from_numpy(users.astype(np.int64))},
    )  # fmt: skip


def test_activity_is_the_quarter_of_the_users_by_train_rows() -> None:
    random = np.random.default_rng(0)
    train, test = random.zipf(1.5, 3_000) % 400, random.integers(0, 500, 800)
    found = with_activity(Dataset("toy", SCHEMA, split(train), split(test), split(test), group="user"))
    counts = np.bincount(train, minlength=500)
    limits = np.quantile(counts[counts > 0], [0.25, 0.5, 0.75])
    for part, users in ((found.train, train), (found.test, test)):
        for user, code in zip(users, part.keys[ACTIVITY].tolist(), strict=True):
            assert code == (0 if counts[user] == 0 else 1 + int((limits < counts[user]).sum()))
    assert found.slices == found.user_groups == (ACTIVITY,)
    assert found.values[ACTIVITY] == ACTIVITY_NAMES


def test_activity_needs_a_user() -> None:
    with pytest.raises(ValueError, match="needs the key that tells users apart"):
        with_activity(Dataset("toy", SCHEMA, split(np.zeros(3)), split(np.zeros(3)), split(np.zeros(3))))


LOG = pl.DataFrame({"age": range(200), "zip": ["a", "b"] * 100, "visit": [0, 1, 1, 0] * 50})
CONFIG = {"files": "log.parquet", "features": {"age": "number"}, "tasks": {"visit": "visit"}}


def test_own_tables_name_their_user_groups() -> None:
    found = from_frame(LOG, CONFIG | {"slices": ["zip", "age"], "user_groups": ["zip"]})
    assert found.slices == ("zip", "age")
    assert found.user_groups == ("zip",)


def test_a_user_group_that_is_no_slice_is_refused() -> None:
    with pytest.raises(DataError, match=r"user_groups: expected columns of `slices`, out of zip; found 'age'"):
        from_frame(LOG, CONFIG | {"slices": ["zip"], "user_groups": ["age"]})
    with pytest.raises(DataError, match=r"toy: user_groups should name slices \(user\); found age"):
        Dataset("toy", SCHEMA, split(np.zeros(3)), split(np.zeros(3)), split(np.zeros(3)), slices=("user",),
                user_groups=("user", "age"))  # fmt: skip
