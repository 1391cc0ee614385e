"""A schema takes valid columns and batches, and refuses all others with one sentence."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equipoise.schema import Batch, Categorical, Numeric, Schema, Task

anything = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 9), st.floats(), st.text(max_size=3), st.lists(st.integers(), max_size=2)
)
columns = st.one_of(
    st.builds(Categorical, st.text(min_size=1, max_size=3), st.integers(1, 9)),
    st.builds(Numeric, st.text(min_size=1, max_size=3)),
    st.builds(Task, st.text(min_size=1, max_size=3)),
    anything,
)


@given(anything, anything)
def test_a_column_has_a_name_and_whole_numbers_or_is_refused(name: object, cardinality: object) -> None:
    named = isinstance(name, str) and name != ""
    for kind in (Numeric, Task):
        if named:
            assert kind(name).name == name
        else:
            with pytest.raises(ValueError, match=f"{kind.__name__}: expected a name that is not empty, found"):
                kind(name)
    if named and type(cardinality) is int and cardinality > 0:
        assert Categorical(name, cardinality).cardinality == cardinality
    else:
        with pytest.raises(ValueError, match=r"expected a name that is not empty|must be a whole number of at least 1"):
            Categorical(name, cardinality)


@given(*[st.lists(columns, max_size=3)] * 3)
def test_a_schema_holds_columns_of_the_right_kind_and_different_names_or_is_refused(
    categorical: list, numeric: list, tasks: list
) -> None:
    kinds = zip((Categorical, Numeric, Task), (categorical, numeric, tasks), strict=True)
    fits = all(isinstance(column, kind) for kind, place in kinds for column in place)
    names = [column.name for column in [*categorical, *numeric, *tasks]] if fits else []
    if fits and tasks and len(set(names)) == len(names):
        assert Schema(categorical, numeric, tasks).task_names == tuple(task.name for task in tasks)
    else:
        with pytest.raises(ValueError, match=r"there in a schema, found|at least one task|must differ, found twice"):
            Schema(categorical, numeric, tasks)


def good_batch(rows: int = 4) -> Batch:
    return Batch(
        torch.zeros(rows, 1, dtype=torch.int64),
        torch.zeros(rows, 1),
        torch.tensor([[0.0, 1.0, float("nan"), 1.0]]).T[:rows],
        torch.ones(rows),
    )


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("categorical", 9, "categorical features: column 'user' should hold ids from 0 to 8, found 2 .* the first 9"),
        ("categorical", -1, "column 'user' .* the first -1"),
        (
            "numeric",
            float("inf"),
            "numeric features: column 'age' should hold finite numbers, found 2 others in 4 ",
        ),
        ("labels", -1.0, r"labels: column 'click' should hold 0, 1 or NaN \(missing\), found 2 .* the first -1"),
        ("labels", 0.5, "column 'click' .* the first 0.5"),
        ("weight", -1.0, "weights: column 'weight' should hold finite numbers from 0 up, found 2 others"),
    ],
)
def test_a_batch_says_which_column_holds_what_it_must_not(column: str, value: float, message: str) -> None:
    schema = Schema([Categorical("user", 9)], [Numeric("age")], [Task("click")])
    batch = good_batch()
    batch.check(schema)
    getattr(batch, column)[1:3] = value
    with pytest.raises(ValueError, match=message):
        batch.check(schema)


def test_a_batch_of_another_schema_is_refused() -> None:
    schema = Schema([Categorical("user", 9), Categorical("item", 9)], [Numeric("age")], [Task("click")])
    with pytest.raises(ValueError, match=r"expected the 2 columns of the schema \(user, item\), found 1"):
        good_batch().check(schema)


def test_labels_of_a_regression_are_finite_and_above_minus_one_where_their_logarithm_is_learned() -> None:
    for loss, wrong in (("log", -1.0), ("log", float("inf")), ("squared", float("-inf"))):
        schema = Schema([Categorical("user", 9)], [Numeric("age")], [Task("spend", kind="regression", loss=loss)])
        batch = good_batch()
        batch.labels[:, 0] = torch.tensor([0.0, 12.5, float("nan"), -0.5])
        batch.check(schema)
        batch.labels[1, 0] = wrong
        expected = rf"'spend' should hold finite numbers{' above -1' if loss == 'log' else ''} or NaN .* first {wrong}"
        with pytest.raises(ValueError, match=expected):
            batch.check(schema)
