from __future__ import annotations

import dataclasses
import itertools
import typing
from pathlib import Path

import pytest
import yaml

from wbc_keras.config import Config, DataConfig, RoiConfig, TrainConfig, dump_config, load_config
from wbc_keras.errors import ConfigError

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
OTHER_THAN_DEFAULT = {
    "name": "jhu-1",
    "data.source": "cells",
    "data.label_column": "fine_label",
    "data.exclude_labels": "[platelet, smudge_cell]",
    "data.bad_images": "skip",
    "data.near_duplicates": "ignore",
    "data.image_size": "[64, 80]",
    "data.synthetic.cells": "160",
    "data.synthetic.image_size": "96",
    "data.synthetic.imbalance": "4.5",
    "data.synthetic.patients": "7",
    "data.synthetic.seed": "3",
    "split.validation": "0.15",
    "split.test": "0.25",
    "split.fold": "2 of 5",
    "split.seed": "4",
    "roi.mode": "center",
    "roi.margin": "0.5",
    "augment.flip": "false",
    "augment.quarter_turns": "false",
    "augment.rotation": "0",
    "augment.shift": "0.1",
    "augment.zoom": "0.2",
    "augment.brightness": "0.3",
    "augment.contrast": "0.4",
    "augment.hue": "12",
    "augment.saturation": "0.5",
    "augment.stain": "0.05",
    "augment.sharpness": "0.8",
    "augment.tint": "0.35",
    "augment.mixup": "0.2",
    "augment.cutmix": "1",
    "model.backbone": "resnet50",
    "model.attention": "none",
    "model.attention_at": "stages",
    "model.reduction_ratio": "8",
    "model.kernel_size": "5",
    "model.dropout": "0.5",
    "model.stochastic_depth": "0.1",
    "model.symmetries": "4",
    "model.weights": "weights.h5",
    "loss.name": "cross_entropy",
    "loss.gamma": "1.5",
    "loss.alpha": "[0.25, 1, 2]",
    "loss.logit_adjustment": "1",
    "loss.label_smoothing": "0.1",
    "loss.class_weight": "effective_number",
    "loss.cap": "5",
    "loss.beta": "0.99",
    "loss.weights_after": "0.5",
    "train.seed": "5",
    "train.batch_size": "16",
    "train.sampling_balance": "0.5",
    "train.head_epochs": "1",
    "train.epochs": "2",
    "train.head_learning_rate": "0.01",
    "train.learning_rate": "0.002",
    "train.warmup_epochs": "0.5",
    "train.weight_decay": "0",
    "train.ema_decay": "0.999",
    "train.freeze_batch_norm": "false",
    "train.patience": "3",
    "train.precision": "mixed_float16",
    "train.jit_compile": "true",
    "train.devices": "2",
    "train.hosts_timeout": "60",
}


def _flat(section, prefix=""):
    """Return {dotted key: value} of a config."""
    flat = {}
    for item in dataclasses.fields(section):
        value = getattr(section, item.name)
        if dataclasses.is_dataclass(value):
            flat.update(_flat(value, f"{prefix}{item.name}."))
        else:
            flat[prefix + item.name] = value
    return flat


