"""Census-Income: both forms, the leaks, the splits, what is refused, and the download from a local server."""

import gzip
import hashlib
import http.server
import io
import json
import os
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from equipoise.data import DataError, Dataset, load
from equipoise.data.sets import census_income
from equipoise.data.sets.census_income import COLUMNS, LEAKS, NUMERIC, fetch, load_full
from equipoise.data.sets.census_income import load as load_nominal

TRAIN, TEST = "census-income.data.gz", "census-income.test.gz"
ROOT = os.environ.get("EQUIPOISE_DATA")
real = pytest.mark.skipif(
    ROOT is None or not (Path(ROOT) / "census-income" / TEST).is_file(),
    reason="EQUIPOISE_DATA does not name a folder with census-income/",
)

Row = dict[str, str]


def rows(count: int, seed: int) -> list[Row]:
    """Rows in which most columns vary and every label occurs, with missing values in the states."""
    rng = np.random.default_rng(seed)
    columns = {name: [f"{name} {k}" for k in rng.integers(3, size=count)] for name in COLUMNS}
    columns |= {name: [str(k) for k in rng.integers(50, size=count)] for name in NUMERIC}
    columns["instance_weight"] = [f"{weight:.2f}" for weight in rng.uniform(100, 3000, count)]
    values = {
        "state_prev_res": ["?", "Utah", "Ohio"],
        "marital_stat": ["Never married", "Widowed"],
        "education": ["Bachelors degree(BA AB BS)", "Doctorate degree(PhD EdD)", "Children"],
        "income_50k": ["- 50000.", "50000+."],
    }
    columns |= {name: rng.choice(some, count).tolist() for name, some in values.items()}
    return [{name: columns[name][i] for name in COLUMNS} for i in range(count)]


def text(some: list[Row]) -> bytes:
    return "".join(", ".join(row[name] for name in COLUMNS) + "\n" for row in some).encode()


