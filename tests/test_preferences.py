import pytest

from equipoise.preferences import preference_factors


def test_factors_have_the_mean_1_and_keep_the_ratios() -> None:
    factors = preference_factors([9, 1, 2.0], "abc")
    assert sum(factors) == pytest.approx(3)
    assert factors[0] / factors[1] == pytest.approx(9)
    assert preference_factors(None, "abc") == [1, 1, 1]


@pytest.mark.parametrize("wrong", [[1], [1, 0], [1, -1], [1, float("inf")], [1, "2"], 3, {"a": 1, "b": 2}])
def test_what_is_not_one_positive_number_per_task_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="task_weights must be a list of 2 positive finite numbers, one for each of a"):
        preference_factors(wrong, "ab")