def _write(folder, text):
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def _faults(*overrides):
    """Return the message of a config that is refused."""
    with pytest.raises(ConfigError) as error:
        load_config(overrides=overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


# Reading


def test_no_file_gives_the_defaults():
    assert load_config() == Config()


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n"])
def test_empty_file_gives_the_defaults(tmp_path, text):
    assert load_config(_write(tmp_path, text)) == Config()


def test_file_states_only_what_differs(tmp_path):
    path = _write(tmp_path, "roi:\n  mode: none\ndata:\n  image_size: [64, 80]\n")
    assert load_config(path) == Config(
        roi=RoiConfig(mode="none"), data=DataConfig(image_size=(64, 80))
    )


def test_section_without_a_line_gives_its_defaults(tmp_path):
    # A section whose lines are all commented out is null in YAML.
    assert load_config(_write(tmp_path, "train:\n  # epochs: 3\n")) == Config()


def test_sample_above_names_every_setting_with_another_value():
    # So that the round trips below cover settings that are added later.
    default, other = _flat(Config()), _flat(load_config(overrides=_overrides()))
    assert other.keys() == default.keys() == OTHER_THAN_DEFAULT.keys()
    assert not [key for key in default if default[key] == other[key]]


def _overrides():
    return [f"{key}={value}" for key, value in OTHER_THAN_DEFAULT.items()]


def test_overrides_and_file_read_the_same(tmp_path):
    nested: dict = {}
    for key, value in OTHER_THAN_DEFAULT.items():
        *parents, last = key.split(".")
        section = nested
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = yaml.safe_load(value)
    path = _write(tmp_path, yaml.safe_dump(nested))
    assert load_config(path) == load_config(overrides=_overrides())


@pytest.mark.parametrize("overrides", [[], _overrides()], ids=["defaults", "others"])
def test_dump_reads_back_equal(tmp_path, overrides):
    config = load_config(overrides=overrides)
    assert load_config(_write(tmp_path, dump_config(config))) == config


def test_dump_is_plain_yaml_with_every_default():
    values = yaml.safe_load(dump_config(Config()))
    assert values["data"]["image_size"] == [96, 96]
    assert values["train"]["batch_size"] == 32
    assert list(values) == [item.name for item in dataclasses.fields(Config)]


def test_config_is_frozen_and_hashable():
    config = load_config(overrides=_overrides())
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.train.epochs = 3
    assert hash(config) == hash(load_config(overrides=_overrides()))


# Types


@pytest.mark.parametrize("text", ["1e-3", "0.001", "1.0e-3", "1.E-3"])
def test_number_in_any_notation(text):
    assert load_config(overrides=[f"train.learning_rate={text}"]).train.learning_rate == 1e-3


@pytest.mark.parametrize("text", ["5", "5.0"])
def test_whole_number_is_a_number(text):
    rotation = load_config(overrides=[f"augment.rotation={text}"]).augment.rotation
    assert rotation == 5.0
    assert isinstance(rotation, float)


@pytest.mark.parametrize(
    ("text", "value"),
    [("auto", "auto"), ("true", True), ("false", False)],
)
def test_jit_compile_takes_auto_or_a_truth_value(text, value):
    chosen = load_config(overrides=[f"train.jit_compile={text}"]).train.jit_compile
    assert (chosen, type(chosen)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "value"),
    [("null", None), ("0.25", 0.25), ("1", 1.0), ("[1, 2.5]", (1.0, 2.5))],
)
def test_alpha_takes_nothing_one_number_or_a_list(text, value):
    alpha = load_config(overrides=[f"loss.alpha={text}"]).loss.alpha
    assert alpha == value
    assert type(alpha) is type(value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epochs=2.0", "a whole number"),
        ("train.epochs=two", "a whole number"),
        ("train.epochs=true", "a whole number"),
        ("train.epochs=null", "a whole number"),
        ("train.learning_rate=fast", "a number"),
        ("train.learning_rate=true", "a number"),
        ("train.learning_rate=[0.1]", "a number"),
        ("augment.flip=1", "true or false"),
        ("augment.flip=maybe", "true or false"),
        ("data.label_column=3", "text"),
        ("data.source=3", "text or null"),
        ("data.image_size=96", "a list of 2 int"),
        ("data.image_size=[96]", "a list of 2 int"),
        ("data.image_size=[96, 96, 3]", "a list of 2 int"),
        ("data.image_size=[96, wide]", "a list of 2 int"),
        ("data.exclude_labels=platelet", "a list of str"),
        ("data.exclude_labels=[1]", "a list of str"),
        ("loss.alpha=[high]", "a list of float or a number or null"),
        ("roi.mode=nuclei", "nucleus | center | none"),
        ("roi.mode=[nucleus]", "nucleus | center | none"),
        ("roi.mode={a: 1}", "nucleus | center | none"),
        ("roi.mode=null", "nucleus | center | none"),
        ("train.precision=float64", "auto | float32 | mixed_bfloat16 | mixed_float16"),
        ("train.jit_compile=1", "auto or true or false"),
        ("train.devices=all", "auto or a whole number"),
    ],
)
def test_wrong_type_is_named_with_what_was_expected_and_received(override, expected):
    key, _, text = override.partition("=")
    message = _faults(override)
    assert message == f"{key}: expected {expected}. Received: {yaml.safe_load(text)!r}"


# Ranges