def write(path: Path, content: bytes) -> None:
    path.write_bytes(gzip.compress(content))


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder with small files in the published form."""
    write(tmp_path / TRAIN, text(rows(300, seed=0)))
    write(tmp_path / TEST, text(rows(100, seed=1)))
    return tmp_path


@pytest.fixture
def nominal(tmp_path: Path) -> Path:
    """A small file in the nominal form: 90 training rows, and 10 test rows, the only ones with code 2."""
    columns = [name for name in COLUMNS if name not in (*NUMERIC, "instance_weight")]
    rng = np.random.default_rng(0)
    codes = rng.integers(-1, 2, (100, len(columns)), dtype=np.int16)
    codes[90:, columns.index("race")] = 2
    labels = {
        name: rng.integers(0, 2, 100).astype(np.int8) for name in ("income_50k", "never_married", "bachelor_plus")
    }
    is_test = (np.arange(100) >= 90).astype(np.int8)
    np.savez(
        tmp_path / "census_nominal_codes.npz",
        codes=codes,
        columns=np.array(columns),
        is_test=is_test,
        **labels,
    )
    vocabulary = {name: ["a", "b", "c"] for name in columns} | {"sex": ["?", "b", "c"]}
    (tmp_path / "census_nominal_vocab.json").write_text(json.dumps(vocabulary))
    return tmp_path


def save_arrays(folder: Path, **changes: np.ndarray | None) -> None:
    path = folder / "census_nominal_codes.npz"
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def sizes(dataset: Dataset) -> list[int]:
    return [len(dataset.train), len(dataset.validation), len(dataset.test)]


def column(dataset: Dataset, name: str) -> int:
    return [feature.name for feature in dataset.schema.categorical].index(name)


@pytest.mark.parametrize("form", ["nominal", "full"])
def test_a_column_that_tells_one_label_is_dropped_for_all_tasks(published: Path, form: str) -> None:
    loader = {"nominal": load_nominal, "full": load_full}[form]
    dataset = loader(folder=published)
    features = {feature.name for feature in (*dataset.schema.categorical, *dataset.schema.numeric)}
    assert not features & {*LEAKS, "income_50k", "instance_weight"}
    assert set(LEAKS) == {
        "marital_stat", "det_hh_fam_stat", "det_hh_summ", "tax_filer_stat", "fam_under_18", "education",
    }  # fmt: skip
    assert any(all(leak in note for leak in LEAKS) for note in dataset.notes)


def test_the_nominal_form_has_27_features_and_three_tasks(nominal: Path) -> None:
    dataset = load_nominal(folder=nominal)
    assert len(dataset.schema.categorical) == 27
    assert dataset.schema.task_names == ("income_50k", "never_married", "bachelor_plus")


def test_labels_come_from_income_marital_status_and_education(published: Path) -> None:
    test = load_full(folder=published).test
    expected = [
        [
            row["income_50k"] == "50000+.",
            row["marital_stat"] == "Never married",
            row["education"] != "Children",
        ]
        for row in rows(100, seed=1)
    ]
    torch.testing.assert_close(test.labels, torch.tensor(expected).float())


def test_the_published_test_rows_are_the_test_split_and_validation_is_carved_from_the_rest(
    published: Path,
) -> None:
    dataset = load_full(folder=published, validation=0.2)
    assert sizes(dataset) == [240, 60, 100]
    again, other = (
        load_full(folder=published, validation=0.2),
        load_full(folder=published, validation=0.2, seed=1),
    )
    torch.testing.assert_close(dataset.validation.categorical, again.validation.categorical)
    assert not torch.equal(dataset.validation.labels, other.validation.labels)
    torch.testing.assert_close(dataset.test.labels, other.test.labels)


def test_every_training_row_is_in_one_split(published: Path) -> None:
    dataset = load_full(folder=published)
    weights = torch.cat([dataset.train.weight, dataset.validation.weight])
    assert len(weights.unique()) == 300


def test_the_test_file_alone_is_split_by_seed_and_says_so(published: Path) -> None:
    (published / TRAIN).unlink()
    dataset = load_full(folder=published)
    assert sizes(dataset) == [60, 20, 20]
    assert "split 60/20/20" in dataset.notes[0]
    assert not torch.equal(dataset.test.weight, load_full(folder=published, seed=1).test.weight)


def test_numbers_are_standardised_by_the_training_rows(published: Path) -> None:
    dataset = load_full(folder=published)
    assert [feature.name for feature in dataset.schema.numeric] == list(NUMERIC)
    torch.testing.assert_close(dataset.train.numeric.mean(0), torch.zeros(7), atol=1e-5, rtol=0)
    torch.testing.assert_close(dataset.train.numeric.std(0, correction=0), torch.ones(7))
    raw = rows(100, seed=1)
    for name, transform in {"age": lambda x: x, "capital_gains": np.log1p}.items():
        values = transform(np.array([float(row[name]) for row in raw]))
        found = dataset.test.numeric[:, NUMERIC.index(name)].numpy()
        assert np.corrcoef(values, found)[0, 1] == pytest.approx(1, abs=1e-5)


def test_weights_are_the_instance_weights_over_their_mean(published: Path) -> None:
    dataset = load_full(folder=published)
    weights = np.array([float(row["instance_weight"]) for row in [*rows(300, seed=0), *rows(100, seed=1)]])
    np.testing.assert_allclose(dataset.test.weight.numpy(), weights[300:] / weights.mean(), rtol=1e-5)


@pytest.mark.parametrize("form", ["nominal", "full"])
def test_missing_values_have_id_zero(published: Path, form: str) -> None:
    dataset = {"nominal": load_nominal, "full": load_full}[form](folder=published)
    missing = torch.tensor([row["state_prev_res"] == "?" for row in rows(100, seed=1)])
    ids = dataset.test.categorical[:, column(dataset, "state_prev_res")]
    torch.testing.assert_close(ids == 0, missing)
    assert dataset.schema.categorical[column(dataset, "state_prev_res")].cardinality == 3


def test_values_that_only_test_rows_hold_have_id_zero(nominal: Path) -> None:
    dataset = load_nominal(folder=nominal)
    race = column(dataset, "race")
    assert (dataset.test.categorical[:, race] == 0).all()
    assert dataset.schema.categorical[race].cardinality == 3  # missing, a, b


def test_people_are_grouped_by_columns_whose_ids_have_names(nominal: Path) -> None:
    dataset = load("census-income", folder=nominal)
    assert dataset.user_groups == dataset.slices == ("sex", "race", "citizenship")
    for name in dataset.user_groups:
        place = dataset.schema.categorical_columns.index(name)
        assert len(dataset.values[name]) == dataset.schema.categorical[place].cardinality
        assert dataset.values[name][0] == "missing"


def test_codes_are_shifted_so_that_minus_one_is_missing_and_a_question_mark_too(nominal: Path) -> None:
    dataset = load_nominal(folder=nominal)
    with np.load(nominal / "census_nominal_codes.npz") as file:
        codes, names = file["codes"][90:].astype(int), file["columns"].tolist()
    sex, own = column(dataset, "sex"), column(dataset, "own_or_self")
    np.testing.assert_array_equal(dataset.test.categorical[:, own].numpy(), codes[:, names.index("own_or_self")] + 1)
    np.testing.assert_array_equal(dataset.test.categorical[:, sex].numpy(), codes[:, names.index("sex")].clip(0))


def test_the_nominal_form_says_that_it_is_not_comparable_and_has_no_numbers_and_no_weights(
    published: Path,
) -> None:
    dataset = load_nominal(folder=published)
    assert "not comparable" in dataset.notes[0]
    assert dataset.train.numeric.shape == (270, 0)
    assert (dataset.train.weight == 1).all()


@pytest.mark.parametrize("form", ["census-income", "census-income-full"])
def test_it_says_its_licence_its_source_and_how_to_train_on_it(published: Path, form: str) -> None:
    dataset = load(form, folder=published)
    assert (dataset.epochs, dataset.batch_size) == (3, 1024)
    assert dataset.licence == "CC BY 4.0"
    assert "10.24432/C5N30T" in dataset.source


def test_no_files_means_a_message_with_the_place_and_the_way_to_get_them(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"should lie in .*found notes.txt. Run `equipoise data fetch census-income`"):
        load_nominal(folder=tmp_path)
    with pytest.raises(DataError, match="found no such folder"):
        load_full(folder=tmp_path / "nowhere")


def test_the_environment_names_the_folder_above(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPOISE_DATA", str(published.parent))
    published.rename(published.parent / "census-income")
    assert sizes(load("census-income-full")) == [270, 30, 100]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 0.0}, "validation should be a share between 0 and 1, found 0.0"),
        ({"validation": 1.5}, "found 1.5"),
        ({"validation": "half"}, "found 'half'"),
        ({"seed": "first"}, "seed should be a whole number, found 'first'"),
    ],
)
def test_bad_options_are_refused(published: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load("census-income", folder=published, **options)


def changed(name: str, value: str) -> bytes:
    made = rows(50, seed=2)
    made[7][name] = value
    made[9][name] = value
    return text(made)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "42 columns, but is empty"),
        (b"\n", "42 columns, but is empty"),
        (text([{**row, "year": "95,"} for row in rows(5, seed=0)]), "found 43: use the file"),
        (b"1, 2, 3\n" + text(rows(5, seed=0)), "found 3: use the file"),
        (text(rows(5, seed=0)) + b"1, 2, 3\n", "every row should hold 42 columns, found 1 shorter"),
        (text(rows(5, seed=0)) + b"1" + b", 2" * 50 + b"\n", "should hold 42 columns in every row, but: "),
        (changed("age", "old"), "'age' should hold numbers from 0 up, found 2 other"),
        (changed("capital_gains", "-5"), "'capital_gains' should hold numbers from 0 up, found 2"),
        (changed("wage_per_hour", "nan"), "'wage_per_hour' should hold numbers from 0 up, found 2"),
        (changed("instance_weight", ""), "'instance_weight' should hold numbers from 0 up, found 2"),
        (changed("income_50k", "2"), "task 'income_50k' should be 0 or 1 in all 50 rows, found 2"),
        (changed("income_50k", ""), "task 'income_50k' .* found 2"),
        (changed("marital_stat", "?"), "task 'never_married' .* found 2"),
        (changed("education", ""), "task 'bachelor_plus' .* found 2"),
    ],
)  # fmt: skip
def test_bad_published_files_are_refused(published: Path, content: bytes, message: str) -> None:
    write(published / TEST, content)
    with pytest.raises(DataError, match=message) as caught:
        load_full(folder=published)
    assert TEST in str(caught.value)


@pytest.mark.parametrize("keep", [-50, 40, 5])
def test_a_truncated_file_is_refused(published: Path, keep: int) -> None:
    path = published / TEST
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"complete gzip file, but cannot be unpacked .* delete it and run"):
        load_full(folder=published)


def test_a_file_that_is_no_gzip_is_refused(published: Path) -> None:
    (published / TEST).write_bytes(text(rows(5, seed=0)))
    with pytest.raises(DataError, match="complete gzip file"):
        load_full(folder=published)


def test_a_nominal_file_without_a_column_is_refused(nominal: Path) -> None:
    with np.load(nominal / "census_nominal_codes.npz") as file:
        codes, columns = file["codes"], file["columns"]
    save_arrays(nominal, codes=codes[:, 1:], columns=columns[1:])
    with pytest.raises(DataError, match=r"should hold the columns .* found no class_worker"):
        load_nominal(folder=nominal)


def test_a_nominal_file_without_a_label_is_refused(nominal: Path) -> None:
    save_arrays(nominal, never_married=None)
    with pytest.raises(DataError, match=r"should hold the arrays .* found no never_married"):
        load_nominal(folder=nominal)


@pytest.mark.parametrize("value", [2, np.nan])
def test_a_nominal_label_outside_zero_and_one_is_refused(nominal: Path, value: float) -> None:
    save_arrays(nominal, bachelor_plus=np.array([value] * 3 + [0] * 97, dtype=np.float32))
    with pytest.raises(DataError, match="'bachelor_plus' should be 0 or 1 in all 100 rows, found 3"):
        load_nominal(folder=nominal)


@pytest.mark.parametrize("code", [3, -2])
def test_a_code_outside_the_vocabulary_is_refused(nominal: Path, code: int) -> None:
    with np.load(nominal / "census_nominal_codes.npz") as file:
        codes, columns = file["codes"], file["columns"].tolist()
    codes[4, columns.index("race")] = code
    save_arrays(nominal, codes=codes)
    with pytest.raises(DataError, match=r"column 'race' should hold codes from -1 \(missing\) to 2, found 1"):
        load_nominal(folder=nominal)


@pytest.mark.parametrize("name", ["census_nominal_codes.npz", "census_nominal_vocab.json"])
def test_a_truncated_nominal_file_is_refused(nominal: Path, name: str) -> None:
    path = nominal / name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"cannot be read .* copy both again"):
        load_nominal(folder=nominal)


# ---- the download


def archive(members: dict[str, bytes]) -> bytes:
    """A zip file that holds census.tar.gz, as UCI publishes it."""
    tar_bytes, zip_bytes = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tar_bytes, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with zipfile.ZipFile(zip_bytes, "w") as outer:
        outer.writestr("census.tar.gz", tar_bytes.getvalue())
    return zip_bytes.getvalue()


class Server:
    """Answers every path with ``body``."""

    def __init__(self) -> None:
        self.body, self.requests = b"", 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests += 1
                self.send_response(200)
                self.send_header("Content-Length", str(len(outer.body)))
                self.end_headers()
                self.wfile.write(outer.body)

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/census.zip"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serves the small files; they stand in for the published ones."""
    train, test = text(rows(300, seed=0)), text(rows(100, seed=1))
    monkeypatch.setattr(census_income, "_PUBLISHED_ROWS", {TRAIN: 300, TEST: 100})
    monkeypatch.setattr(census_income, "_TEST_SHA256", hashlib.sha256(test).hexdigest())
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    served = Server()
    served.body = archive({"census-income.names": b"words", "census-income.data": train, "census-income.test": test})
    thread = threading.Thread(target=served.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    served.server.shutdown()
    thread.join()
    served.server.server_close()


def test_fetched_files_load(server: Server, tmp_path: Path) -> None:
    place = fetch(folder=tmp_path / "new", url=server.url)
    assert sorted(path.name for path in place.iterdir()) == [TRAIN, TEST]
    assert sizes(load_full(folder=place)) == sizes(load_nominal(folder=place)) == [270, 30, 100]


def test_files_that_are_there_are_not_fetched_again(server: Server, published: Path) -> None:
    fetch(folder=published, url=server.url)
    assert server.requests == 0


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"census-income.data": text(rows(300, seed=0))}, f"missing: {TEST}"),
        ({"census-income.data": text(rows(299, seed=0)), "census-income.test": text(rows(100, seed=1))},
         f"{TRAIN} should hold 300 rows, found 299"),
        ({"census-income.data": text(rows(300, seed=0)), "census-income.test": text(rows(100, seed=2))},
         "should unpack to SHA-256"),
        ({"census-income.data": b"1, 2\n", "census-income.test": b""}, "42 columns .* found 2"),
    ],
)  # fmt: skip
def test_what_is_not_the_published_data_set_is_refused_and_nothing_is_written(
    server: Server, tmp_path: Path, members: dict[str, bytes], message: str
) -> None:
    server.body = archive(members)
    with pytest.raises(DataError, match=message):
        fetch(folder=tmp_path / "new", url=server.url)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("body", [b"<html>we have moved</html>", b""])
