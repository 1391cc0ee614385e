import pickle
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from equipoise import registry as registries
from equipoise.errors import DataError, SettingError
from equipoise.registry import Registry, registered, restore


def double(number: int) -> int:
    return 2 * number


def triple(number: int) -> int:
    return 3 * number


@pytest.fixture
def make(monkeypatch):
    """A registry of functions with these entry points, apart from those of equipoise."""
    monkeypatch.setattr(registries, "_REGISTRIES", {})

    def build(*points: EntryPoint, **options) -> Registry:
        monkeypatch.setattr(registries, "entry_points", lambda group: EntryPoints(points).select(group=group))
        return Registry("function", "test.functions", own={"double": double, "root": "math:sqrt"}, **options)

    return build


def point(name: str, value: str, package: str = "plugin") -> EntryPoint:
    distribution = type("Distribution", (), {"name": package, "version": "1.2"})()
    return EntryPoint(name, value, "test.functions")._for(distribution)


def test_an_entry_is_found_wherever_it_comes_from(make) -> None:
    functions = make(point("sine", "math:sin"))
    functions.register("triple", triple)
    functions.register("cosine", "math:cos")
    assert list(functions) == ["double", "root", "triple", "cosine", "sine"]
    assert len(functions) == 5
    assert "sine" in functions
    assert "tangent" not in functions
    assert (functions["double"], functions["triple"]) == (double, triple)
    assert (functions["root"](4), functions["sine"](0), functions["cosine"](0)) == (2, 0, 1)
    assert functions["math:floor"](1.5) == 1
    assert functions["collections:Counter.most_common"].__name__ == "most_common"


def test_an_unknown_name_lists_the_known_ones_with_the_registrys_own_error(make) -> None:
    functions = make(point("sine", "math:sin"), error=DataError)
    with pytest.raises(DataError, match=r"Expected a function out of double, root, sine; found 'tangent'\."):
        functions["tangent"]


def test_a_name_is_refused_that_another_origin_has(make) -> None:
    functions = make(point("sine", "math:sin"))
    functions.register("triple", triple)
    for name, origin in (
        ("double", "equipoise itself"),
        ("triple", r"register, called in test_registry\.py, line \d+"),
        ("sine", "'math:sin' of package plugin 1.2"),
    ):
        with pytest.raises(SettingError, match=f"{name!r} is taken by .*{origin}.*choose another name"):
            functions.register(name, double)
    functions.register("triple", double, replace=True)
    assert functions["triple"] is double
    with pytest.raises(SettingError, match="taken by equipoise itself"):
        functions.register("double", triple, replace=True)


def test_a_name_of_two_packages_or_of_a_package_and_equipoise_is_refused_when_asked_for(make) -> None:
    functions = make(point("sine", "math:sin"), point("sine", "cmath:sin", "other"), point("double", "math:cos"))
    with pytest.raises(
        SettingError, match=r"'sine' is taken more than once, .*package plugin 1\.2.*package other 1\.2"
    ):
        functions["sine"]
    with pytest.raises(
        SettingError, match=r"'double' is taken more than once, by equipoise itself and .*package plugin"
    ):
        functions["double"]
    assert functions["root"](9) == 3
    assert list(functions.usable()) == ["root"]
    assert list(functions.broken()) == ["double", "sine"]


@pytest.mark.parametrize("name", ["", "a:b", "a=b", "a,b", "a b", "-a", "a/b"])
def test_a_name_that_lists_and_options_could_not_hold_is_refused(make, name: str) -> None:
    with pytest.raises(SettingError, match="function's name takes letters, digits"):
        make().register(name, double)


def test_what_cannot_be_imported_is_named_with_its_package_and_spares_the_others(
    make, tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "raises_at_import.py").write_text("raise RuntimeError('no licence file')")
    monkeypatch.syspath_prepend(tmp_path)
    functions = make(
        point("gone", "no_such_module:thing"), point("lost", "math:no_such_thing"),
        point("raises", "raises_at_import:thing"), point("sine", "math:sin"),
    )  # fmt: skip
    assert "gone" in functions
    for name, error in (
        ("gone", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("lost", "AttributeError: .*no_such_thing"),
        ("raises", "RuntimeError: no licence file"),
    ):
        with pytest.raises(SettingError, match=f"entry point {name!r} = .* of package plugin 1.2.*{error}"):
            functions[name]
    with pytest.raises(SettingError, match=r"Cannot use function 'no_such_module:thing'.*ModuleNotFoundError"):
        functions["no_such_module:thing"]
    assert list(functions.usable()) == ["double", "root", "sine"]
    assert list(functions.broken()) == ["gone", "lost", "raises"]


def test_what_is_no_entry_is_refused_by_name(make) -> None:
    def function(_name: str, found: object) -> object:
        if not callable(found):
            raise TypeError(f"expected a function, found {found!r}.")
        return found

    functions = make(adapt=function)
    functions.register("pi", "math:pi")
    with pytest.raises(SettingError, match=r"The function 'pi' cannot be used: expected a function, found 3\.14"):
        functions["pi"]
    with pytest.raises(SettingError, match="'math:pi' cannot be used"):
        functions["math:pi"]


def test_what_was_registered_goes_to_another_process_and_back(make) -> None:
    functions = make()
    functions.register("triple", triple)
    functions.register("cosine", "math:cos")
    sent = pickle.loads(pickle.dumps(registered()))
    functions.restore({})
    assert list(functions) == ["double", "root"]
    restore(sent)
    assert functions["triple"] is triple
    assert functions["cosine"](0) == 1
    assert registered() == sent


def test_in_a_worker_the_main_process_decides_even_where_its_script_has_registered_again(make) -> None:
    functions = make()
    functions.register("triple", triple)
    sent = registered()
    functions.restore({})
    functions.register("triple", double)  # what the script does that a worker imports anew
    restore(sent)
    assert functions["triple"] is triple


def test_what_cannot_be_pickled_is_refused_with_what_to_do(make) -> None:
    def inside(number: int) -> int:
        return number

    for entry in (inside, lambda number: number):
        functions = make()
        functions.register("mine", entry)
        assert functions["mine"] is entry  # with one job it can be used
        with pytest.raises(SettingError, match=r"'mine' cannot be handed to worker processes .*top level of a module"):
            registered()


def test_what_a_worker_cannot_import_is_refused_when_it_is_asked_for(make, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "written_in_a_notebook.py").write_text("def cell(): pass")
    monkeypatch.syspath_prepend(tmp_path)
    functions = make()
    functions.register("cell", __import__("written_in_a_notebook").cell)
    sent = registered()
    del sys.modules["written_in_a_notebook"]
    (tmp_path / "written_in_a_notebook.py").write_text("")
    for cached in tmp_path.glob("__pycache__/*"):
        cached.unlink()
    restore(sent)
    with pytest.raises(SettingError, match=r"'cell' was registered in the main process, but this worker .*notebook"):
        functions["cell"]
    assert functions["double"] is double
