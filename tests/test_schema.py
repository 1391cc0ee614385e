"""A schema takes what it says it takes, and refuses everything else in one sentence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.schema import Categorical, Numeric, Schema, Task

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
