"""The index finds each key at its place, and nothing else."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.data.encoding.id_tables import Vocabulary
from equipoise.data.encoding.index import Index
from equipoise.data.encoding.places import Place

keys = st.integers(0, 2**64 - 1) | st.integers(0, 20)
PLACE = Place("v", "v")


@settings(deadline=None, derandomize=True)
@given(st.sets(keys), st.lists(keys))
def test_keys_are_found_as_in_a_dict(known: set[int], asked: list[int]) -> None:
    places = {key: place for place, key in enumerate(known, start=1)}
    found = Index(np.array(list(known), np.uint64)).find(np.array(asked, np.uint64))
    assert found.tolist() == [places.get(key, 0) for key in asked]


def test_many_keys_are_found_beside_many_that_are_not_there() -> None:
    known = np.random.default_rng(0).permutation(300_000).astype(np.uint64)
    index = Index(known[:150_000])
    assert np.array_equal(index.find(known), np.r_[1:150_001, np.zeros(150_000, int)])


@settings(deadline=None, derandomize=True)
@given(st.lists(keys, min_size=1))
def test_a_key_that_occurs_twice_is_refused(known: list[int]) -> None:
    with pytest.raises(ValueError, match="twice"):
        Index(np.array([*known, known[0]], np.uint64))


def test_another_text_with_the_same_hash_is_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pl.Series, "hash", lambda self, seed: self.str.len_bytes().fill_null(0).cast(pl.UInt64) + seed)
    vocabulary = Vocabulary(values=["a", "bb", "ccc"])
    assert vocabulary.ids(pl.Series(["a", "x", "bb", "ccc", "zzz", "long", None]), PLACE).tolist() == [
        1,
        0,
        2,
        3,
        0,
        0,
        0,
    ]


def test_texts_with_the_same_hash_take_another_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def hash_of_first_letters(texts: pl.Series, seed: int) -> pl.Series:
        return texts.str.slice(0, seed + 1).str.len_bytes().cast(pl.UInt64)

    monkeypatch.setattr(pl.Series, "hash", hash_of_first_letters)
    assert Vocabulary(values=["a", "bb", "ccc"]).ids(pl.Series(["ccc", "a", "bb"]), PLACE).tolist() == [3, 1, 2]


def test_texts_of_numbers_are_found_by_numbers_and_by_text() -> None:
    vocabulary = Vocabulary(values=["007", "7", "+7", "-0", "0", "9223372036854775807", "9223372036854775808", "x"])
    numbers = pl.Series([7, 0, 2**63 - 1, None, 8], dtype=pl.Int64)
    assert vocabulary.ids(numbers, PLACE).tolist() == [2, 5, 6, 0, 0]
    assert vocabulary.ids(pl.Series(["7", "0", "+7", None, "x"]), PLACE).tolist() == [2, 5, 3, 0, 8]
    assert vocabulary.ids(pl.Series([2**63, 7], dtype=pl.UInt64), PLACE).tolist() == [7, 2]
