"""Study files: what they plan, and every fault named before anything is trained."""

from __future__ import annotations

import pytest

from wbc_keras.config import load_config
from wbc_keras.errors import ConfigError
from wbc_keras.studies.plan import load_study

BASE = """\
base:
  data: {source: cells}
  model: {weights: none, attention: none}
  loss: {name: cross_entropy, class_weight: none}
  train: {head_epochs: 0, freeze_batch_norm: false}
"""


@pytest.fixture
def load(tmp_path):
    def call(text, base=BASE, **options):
        path = tmp_path / "study.yaml"
        path.write_text(base + text)
        return load_study(path, **options)

    return call


@pytest.fixture
def refuse(load):
    """Load, expect one line that holds all words, and return it."""

    def call(text, *words, **options):
        with pytest.raises(ConfigError) as caught:
            load(text, **options)
        message = str(caught.value)
        assert "\n" not in message
        for word in words:
            assert word in message
        return message

    return call


def test_each_setting_on_every_fold_before_the_next_seed(load):
    study = load("settings: {plain: , cbam: {model.attention: cbam}}\nfolds: 2\nseeds: [0, 3]\n")
    cells = list(study.cells())
    assert [cell.name for cell in cells] == [
        "plain/fold1_seed0",
        "cbam/fold1_seed0",
        "plain/fold2_seed0",
        "cbam/fold2_seed0",
        "plain/fold1_seed3",
        "cbam/fold1_seed3",
        "plain/fold2_seed3",
        "cbam/fold2_seed3",
    ]
    last = cells[-1].config
    assert (last.model.attention, last.split.fold, last.train.seed) == ("cbam", "2 of 2", 3)
    assert cells[0].config.model.attention == "none"
    assert cells[0].config.split.seed == last.split.seed  # the same folds for every seed


def test_without_folds_the_split_of_the_base_holds(load):
    (cell,) = load("settings: {plain: }\nset: {split.test: 0.3}\n").cells()
    assert cell.name == "plain/seed0"
    assert cell.config.split.fold is None
    assert cell.config.split.test == 0.3


def test_grid_holds_every_combination_the_first_levels_first(load):
    study = load(
        "grid:\n"
        "  model.attention: [none, cbam]\n"
        "  loss:\n"
        "    plain:\n"
        "    focal: {loss.name: focal, loss.gamma: 3}\n"
    )
    names = [setting.name for setting in study.settings]
    assert names == ["none-plain", "none-focal", "cbam-plain", "cbam-focal"]
    assert study.components == {"model.attention": ("none", "cbam"), "loss": ("plain", "focal")}
    both = study.settings[-1]
    assert both.levels == {"model.attention": "cbam", "loss": "focal"}
    assert (both.config.model.attention, both.config.loss.gamma) == ("cbam", 3.0)


def test_base_is_a_config_beside_the_study_file(load, tmp_path):
    (tmp_path / "recipe.yaml").write_text("data: {source: here}\ntrain: {epochs: 7}\n")
    study = load("base: recipe.yaml\nsettings: {plain: , slow: {train.epochs: 9}}\n", base="")
    assert [one.config.train.epochs for one in study.settings] == [7, 9]


def test_own_keys_win_over_set_and_data_over_the_file(load):
    study = load(
        "set: {train.epochs: 4, loss.gamma: 1.5}\nsettings: {a: , b: {train.epochs: 5}}\n",
        overrides=["train.epochs=3"],
        data="elsewhere",
    )
    assert [one.config.train.epochs for one in study.settings] == [3, 5]
    assert {one.config.loss.gamma for one in study.settings} == {1.5}
    assert {one.config.data.source for one in study.settings} == {"elsewhere"}


def test_the_runs_configs_are_ordinary_ones(load, tmp_path):
    from wbc_keras.config import dump_config

    for cell in load("settings: {plain: }\nfolds: 3\n").cells():
        (tmp_path / "config.yaml").write_text(dump_config(cell.config))
        assert load_config(tmp_path / "config.yaml") == cell.config


def test_the_thesis_study_is_six_settings_on_three_folds(root):
    study = load_study(root / "configs" / "study_thesis.yaml", data="cells")
    assert len(list(study.cells())) == 18
    assert study.settings[0].config.loss.class_weight == "none"
    assert study.settings[-1].config.model.attention == "cbam"


def test_the_second_study_is_tested_on_the_same_cells(root):
    studies = [
        load_study(root / "configs" / f"study_{name}.yaml", data="cells")
        for name in ("thesis", "beyond")
    ]
    first, second = (
        [(one.config.split, one.config.data.exclude_labels) for one in study.cells()]
        for study in studies
    )
    assert len(first) == 6 * 3
    assert len(second) == 16 * 3
    # Each study trains all settings of a fold before the next.
    assert first[::6] == second[::16]
    assert len(set(map(str, second))) == 3


# Bad input


def test_all_faults_are_named_at_once(refuse):
    refuse(
        "settings: {a: {model.attention: sum}, b: {loss.gama: 2}, c: {train.epochs: many}}\n",
        "a: model.attention: expected cbam | se | none",
        "b: loss.gama: unknown setting (did you mean loss.gamma?)",
        "c: train.epochs: expected a whole number",
    )