def test_a_page_instead_of_an_archive_is_refused(server: Server, tmp_path: Path, body: bytes) -> None:
    server.body = body
    with pytest.raises(DataError, match=r"should be a zip file that holds census.tar.gz"):
        fetch(folder=tmp_path / "new", url=server.url)


@pytest.mark.usefixtures("server")
def test_without_a_network_the_message_says_what_to_do(tmp_path: Path) -> None:
    closed = f"http://127.0.0.1:{free_port()}/census.zip"
    with pytest.raises(DataError, match=rf"Could not download .* put {TRAIN} and {TEST} into .*new by hand"):
        fetch(folder=tmp_path / "new", url=closed)
    assert not (tmp_path / "new").exists()


def free_port() -> int:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        return server.server_port


# ---- the real files


@real
def test_the_nominal_file_has_the_published_rows_and_rates() -> None:
    dataset = load("census-income")
    assert sizes(dataset) == [179_571, 19_952, 99_762]
    labels = torch.cat([dataset.train.labels, dataset.validation.labels, dataset.test.labels])
    torch.testing.assert_close(labels.mean(0), torch.tensor([0.0621, 0.433, 0.148]), atol=5e-4, rtol=0)


@real
def test_both_forms_hold_the_same_published_test_rows() -> None:
    nominal, full = load("census-income"), load("census-income-full")
    parts = [full.train, full.validation, full.test]
    torch.testing.assert_close(torch.cat([part.labels for part in parts]).sum(0), nominal.test.labels.sum(0))
    ids = torch.cat([part.categorical for part in parts])
    for i, feature in enumerate(full.schema.categorical):
        counts = [side[:, i].bincount(minlength=60).sort().values for side in (ids, nominal.test.categorical)]
        torch.testing.assert_close(*counts, msg=feature.name)


