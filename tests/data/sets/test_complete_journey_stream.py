"""All of Complete Journey's exposures on disk: none missing, encoded as by ``load``, resumable."""

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from equipoise.data.sets.complete_journey import stream, stream_all
from equipoise.data.sets.complete_journey.encoding import Encoding
from equipoise.data.sets.complete_journey.examples import Examples
from equipoise.data.sets.complete_journey.exposures import Week
from equipoise.data.sets.complete_journey.sampling import Sample
from equipoise.data.sets.complete_journey.tables import Tables
from equipoise.errors import DataError

ROWS = 50_000


@pytest.fixture(scope="module")
def tables() -> Tables:
    """The published tables with every 60th household's purchases alone, so that a week is small."""
    whole = Tables.read()
    chosen = whole.purchases.household % 60 == 7
    names = [field.name for field in dataclasses.fields(whole.purchases)]
    few = dataclasses.replace(whole.purchases, **{name: getattr(whole.purchases, name)[chosen] for name in names})
    return dataclasses.replace(whole, purchases=few)


@pytest.fixture(autouse=True)
def _small(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tables, "read", staticmethod(lambda: tables))
    monkeypatch.setattr(stream, "_CHUNK", 7_000)


def test_row_i_of_a_part_is_exposure_i_encoded_as_in_the_sample(tables: Tables, tmp_path: Path) -> None:
    (part,) = stream_all(tmp_path / "new", weeks=[30], rows=ROWS)
    found = pl.read_parquet(part)
    week, examples = Week(tables, 30), Examples(tables)
    assert part.name == "week-30.parquet"
    assert len(found) == len(week) > 3 * 7_000
    assert (found["week"] == 30).all()
    sample = Sample.draw(tables, examples, rows=ROWS, seed=0)
    encoding = Encoding.fit(
        examples.ids(sample.exposures), examples.numbers(sample.exposures), train=sample.rows("train")
    )
    every = week.rows(np.arange(len(week)))
    features = [f.name for f in encoding.categorical_features]
    np.testing.assert_array_equal(found.select(features).to_numpy(), encoding.categorical(examples.ids(every)))
    numbers = [f.name for f in encoding.numeric_features]
    np.testing.assert_array_equal(found.select(numbers).to_numpy(), encoding.numeric(examples.numbers(every)))
    np.testing.assert_array_equal(found[:, -5:].to_numpy(), examples.labels(every))
    assert found["purchase"].sum() == len(week.purchased) > 0


def test_repeat_is_missing_where_its_four_weeks_are_not_over(tmp_path: Path) -> None:
    (part,) = stream_all(tmp_path, weeks=[51], rows=ROWS)
    found = pl.read_parquet(part)
    np.testing.assert_array_equal(found["repeat"].is_nan(), found["purchase"] == 1)
    assert (found.filter(pl.col("purchase") == 0)["repeat"] == 0).all()


def test_an_interrupted_call_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (first,) = stream_all(tmp_path, weeks=[20], rows=ROWS)
    written = first.stat().st_mtime_ns
    encode, calls = Encoding.categorical, []

    def interrupted(self, ids):
        calls.append(len(ids))
        if len(calls) == 2:  # the first chunk of week 21 is on disk by now
            raise KeyboardInterrupt
        return encode(self, ids)

    with monkeypatch.context() as patch:
        patch.setattr(Encoding, "categorical", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stream_all(tmp_path, weeks=[20, 21], rows=ROWS)
    assert len(calls) == 2
    assert list(tmp_path.iterdir()) == [first]
    told: list[str] = []
    parts = stream_all(tmp_path, weeks=[21, 20], rows=ROWS, on_stage=lambda what, _: told.append(what))
    assert [part.name for part in parts] == ["week-20.parquet", "week-21.parquet"]
    assert first.stat().st_mtime_ns == written
    assert not any("week 20" in line for line in told)
    monkeypatch.setattr(Tables, "read", None)
    assert stream_all(tmp_path, weeks=[20, 21], rows=ROWS) == parts


def test_parts_of_other_options_or_other_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    (part,) = stream_all(tmp_path, weeks=[1], rows=ROWS)
    before = part.read_bytes()
    with pytest.raises(DataError, match="choose an empty folder"):
        stream_all(tmp_path, weeks=[1], rows=ROWS, seed=1)
    assert part.read_bytes() == before
    part.write_text("no Parquet")
    with pytest.raises(DataError, match="remove it"):
        stream_all(tmp_path, weeks=[1], rows=ROWS)
    assert part.read_text() == "no Parquet"


@pytest.mark.parametrize("weeks", [[], [0], [54], [1, 99]])
def test_weeks_out_of_range_are_refused(weeks: list[int], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Expected weeks out of 1 … 53"):
        stream_all(tmp_path / "new", weeks=weeks)
    assert not (tmp_path / "new").exists()