def test_unknown_key_of_the_study(refuse):
    refuse("setings: {a: }\n", "setings: unknown setting (did you mean settings?)")


def test_impossible_pair_in_the_grid(refuse):
    message = refuse(
        "grid: {model.weights: [none, imagenet], start: {rest: , head: {train.head_epochs: 1}}}\n",
        "none-head: train.head_epochs trains a head on a frozen backbone, which needs weights",
    )
    assert "imagenet-head" not in message


def test_component_that_another_sets_too(refuse):
    refuse(
        "grid: {loss.name: [cross_entropy, focal], b: {x: , y: {loss.name: focal}}}\n",
        "loss.name and b both set loss.name",
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("{a: , b: {}}", "a and b are the same run twice"),
        ("{a: , b: {loss.class_weight: none}}", "a and b are the same run twice"),
        # gamma is of focal loss, and no attention has a kernel.
        ("{a: , b: {loss.gamma: 3, model.kernel_size: 5}}", "a and b are the same run twice"),
        ("{a: , b: {loss.weights_after: 0.5, model.attention_at: stages}}", "the same run twice"),
        ("{a: {loss.name: focal}, b: {loss.name: focal, loss.gamma: 3}}", None),
    ],
)
def test_the_same_run_twice(load, refuse, settings, words):
    if words is None:
        assert len(load(f"settings: {settings}\n").settings) == 2
    else:
        refuse(f"settings: {settings}\n", words, "keep one")


def test_grid_in_which_a_component_does_nothing_for_a_level_of_another(refuse):
    refuse(
        "grid: {loss.name: [cross_entropy, focal], loss.gamma: [1, 2]}\n",
        "cross_entropy-1 and cross_entropy-2 are the same run twice",
    )


def test_value_twice_in_a_grid(refuse):
    refuse("grid: {loss.gamma: [1, 1, 2]}\n", "grid.loss.gamma: holds a value twice")


def test_seed_twice(refuse):
    refuse("settings: {a: }\nseeds: [1, 1]\n", "seeds: expected different seeds")


def test_name_that_is_no_folder_is_told_once(refuse):
    message = refuse(
        "name: a/b\nsettings: {a: , b: {loss.gama: 1}}\n", "name: becomes", "loss.gama"
    )
    assert message.count("becomes a folder") == 1


def test_no_seeds(refuse):
    refuse("settings: {a: }\nseeds: []\n", "seeds: expected different seeds, at least one")


def test_one_fold(refuse):
    refuse("settings: {a: }\nfolds: 1\n", "folds: expected at least 2")


def test_neither_settings_nor_grid(refuse):
    refuse("", "settings or grid: expected one of them. Received: neither")


def test_both_settings_and_grid(refuse):
    refuse("settings: {a: }\ngrid: {loss.gamma: [1, 2]}\n", "Received: both")


@pytest.mark.parametrize(
    "key", ["split.fold: 1 of 3", "train.seed: 1", "name: x", "data.source: y"]
)
def test_keys_that_are_the_studys_own(refuse, key):
    refuse(f"settings: {{a: , b: {{{key}}}}}\n", key.split(":")[0], "is the study's own")


@pytest.mark.parametrize("key", ["split.seed: 3", "data.exclude_labels: [blast]"])
def test_settings_tested_on_other_cells(refuse, key):
    refuse(f"settings: {{a: , b: {{{key}}}}}\n", "settings.b: changes which cells are tested")


def test_another_image_size_is_tested_on_the_same_cells(load):
    assert len(load("settings: {a: , b: {data.image_size: [32, 32]}}\n").settings) == 2


@pytest.mark.parametrize("name", ["a/b", "../a", "true", "1", "''"])
def test_names_that_are_no_folder(refuse, name):
    refuse(f"settings: {{{name}: }}\n", "becomes a folder's name")


def test_grid_with_one_level(refuse):
    refuse("grid: {loss.gamma: [1]}\n", "grid.loss.gamma: expected two levels or more")


def test_setting_that_is_no_section(refuse):
    refuse("settings: {a: cbam}\n", "settings.a: expected a section of KEY: value", "'cbam'")


def test_list_of_lists_asks_for_names(refuse):
    refuse("grid: {data.image_size: [[32, 32], [64, 64]]}\n", "becomes a folder's name")


def test_no_cells_named(refuse, tmp_path):
    with pytest.raises(ConfigError, match="no pictures given"):
        load_study(_write(tmp_path, "settings: {a: }\n"))


def test_base_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read"):
        load_study(_write(tmp_path, "base: nowhere.yaml\nsettings: {a: }\n"))


def test_fault_of_the_base_is_told_once(tmp_path):
    text = "base: {model: {attention: sum}}\nsettings: {a: , b: }\n"
    with pytest.raises(ConfigError) as caught:
        load_study(_write(tmp_path, text), data="cells")
    assert str(caught.value).count("model.attention") == 1


def _write(folder, text):
    path = folder / "other.yaml"
    path.write_text(text)
    return path
