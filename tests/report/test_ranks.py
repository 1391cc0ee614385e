"""Average ranks and critical differences are those of Demšar 2006; the front is that of brute force."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from equipoise.report.ranks import compare_ranks, critical_difference, pareto_front

# Demšar, JMLR 7, 2006, table 6: AUC of four variants of C4.5 on 14 data sets; its ranks tell the last two of voting
# apart.
DEMSAR = """
adult 0.763 0.768 0.771 0.798
breast-cancer 0.599 0.591 0.590 0.569
wisconsin 0.954 0.971 0.968 0.967
cmc 0.628 0.661 0.654 0.657
ionosphere 0.882 0.888 0.886 0.898
iris 0.936 0.931 0.916 0.931
liver 0.661 0.668 0.609 0.685
lung 0.583 0.583 0.563 0.625
lymphography 0.775 0.838 0.866 0.875
mushroom 1.000 1.000 1.000 1.000
tumor 0.940 0.962 0.965 0.962
rheum 0.619 0.666 0.614 0.669
voting 0.972 0.981 0.975 0.9749
wine 0.957 0.978 0.946 0.970
"""


def demsar():
    """Return data set to method to score, lower is better."""
    names = ("C4.5", "m", "cf", "m+cf")
    rows = [line.split() for line in DEMSAR.strip().splitlines()]
    return {row[0]: {name: -float(auc) for name, auc in zip(names, row[1:], strict=True)} for row in rows}


def test_the_example_of_demsar_comes_out():
    found = compare_ranks(demsar())
    assert {name: round(rank, 3) for name, rank in found.average.items()} == {
        "m+cf": 1.964, "m": 2.0, "cf": 2.893, "C4.5": 3.143,
    }  # fmt: skip
    assert found.critical_difference == pytest.approx(1.25, abs=0.005)
    assert found.data_sets == 14
    without_correction = 12 * 14 / (4 * 5) * (sum(rank**2 for rank in found.average.values()) - 4 * 25 / 4)
    assert without_correction == pytest.approx(9.28, abs=0.01)  # as the paper has it
    chi_squared = stats.friedmanchisquare(*np.array([list(row.values()) for row in demsar().values()]).T).statistic
    f = 13 * chi_squared / (14 * 3 - chi_squared)
    assert found.p == pytest.approx(stats.f.sf(f, 3, 39))
    assert chi_squared > without_correction
    assert found.cliques == [("m+cf", "m", "cf", "C4.5")]


@pytest.mark.parametrize(("methods", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)])
def test_the_critical_values_are_those_of_the_paper(methods, q):
    assert critical_difference(methods, 6) * math.sqrt(36 / (methods * (methods + 1))) == pytest.approx(q, abs=1e-3)


def test_cliques_are_the_largest_groups_within_the_critical_difference():
    # ranks 1, 2, 3, 4 on every one of 12 data sets; the critical difference is 1.354
    found = compare_ranks({str(at): {"a": 1, "b": 2, "c": 3, "d": 4} for at in range(12)})
    assert found.critical_difference == pytest.approx(1.354, abs=1e-3)
    assert found.cliques == [("a", "b"), ("b", "c"), ("c", "d")]
    assert found.p == 0


def test_too_little_to_compare_has_no_test():
    one = compare_ranks({"one": {"a": 1.0, "b": 2.0, "c": 3.0}})
    assert (one.p, one.critical_difference, one.cliques) == (None, None, [])
    assert compare_ranks({"one": {"a": 1.0, "b": 2.0}, "two": {"a": 1.0, "b": 2.0}}).p is None
    assert compare_ranks({name: dict.fromkeys("abc", 1.0) for name in ("one", "two")}).p == 1


@pytest.mark.parametrize("scores", [{}, {"one": {}}, {"one": {"a": 1.0}, "two": {"b": 1.0}}])
def test_methods_that_differ_between_data_sets_are_refused(scores):
    with pytest.raises(ValueError, match="the same methods on each data set"):
        compare_ranks(scores)


@given(st.dictionaries(st.text(max_size=3), st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=8))
def test_the_front_is_that_of_brute_force(points):
    def at_least_as_good(other, point):
        return other != point and other[0] >= point[0] and other[1] >= point[1]

    front = pareto_front(points)
    # of equal points one stands for all
    expected = {point for point in points.values() if not any(at_least_as_good(o, point) for o in points.values())}
    assert sorted(points[name] for name in front) == sorted(expected)
