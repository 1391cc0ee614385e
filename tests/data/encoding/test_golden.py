"""The golden cases hold for the encoding and for its plain description alike."""

import json
from typing import Any

import numpy as np
import pytest

from equipoise.data.encoding import Encoding
from equipoise.errors import DataError
from tests.data.encoding.by_row import RefusedValue, encode_row
from tests.data.encoding.golden import CASES, ENCODED, REFUSED, frame_of, rows_of

name_of = lambda case: case["name"]  # noqa: E731


def encoding_of(case: dict[str, Any]) -> Encoding:
    return Encoding.from_json(json.dumps(case["encoding"]))


@pytest.mark.parametrize("case", ENCODED, ids=name_of)
def test_whole_blocks_give_the_expected_ids_and_values(case: dict[str, Any]) -> None:
    ids, values = encoding_of(case).encode(frame_of(case))
    assert ids.tolist() == case["ids"]
    # log1p may differ by one unit in the last place between libraries of C
    np.testing.assert_allclose(values.numpy(), np.float32(case["values"]), rtol=2e-7, atol=0)


@pytest.mark.parametrize("case", ENCODED, ids=name_of)
def test_the_description_gives_the_expected_ids_and_values(case: dict[str, Any]) -> None:
    found = [encode_row(case["encoding"], row) for row in rows_of(case)]
    assert [ids for ids, _ in found] == case["ids"]
    assert [values for _, values in found] == case["values"]


@pytest.mark.parametrize("case", REFUSED, ids=name_of)
def test_a_value_without_an_encoding_is_refused_with_its_place(case: dict[str, Any]) -> None:
    (column,) = case["columns"]
    with pytest.raises(DataError, match=f"column '{column}'"):
        encoding_of(case).encode(frame_of(case))
    with pytest.raises(RefusedValue):
        encode_row(case["encoding"], rows_of(case)[0])


def test_the_golden_cases_cover_every_kind() -> None:
    kinds = {feature["kind"] for case in CASES for feature in case["encoding"]["features"]}
    assert kinds == {"category", "categories", "cross", "number", "bins", "vector", "time"}
