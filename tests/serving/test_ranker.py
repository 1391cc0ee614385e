"""A ranker predicts from its folder as after its training; a damaged folder is refused in one message."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch
from torch import Tensor, nn

import equipoise
from equipoise.comparison.runner import train_into
from equipoise.data import load
from equipoise.errors import DataError, SettingError
from equipoise.forks import Fork
from equipoise.ranking.models import MODELS, register
from equipoise.ranking.predictions import predictions
from equipoise.schema import Schema
from equipoise.serving import Ranker
from equipoise.serving.export import Scorer, difference, random_inputs
from equipoise.settings import Settings
from equipoise.training import StoppedError
from tests.ranking.models.samples import OWN
from tests.serving.conftest import logs

SOURCE = Path(equipoise.__file__).parents[1]


def assert_same(found: pl.DataFrame, expected: pl.DataFrame) -> None:
    assert found.columns == expected.columns
    assert found.equals(expected)


@pytest.mark.parametrize(
    ("method", "model"), [("single-task", "shared-bottom"), *(("multibalance", model) for model in OWN)]
)
def test_a_loaded_ranker_predicts_the_same(
    method: str, model: str, train_on_logs: Callable[..., Ranker], tmp_path: Path
) -> None:
    options = {"scenario": "zip"} if model == "star" else {}
    ranker = train_on_logs(method, model=model, model_options=options)
    ranker.save(tmp_path)
    loaded = Ranker.load(tmp_path)
    assert_same(loaded.predict(logs(seed=1)), ranker.predict(logs(seed=1)))
    assert loaded.run == ranker.run
    assert loaded.settings == ranker.settings
    assert len({tuple(column) for column in loaded.predict(logs(seed=1)).iter_columns()}) == 2


def test_its_predictions_are_probabilities(ranker: Ranker) -> None:
    rows = logs(seed=1)
    found = ranker.predict(rows)
    with torch.no_grad():
        ids, numbers = ranker.encoding.encode(rows)
        outputs = ranker.model(ids.long(), numbers)
    assert found.columns == ["visit", "conversion"]
    for name, output in zip(found.columns, outputs, strict=True):
        torch.testing.assert_close(torch.tensor(found[name].to_list()), output.sigmoid())


@pytest.mark.parametrize("name", ["funnel", "census-income"])
def test_a_data_set_that_did_not_come_as_a_table_saves_its_schema(name: str, tmp_path: Path) -> None:
    dataset = load(name, rows=3000) if name == "funnel" else load(name)
    ranker = equipoise.train(dataset, "equal", epochs=1, batch_size=512, out=tmp_path)
    loaded = Ranker.load(tmp_path)
    split = dataset.test.take(slice(0, 50))
    for found, expected in zip(
        loaded.predict_encoded(split.categorical, split.numeric),
        predictions(ranker.model(split.categorical.long(), split.numeric), dataset.schema),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)
    assert loaded.data == dataset.name
    with pytest.raises(SettingError, match=r"did not come as a table.*predict_encoded"):
        loaded.predict(logs())


TABLES = {
    "polars": lambda frame: frame,
    "lazy": lambda frame: frame.lazy(),
    "pandas": lambda frame: frame.to_pandas(),
    "pyarrow": lambda frame: frame.to_arrow(),
    "record batch": lambda frame: frame.to_arrow().combine_chunks().to_batches()[0],
    "columns": lambda frame: frame.to_dict(as_series=False),
    "rows": lambda frame: frame.to_dicts(),
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_of_every_kind_give_the_same_predictions(kind: str, ranker: Ranker) -> None:
    rows = logs(50, seed=2)
    assert_same(ranker.predict(TABLES[kind](rows)), ranker.predict(rows))


def test_something_that_is_no_table_is_refused(ranker: Ranker) -> None:
    with pytest.raises(DataError, match=r"found a int. Expected a table of polars, pandas or pyarrow"):
        ranker.predict(3)
    with pytest.raises(DataError, match=r"a list of rows as mappings.*found another list"):
        ranker.predict([3])


def test_a_table_without_rows_gives_columns_without_rows(ranker: Ranker) -> None:
    found = ranker.predict(logs().clear())
    assert found.shape == (0, 2)
    assert found.columns == ["visit", "conversion"]


def test_the_state_of_forks_is_not_kept(ranker: Ranker, folder: Path) -> None:
    assert any(isinstance(part, Fork) for part in ranker.model.modules())
    names = torch.load(folder / "weights.pt", weights_only=True)
    assert names
    assert not [name for name in names if "fork" in name]


class OwnRanker(nn.Module):
    """A model of one's own."""

    def __init__(self, schema: Schema, fork: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.bottom = nn.Linear(len(schema.numeric_columns), 8)
        self.own_fork = fork()
        self.towers = nn.ModuleList(nn.Linear(8, 1) for _ in schema.tasks)
        self.shift = 1.0

    def get_extra_state(self) -> dict[str, float]:
        return {"shift": self.shift}

    def set_extra_state(self, state: dict[str, float]) -> None:
        self.shift = state["shift"]

    def forward(self, _: Tensor, numeric: Tensor) -> list[Tensor]:
        branches = self.own_fork(self.bottom(numeric).relu())
        return [tower(branch)[:, 0] + self.shift for tower, branch in zip(self.towers, branches, strict=True)]


def test_an_own_model_is_built_from_its_import_path(train_on_logs: Callable[..., Ranker], tmp_path: Path) -> None:
    ranker = train_on_logs("multibalance", model=f"{__name__}:OwnRanker")
    ranker.model.models[0].shift = 0.5  # state that is no tensor
    ranker.save(tmp_path)
    loaded = Ranker.load(tmp_path)
    assert_same(loaded.predict(logs()), ranker.predict(logs()))
    program = torch.export.load(loaded.export(tmp_path / "export") / "model.pt2").module()
    inputs = random_inputs(ranker.schema, 9)
    assert difference(program(*inputs), Scorer(ranker.model, ranker.schema)(*inputs)) <= 1e-6


def test_a_model_that_was_registered_is_found_where_it_is_not(
    train_on_logs: Callable[..., Ranker], tmp_path: Path
) -> None:
    before = MODELS.registered()
    register("own", OwnRanker)
    try:
        ranker = train_on_logs("multibalance", model="own")
        ranker.save(tmp_path)
    finally:
        MODELS.restore(before)
    assert_same(Ranker.load(tmp_path).predict(logs()), ranker.predict(logs()))


def test_a_model_whose_module_is_gone_is_named(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    change(copy, model="gone.away:Ranker", import_path="gone.away:Ranker")
    with pytest.raises(SettingError, match=r"cannot be built here.*No module named 'gone'.*can be imported"):
        Ranker.load(copy)


def change(folder: Path, **changes: object) -> None:
    description = folder / "ranker.json"
    description.write_text(json.dumps({**json.loads(description.read_text()), **changes}))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES = {
    "no folder": (shutil.rmtree, "found no such folder"),
    "no description": (lambda folder: (folder / "ranker.json").unlink(), "found only weights.pt: run `equipoise train"),
    "no weights": (lambda folder: (folder / "weights.pt").unlink(), "Expected the weights of .* found none"),
    "weights cut": (lambda folder: cut(folder / "weights.pt"), "are not those of .*damaged"),
    "description cut": (lambda folder: cut(folder / "ranker.json"), "Expected JSON in"),
    "other JSON": (lambda folder: (folder / "ranker.json").write_text("[1]"), "found other JSON"),
    "newer": (lambda folder: change(folder, version=2), "of version 2 of the format.*reads version 1"),
    "other key": (lambda folder: change(folder, surplus=1), "is damaged: surplus"),
    "no schema": (lambda folder: change(folder, schema=None), "is damaged: schema"),
    "schema without tasks": (
        lambda folder: change(folder, schema={"categorical": [], "numeric": [], "tasks": []}),
        "is damaged: schema: .*at least one task",
    ),
    "another width": (
        lambda folder: change(folder, model_options={"embedding_dim": 3}),
        "do not fit the model .*of another size",
    ),
    "another model": (lambda folder: change(folder, model="mmoe"), "do not fit the model .*missing: .*not expected"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_in_one_message(damage: str, folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    act, message = DAMAGES[damage]
    act(copy)
    with pytest.raises(DataError, match=message):
        Ranker.load(copy)


def test_weights_that_hold_code_are_not_run(folder: Path, tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path(tmp_path / "ran").touch, ())

    copy = shutil.copytree(folder, tmp_path / "copy")
    torch.save({"weight": Malicious()}, copy / "weights.pt")
    change(copy, weights=__import__("hashlib").sha256((copy / "weights.pt").read_bytes()).hexdigest())
    with pytest.raises(DataError, match="Expected tensors by name"):
        Ranker.load(copy)
    assert not (tmp_path / "ran").exists()


def test_a_write_that_fails_leaves_the_ranker_before(
    ranker: Ranker, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    before = {path.name: path.read_bytes() for path in copy.iterdir()}

    def full(_: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        ranker.save(copy)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def test_a_ranker_loads_where_neither_data_nor_global_random_state_matter(folder: Path) -> None:
    state = torch.random.get_rng_state()
    Ranker.load(folder)
    assert torch.equal(torch.random.get_rng_state(), state)


SETTINGS = {"data": "funnel", "data_options": {"rows": 1500}, "epochs": 1, "batch_size": 256, "lr": 0.01}


def test_a_training_that_starts_over_sets_the_ranker_aside(tmp_path: Path) -> None:
    train_into(tmp_path, Settings.of(**SETTINGS))
    first = Ranker.load(tmp_path)
    with pytest.raises(StoppedError):  # it starts over and does not end
        train_into(tmp_path, Settings.of(**SETTINGS, seed=1), stop=iter([False, True]).__next__)
    with pytest.raises(DataError, match="with --resume if it was interrupted"):
        Ranker.load(tmp_path)
    assert Ranker.load(tmp_path / "ranker.before").run == first.run
    train_into(tmp_path, Settings.of(**SETTINGS, seed=1), resume=True)
    assert Ranker.load(tmp_path).settings["seed"] == 1