@real
def test_no_feature_that_is_left_tells_a_label() -> None:
    # entropy of each label given one feature, over the label's entropy: the leaks have 0.00 to 0.56
    dataset = load("census-income")
    labels = dataset.train.labels.double()
    base = labels.mean(0)
    entropy = -(base * base.log() + (1 - base) * (1 - base).log())
    for i, feature in enumerate(dataset.schema.categorical):
        ids = dataset.train.categorical[:, i].long()
        counts = ids.bincount(minlength=feature.cardinality).clamp_min(1).double()
        positive = torch.zeros(feature.cardinality, 3, dtype=torch.float64).index_add_(0, ids, labels)
        p = positive / counts[:, None]
        given = -(counts[:, None] * (p.xlogy(p) + (1 - p).xlogy(1 - p))).sum(0) / len(ids)
        assert (given / entropy > 0.6).all(), feature.name


@real
def test_the_real_test_file_is_the_one_that_fetch_expects() -> None:
    assert ROOT is not None
    content = gzip.decompress((Path(ROOT) / "census-income" / TEST).read_bytes())
    census_income._verify(TEST, content, "here")


def test_a_folder_that_is_no_path_is_refused() -> None:
    with pytest.raises(DataError, match="folder should be a path, found 5"):
        load("census-income", folder=5)
