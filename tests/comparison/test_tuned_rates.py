"""Tuned rates come from files that tuning wrote; using them for another recipe is reported."""

from collections import Counter
from pathlib import Path

import pytest

from equipoise.comparison import tuned_rates
from equipoise.comparison.result_folder import ResultFolder
from equipoise.comparison.tuned_rates import DEFAULT_RATE, Choice, Rate, chosen_rate, source_commit, tuned_choices
from equipoise.data import DATASETS
from equipoise.errors import SettingError
from equipoise.settings import Settings

JOURNEY = {
    "data": "complete-journey", "data_options": {}, "model": "shared-bottom", "model_options": {},
    "schedule": "linear", "epochs": 2, "batch_size": 2048, "loss_scale": {},
}  # fmt: skip


def choice(method: str, lr: float, **recipe: object) -> Choice:
    chosen = {method: Rate(lr, 1.0)}
    return Choice(recipe=JOURNEY | recipe, grid=[lr], decay_grid=[0.0, 1.0], seeds=[1000], chosen=chosen, command="")


def test_the_files_that_come_with_equipoise_can_be_read_and_say_what_chose_them() -> None:
    assert tuned_choices()
    for found in tuned_choices():
        assert found.recipe.keys() >= JOURNEY.keys()
        assert found.command.startswith("equipoise compare")
        assert found.commit
        for rate in found.chosen.values():
            assert min(found.grid) <= rate.lr <= max(found.grid)
            assert min(found.decay_grid) <= rate.table_decay <= max(found.decay_grid)
            if found.trials is None:
                assert rate.lr in found.grid
                assert rate.table_decay in found.decay_grid


def test_no_recipe_is_tuned_twice_for_a_method() -> None:
    recipes = Counter((str(found.recipe), method) for found in tuned_choices() for method in found.chosen)
    assert not [recipe for recipe, times in recipes.items() if times > 1]


def test_a_rate_of_the_same_recipe_is_taken_without_doubt() -> None:
    found = chosen_rate(JOURNEY | {"seeds": 3, "methods": ["equal"]}, "equal")
    assert found.rate.lr == 3e-2
    assert found.doubt == ""


@pytest.mark.parametrize(
    ("change", "doubt"),
    [
        ({"epochs": 3}, "(here 3)"),
        ({"batch_size": 4096, "schedule": "constant"}, "schedule linear (here constant), batch_size 2048 (here 4096)"),
        ({"data_options": {"rows": 3000}}, "data_options {} (here {'rows': 3000})"),
        ({"loss_scale": {"coupon": 23.0}}, "loss_scale"),
    ],
)
def test_a_rate_of_another_recipe_is_taken_with_a_word(change: dict, doubt: str) -> None:
    found = chosen_rate(JOURNEY | change, "equal")
    assert found.rate.lr == 3e-2
    assert doubt in found.doubt


def test_the_nearest_recipe_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    known = (choice("equal", 0.1, epochs=1, batch_size=64), choice("equal", 0.2, epochs=1), choice("pub", 0.3))
    monkeypatch.setattr(tuned_rates, "tuned_choices", lambda: known)
    assert chosen_rate(JOURNEY, "equal").rate == Rate(0.2, 1.0)
    assert chosen_rate(JOURNEY, "pub:form=literal").rate == Rate(0.3, 1.0)


@pytest.mark.parametrize("change", [{"data": "own"}, {"model": "ple"}])
def test_a_method_that_was_never_tuned_takes_the_default_with_a_word(change: dict) -> None:
    assert chosen_rate(JOURNEY | change, "equal") == (DEFAULT_RATE, "never tuned on this data set, model and optimizer")
    assert chosen_rate(JOURNEY, "no-such-method").doubt


def test_a_rate_that_was_tuned_without_table_decay_is_taken_with_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    without = choice("equal", 0.1).model_copy(update={"decay_grid": [0.0], "chosen": {"equal": Rate(0.1)}})
    monkeypatch.setattr(tuned_rates, "tuned_choices", lambda: (without,))
    assert chosen_rate(JOURNEY, "equal") == (Rate(0.1), "tuned without a decay of the embedding tables")
    both = chosen_rate(JOURNEY | {"epochs": 1}, "equal").doubt
    assert both == "tuned with epochs 2 (here 1); tuned without a decay of the embedding tables"


def write_choice(folder: Path, found: Choice) -> None:
    ResultFolder(folder).write_tuned(found)


def test_a_named_folder_comes_before_what_comes_with_equipoise(tmp_path: Path) -> None:
    write_choice(tmp_path, choice("equal", 0.7))
    assert chosen_rate(JOURNEY | {"rates_from": str(tmp_path)}, "equal") == (Rate(0.7, 1.0), "")
    assert chosen_rate(JOURNEY | {"rates_from": str(tmp_path)}, "pub") == chosen_rate(JOURNEY, "pub")


def test_rates_of_another_data_set_in_a_named_folder_are_taken_with_a_word(tmp_path: Path) -> None:
    write_choice(tmp_path, choice("equal", 0.7, data={"name": "mails", "files": "mails.csv"}))
    found = chosen_rate(JOURNEY | {"rates_from": str(tmp_path)}, "equal")
    assert found == (Rate(0.7, 1.0), "tuned with data mails (here complete-journey)")


def test_a_named_folder_without_a_tuning_or_with_a_damaged_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=f"with a tuned.json in it, found none in {tmp_path}: name another"):
        chosen_rate(JOURNEY | {"rates_from": str(tmp_path)}, "equal")
    (tmp_path / "tuned.json").write_text("{}")
    with pytest.raises(SettingError, match=r"tuned.json is damaged: tune again into another folder"):
        chosen_rate(JOURNEY | {"rates_from": str(tmp_path)}, "equal")


def test_a_choice_comes_back_from_its_file() -> None:
    settings = JOURNEY | {"grid": [0.1], "decay_grid": [0.0, 1.0]}
    found = Choice.of(settings, {"equal": Rate(0.1, 1.0)}, seeds=[1000], command="equipoise compare --tune")
    assert Choice.model_validate_json(found.model_dump_json()) == found
    assert found.recipe == found.recipe | JOURNEY


def test_the_commit_is_that_of_the_checkout() -> None:
    assert len(source_commit()) in {0, 40}


def test_the_default_methods_are_tuned_under_the_default_recipe() -> None:
    settings = Settings.of()
    settings = settings.suited_to(DATASETS[settings.data])
    for method in settings.methods:
        assert chosen_rate(settings.model_dump(), method).doubt == "", method