def _ranges():
    def walk(section, prefix=""):
        for item in dataclasses.fields(section):
            value = getattr(section, item.name)
            if dataclasses.is_dataclass(value):
                yield from walk(value, f"{prefix}{item.name}.")
            elif item.metadata.get("low") is not None:
                whole = isinstance(value, int) or item.name == "image_size"
                step = 1 if whole else 1e-3
                yield prefix + item.name, item.metadata["low"] - step
                if item.metadata["high"] is not None:
                    yield prefix + item.name, item.metadata["high"] + step

    return list(walk(Config()))


@pytest.mark.parametrize(("key", "value"), _ranges())
def test_value_outside_its_range_is_refused(key, value):
    text = f"[{value}, {value}]" if key == "data.image_size" else str(value)
    assert _faults(f"{key}={text}").startswith(f"{key}: expected at least ")


@pytest.mark.parametrize("text", [".nan", ".inf", "-.inf", "nan", "inf"])
@pytest.mark.parametrize(
    "key", ["train.learning_rate", "split.test", "augment.hue", "loss.cap", "train.warmup_epochs"]
)
def test_nan_and_infinity_are_no_settings(key, text):
    assert key in _faults(f"{key}={text}")


def test_both_sides_of_the_picture_are_checked():
    assert "data.image_size" in _faults("data.image_size=[96, 8]")
    assert "data.image_size" in _faults("data.image_size=[8, 96]")


def test_every_alpha_is_checked():
    assert "loss.alpha" in _faults("loss.alpha=[1, -0.5]")


@pytest.mark.parametrize("section", [Config, DataConfig, TrainConfig])
def test_every_numeric_setting_has_a_lower_bound(section):
    hints = typing.get_type_hints(section)
    for item in dataclasses.fields(section):
        if hints[item.name] in (int, float):
            assert item.metadata.get("low") is not None, item.name


# Unknown settings


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("train.epoch=3", "train.epoch: unknown setting (did you mean train.epochs?)"),
        ("trian.epochs=3", "trian: unknown setting (did you mean train?)"),
        ("roi.zzz=3", "roi.zzz: unknown setting (known: mode, margin)"),
        ("data.synthetic.cell=20", "did you mean data.synthetic.cells?"),
    ],
)
def test_unknown_setting_is_named_with_a_hint(override, hint):
    assert hint in _faults(override)


def test_key_that_is_no_text_is_unknown(tmp_path):
    with pytest.raises(ConfigError, match="1: unknown setting"):
        load_config(_write(tmp_path, "1: 2\n"))


def test_value_where_a_section_belongs():
    assert _faults("train=fast") == ("train: expected a section of settings. Received: 'fast'")


def test_all_faults_are_named_at_once_in_one_line(tmp_path):
    path = _write(
        tmp_path,
        "tarin: {epochs: 3}\nroi: {mode: nuclei, margin: -1}\ndata: 7\nmodel: {dropout: yes}\n",
    )
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides=["train.epochs=many", "nonsense"])
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    for part in ("tarin", "roi.mode", "roi.margin", "data:", "model.dropout", "train.epochs"):
        assert part in message
    assert "'nonsense'" in message


# --set


def test_override_wins_over_the_file(tmp_path):
    path = _write(tmp_path, "train: {epochs: 3, seed: 9}\n")
    config = load_config(path, overrides=["train.epochs=4"])
    assert (config.train.epochs, config.train.seed) == (4, 9)


def test_last_override_wins():
    assert load_config(overrides=["train.epochs=4", "train.epochs=5"]).train.epochs == 5


def test_override_reaches_a_section_that_is_empty_in_the_file(tmp_path):
    path = _write(tmp_path, "train:\n")
    assert load_config(path, overrides=["train.epochs=4"]).train.epochs == 4


def test_override_value_may_hold_an_equals_sign():
    assert load_config(overrides=["data.source=a=b.csv"]).data.source == "a=b.csv"


@pytest.mark.parametrize("override", ["train.epochs", "=3", ""])
def test_override_without_key_or_value_is_refused(override):
    assert repr(override) in _faults(override)


@pytest.mark.parametrize("override", ["train..epochs=3", ".epochs=3", "train.=3"])
def test_override_with_a_hole_in_its_key_is_refused(override):
    _faults(override)


def test_override_that_is_no_yaml_is_refused():
    assert "train.epochs" in _faults("train.epochs=[1")


