import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.errors import SettingError
from equipoise.settings import (
    Settings,
    TrainingSettings,
    about,
    command_words,
    parse_pairs,
    settings_table,
    split_methods,
)
from equipoise.training import METHODS


@dataclass
class Suited:
    epochs: int = 3
    batch_size: int = 1024


def test_epochs_and_batch_size_come_from_the_data_set_where_nothing_is_stated() -> None:
    assert Settings.of().suited_to(Suited()).steps_per == (3, 1024)
    assert Settings.of(epochs=1).suited_to(Suited()).steps_per == (1, 1024)
    with pytest.raises(SettingError, match="Expected epochs and batch_size, found none"):
        _ = Settings.of(epochs=1).steps_per


def test_the_methods_compared_by_default_exist() -> None:
    assert set(Settings.of().methods) <= set(METHODS)


def test_every_setting_is_described_and_belongs_to_a_command() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
        assert about(name).commands, name


def test_the_page_of_settings_is_the_table_that_the_settings_make() -> None:
    page = (Path(__file__).parents[1] / "docs" / "settings.md").read_text()
    assert settings_table() in page, "write the table of equipoise.settings.settings_table() into docs/settings.md"


def test_the_words_of_a_command_state_the_settings_that_they_were_made_of() -> None:
    stated = {
        "data": "funnel", "data_options": {"rows": 3000}, "model_options": {"bottom": [8, 4]}, "seeds": 3, "tune": True,
        "grid": [0.01, 0.1], "methods": ["equal", "multibalance:beta=0.1"], "rates": {"multibalance:beta=0.1": 0.01},
    }  # fmt: skip
    words = command_words("compare", stated)
    assert parse_pairs([words[words.index("--model-option") + 1]], "") == stated["model_options"]
    assert split_methods(words[words.index("--methods") + 1]) == stated["methods"]
    assert "--seed" not in command_words("compare", {"seed": 3})


def test_a_misspelt_setting_is_told_which_one_may_be_meant() -> None:
    with pytest.raises(SettingError, match=r"modell: there is no such setting; .*; did you mean 'model'\?"):
        Settings.of(modell="mmoe")
    with pytest.raises(SettingError) as found:
        Settings.of(zzz=1)
    assert "did you mean" not in str(found.value)


def test_an_identity_holds_what_decides_the_numbers_and_nothing_else() -> None:
    before = TrainingSettings.of()
    for name, other in {"lr": 0.1, "model_options": {"bottom": [8]}, "schedule": "constant", "seed": 4}.items():
        assert TrainingSettings.of(**{name: other}).identity() != before.identity(), name
    for name, other in {"non_finite": "skip-task", "checkpoint_every": 5, "device": "cuda"}.items():
        assert TrainingSettings.of(**{name: other}).identity() == before.identity(), name


