"""The hash of texts is CRC-32, as zlib computes it."""

import zlib

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.data.encoding.hashing import crc32, hashed


@settings(deadline=None, derandomize=True)
@given(st.lists(st.none() | st.text(st.characters(codec="utf-8"), max_size=300)))
def test_every_text_has_the_sum_of_zlib(texts: list[str | None]) -> None:
    column = pl.Series(texts, dtype=pl.String)
    assert crc32(column).tolist() == [zlib.crc32((text or "").encode()) for text in texts]


def test_texts_of_very_different_lengths_are_hashed_together() -> None:
    texts = ["", "a", "b" * 255, "c" * 256, "d" * 257, "e" * 100_000, "f"]
    assert crc32(pl.Series(texts)).tolist() == [zlib.crc32(text.encode()) for text in texts]


def test_many_rows_are_hashed_in_chunks() -> None:
    texts = pl.int_range(100_000, eager=True).cast(pl.String)
    found = hashed(texts.slice(5), 1000)  # a slice starts inside the buffers of arrow
    assert found.tolist() == [1 + zlib.crc32(str(number).encode()) % 999 for number in range(5, 100_000)]


def test_a_missing_text_has_id_0_and_others_never() -> None:
    found = hashed(pl.Series([None, *map(str, range(5000))]), 7)
    assert found[0] == 0
    assert sorted(set(found[1:].tolist())) == [1, 2, 3, 4, 5, 6]