def test_override_below_a_value_is_refused(tmp_path):
    path = _write(tmp_path, "train: {epochs: 3}\n")
    with pytest.raises(ConfigError, match=r"train\.epochs\.x"):
        load_config(path, overrides=["train.epochs.x=3"])


# Files that cannot be read


def test_missing_file_names_file_and_option(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read .*--config"):
        load_config(tmp_path / "none.yaml")


def test_folder_is_no_config(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["a: [1\n", "a: b: c\n", "\tkey: 1\n", "a: !!python/object:os.system 1\n", "a: &x\nb: *y\n"],
)
def test_broken_yaml_is_one_line(tmp_path, text):
    with pytest.raises(ConfigError, match="is not valid YAML") as error:
        load_config(_write(tmp_path, text))
    assert "\n" not in str(error.value)


def test_file_that_is_not_utf8(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes(b"name: \xff\xfe\n")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load_config(path)


@pytest.mark.parametrize("text", ["- a\n", "just text\n", "3\n"])
def test_file_without_settings(tmp_path, text):
    with pytest.raises(ConfigError, match="Received:"):
        load_config(_write(tmp_path, text))


@pytest.mark.parametrize(
    "text",
    ["train: {epochs: 3}\ntrain: {seed: 1}\n", "train:\n  epochs: 3\n  epochs: 4\n"],
)
def test_key_given_twice_is_refused(tmp_path, text):
    with pytest.raises(ConfigError, match=r"run\.yaml: line \d+: \w+ stands twice"):
        load_config(_write(tmp_path, text))


@pytest.mark.parametrize("text", ["[a, b]: 1\n", "{a: 1}: 1\n", "? {a: b}\n: 1\n"])
def test_key_that_cannot_be_hashed_is_a_users_mistake(tmp_path, text):
    with pytest.raises(ConfigError):
        load_config(_write(tmp_path, text))


def test_shared_lines_through_an_anchor(tmp_path):
    text = "train: &t {epochs: 3, seed: 2}\nsplit: {seed: 1}\n"
    assert load_config(_write(tmp_path, text)).train.epochs == 3


# The project's own files


# A study's file holds settings of several runs, and is read by `studies.plan`.
RUNS = sorted(path for path in CONFIGS.glob("*.yaml") if not path.stem.startswith("study"))


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_config_of_the_project_is_valid_and_says_what_it_is_for(path):
    load_config(path)
    lines = path.read_text("utf-8").splitlines()
    header = "\n".join(itertools.takewhile(lambda line: line.startswith("#"), lines))
    assert f"python -m wbc_keras.train --config configs/{path.name}" in header


# Combinations


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["name=a/b"], "name"),
        (["name=.."], "name"),
        (["name=''"], "name"),
        (["name=two words"], "name"),
        (["split.validation=0.5", "split.test=0.45"], "split.validation"),
        (["split.fold=6 of 5"], "split.fold"),
        (["split.fold=0 of 5"], "split.fold"),
        (["split.fold=1 of 1"], "split.fold"),
        (["split.fold=second"], "split.fold"),
        (["split.fold=1/5"], "split.fold"),
        (["train.head_epochs=0", "train.epochs=0"], "train.epochs"),
        (["model.weights=none"], "train.head_epochs"),
        (["model.weights=none", "train.head_epochs=0"], "train.freeze_batch_norm"),
        (["model.kernel_size=4"], "model.kernel_size"),
    ],
)
def test_bad_combination_is_named(overrides, named):
    assert named in _faults(*overrides)


def test_several_bad_combinations_are_all_named():
    message = _faults("name=a/b", "model.kernel_size=4", "split.fold=6 of 5")
    assert all(key in message for key in ("name:", "model.kernel_size", "split.fold"))


def test_training_from_nothing_is_allowed():
    config = load_config(
        overrides=["model.weights=none", "train.head_epochs=0", "train.freeze_batch_norm=false"]
    )
    assert config.model.weights == "none"


@pytest.mark.parametrize(
    ("text", "fold"),
    [("null", None), ("1 of 2", (1, 2)), ("5 of 5", (5, 5)), (" 2  of 5 ", (2, 5))],
)
def test_fold(text, fold):
    assert load_config(overrides=[f"split.fold={text}"]).split.fold_of == fold


def test_shares_may_leave_exactly_a_tenth():
    config = load_config(overrides=["split.validation=0.4", "split.test=0.5"])
    assert config.split.test == 0.5