def test_settings_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(
        "data: funnel\nseeds: 5\nepochs: 7\nmethods: [equal]\n"
        "data_options: {rows: 3000, conflict: 0.5}\nloss_scale:\n  like: 23\nrates:\n  equal: 1e-2\n"
    )
    plan = Settings.of(file, epochs=2)
    assert (plan.data, plan.seeds, plan.epochs, plan.batch_size) == ("funnel", 5, 2, None)
    assert plan.data_options == {"rows": 3000, "conflict": 0.5}
    assert plan.loss_scale == {"like": 23}
    assert plan.rates == {"equal": 0.01}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("epochs: two", "epochs: input should be a valid integer; found 'two'"),
        ("epochs: 1.5", "epochs: .* found 1.5"),
        ("seeds: 0", "seeds: .*greater than or equal to 1; found 0"),
        ("seeds: true", "seeds: .* found True"),
        ("methods: equal", "methods: .*valid list; found 'equal'"),
        ("methods: []", "methods: .* found "),
        ("learning_rate: 0.1", "learning_rate: there is no such setting; there are model, model_options"),
        ("loss_scale: {like: much}", r"loss_scale.like: .* found 'much'"),
        ("rates: {equal: -1.0}", r"rates.equal: .*greater than 0; found -1.0"),
        (
            "model_options: {bottom: [0.5]}",
            "model_options.bottom: should be a number, a word, .* or a list of whole numbers; found",
        ),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_expected_and_found(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(line)
    with pytest.raises(SettingError, match=message) as caught:
        Settings.of(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("table", ["mails.csv", "mails.csv.gz", "mails.parquet"])
def test_a_table_in_place_of_settings_is_told_how_to_begin(table: str) -> None:
    with pytest.raises(SettingError, match=rf"found the table .*`equipoise init {re.escape(table)} > mails.yaml`"):
        Settings.of(Path(table))


def test_settings_may_be_named_after_their_table(tmp_path: Path) -> None:
    file = tmp_path / "mails.csv.yaml"
    file.write_text("seeds: 3")
    assert Settings.of(file).seeds == 3


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="cannot be read: No such file"):
        Settings.of(tmp_path / "none.yaml")
    (tmp_path / "ranker.yaml").write_text("seeds: 3")
    with pytest.raises(SettingError, match=r"did you mean 'ranker.yaml'\?$"):
        Settings.of(tmp_path / "ranker.yml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("epochs: [1")
    with pytest.raises(SettingError, match=r"Expected YAML in .*found a mistake"):
        Settings.of(broken)


def test_pairs_of_the_command_line() -> None:
    assert parse_pairs(["multibalance:beta=0.1=0.01", "equal=1e-3"], "--rate") == {
        "multibalance:beta=0.1": 0.01,
        "equal": 1e-3,
    }
    assert parse_pairs(["bottom=128-64", "tower=16"], "--model-option") == {"bottom": [128, 64], "tower": 16}
    for wrong in ("like", "=3"):
        with pytest.raises(SettingError, match=f"--loss-scale: expected KEY=VALUE, found '{wrong}'"):
            parse_pairs([wrong], "--loss-scale")


def test_methods_with_options_are_not_torn_apart() -> None:
    text = "equal, multibalance:beta=0.1,direction=gram,multibalance:beta=1"
    assert split_methods(text) == ["equal", "multibalance:beta=0.1,direction=gram", "multibalance:beta=1"]


@pytest.mark.parametrize("text", ["3e-2", "3E-2", "3.0e-2", "+.3e-1", "0.03"])
def test_numbers_are_those_that_python_reads(tmp_path: Path, text: str) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(f"grid: [{text}]")
    assert Settings.of(file).grid == [0.03]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- equal\n- pub", "one `name: value` per line; found list"),
        ("3: 4", "one `name: value` per line; found dict"),
        ("seeds: 1\nseeds: 2", "a name occurs twice"),
        ("a: &a [*a]\n" + "[" * 3000, "found a mistake"),
        ("\x00", "found a mistake"),
    ],
)
def test_what_is_no_list_of_settings_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(text)
    with pytest.raises(SettingError, match=message):
        Settings.of(file)


def test_a_config_cannot_run_code(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    file = tmp_path / "plan.yaml"
    for tag in ("!!python/object/apply:os.mkdir", "!!python/object/new:os.mkdir"):
        file.write_text(f"data: {tag} ['{ran}']")
        with pytest.raises(SettingError, match="could not determine a constructor"):
            Settings.of(file)
    assert not ran.exists()


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    st.one_of(
        st.text(),
        st.binary().map(lambda raw: raw.decode("latin-1")),
        st.dictionaries(
            st.sampled_from([*Settings.model_fields, "nothing"]),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
                max_leaves=5,
            ),
            max_size=4,
        ).map(lambda found: yaml.safe_dump(found, allow_unicode=True)),
    )
)
def test_whatever_a_file_holds_is_a_plan_or_one_clear_error(tmp_path_factory, text: str) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    with contextlib.suppress(SettingError):
        Settings.of(file)
