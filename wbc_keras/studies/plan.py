"""What a study trains: its settings, each on every fold and seed. Read strictly from YAML.

A study file names the settings that are compared, one by one (``settings``) or as all combinations
of the levels of some components (``grid``). Whatever comes first is what the others are held
against. A setting is a section of dotted keys of `config.Config`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wbc_keras.config import Config, load_config, read_settings
from wbc_keras.errors import ConfigError

Changes = Mapping[str, Any]  # by dotted key

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# What the study itself sets in each of its runs, and by what.
_OWN_KEYS = {
    "name": "name",
    "data.source": "--data, or set",
    "split.fold": "folds",
    "train.seed": "seeds",
}
# A key counts for nothing beside these values of another: two runs that differ in it are one.
_WITHOUT_EFFECT = {
    "model.attention_at": ("model.attention", ("none",)),
    "model.reduction_ratio": ("model.attention", ("none",)),
    "model.kernel_size": ("model.attention", ("none", "se")),
    "loss.gamma": ("loss.name", ("cross_entropy",)),
    "loss.cap": ("loss.class_weight", ("none", "balanced", "effective_number")),
    "loss.beta": ("loss.class_weight", ("none", "balanced", "capped")),
    "loss.weights_after": ("loss.class_weight", ("none",)),
}


@dataclass(frozen=True)
class _StudyFile:
    """The keys of a study file."""

    name: str = "study"
    base: str | dict[str, Any] | None = None  # a config's path, from this file, or its sections
    set: dict[str, Any] | None = None  # dotted keys, for all settings
    settings: dict[str, Any] | None = None  # name: {dotted key: value}
    grid: dict[str, Any] | None = None  # component: {level: {dotted key: value}}, or key: [values]
    folds: int | None = field(default=None, metadata={"low": 2, "high": None})
    seeds: tuple[int, ...] = field(default=(0,), metadata={"low": 0, "high": None})
    keep_models: bool = False


@dataclass(frozen=True)
class Setting:
    """One way to train.

    Attributes:
        name: as tables and folders have it.
        changes: what it changes of the study's common settings, by dotted key.
        levels: its level of each component of a grid; empty without a grid.
        config: all settings, but for fold and seed.
    """

    name: str
    changes: Changes
    levels: Mapping[str, str]
    config: Config


@dataclass(frozen=True, order=True)
class Repeat:
    """One training of every setting: a seed, on one fold or on the one split (None)."""

    seed: int
    fold: int | None

    @property
    def name(self) -> str:
        """As folders have it: ``fold1_seed0`` or ``seed0``."""
        fold = "" if self.fold is None else f"fold{self.fold}_"
        return f"{fold}seed{self.seed}"


@dataclass(frozen=True)
class Cell:
    """One run of the study."""

    setting: str
    repeat: Repeat
    config: Config

    @property
    def name(self) -> str:
        """The run's place below the study's folders: ``cbam/fold1_seed0``."""
        return f"{self.setting}/{self.repeat.name}"


@dataclass(frozen=True)
class Study:
    """All that is to be trained.

    Attributes:
        name: the study's.
        settings: the first is the baseline.
        components: the levels of each component of a grid, the reference first; else empty.
        folds: into how many folds the cells are dealt; None for one split.
        seeds: of the training.
        keep_models: whether a run keeps its model after it was scored.
    """

    name: str
    settings: tuple[Setting, ...]
    components: Mapping[str, tuple[str, ...]]
    folds: int | None
    seeds: tuple[int, ...]
    keep_models: bool

    @property
    def repeats(self) -> tuple[Repeat, ...]:
        """All folds of the first seed, then of the next."""
        folds = [None] if self.folds is None else range(1, self.folds + 1)
        return tuple(Repeat(seed, fold) for seed in self.seeds for fold in folds)

    def cells(self) -> Iterator[Cell]:
        """Yield every run, all settings of a repeat before the next: a part is a fair part."""
        for repeat, setting in itertools.product(self.repeats, self.settings):
            config = setting.config
            split, train = config.split, dataclasses.replace(config.train, seed=repeat.seed)
            if repeat.fold is not None:
                split = dataclasses.replace(split, fold=f"{repeat.fold} of {self.folds}")
            name = f"{self.name}-{setting.name}-{repeat.name}"
            config = dataclasses.replace(config, name=name, split=split, train=train)
            yield Cell(setting.name, repeat, config)


def load_study(
    path: str | Path, *, overrides: Sequence[str] = (), data: str | Path | None = None
) -> Study:
    """Read a study file and check everything that can be told without the cells.

    Args:
        path: the YAML file.
        overrides: ``KEY=VALUE``, for all settings; a setting's own keys win.
        data: what ``--data`` takes; ``data.source`` of the file is used where it is None.

    Raises:
        ConfigError: the file cannot be read, or any number of faults, all named in one line.
    """
    path = Path(path)
    file = read_settings(_StudyFile, path)
    common = _read_common(path, file, overrides, data)
    faults = _own_keys(file.set or {}, "set", allowed=("data.source",))
    choices = _read_grid(file.grid or {}, faults) if file.grid else _read_list(file, faults)
    settings = [] if faults else _build_settings(choices, common, faults)
    faults += _frame_faults(file)
    faults += _setting_faults(settings, "grid" if file.grid else "settings")
    if faults:
        raise ConfigError(f"{path}: {'; '.join(faults)}")
    return Study(
        file.name,
        tuple(settings),
        _components(settings),
        file.folds,
        file.seeds,
        file.keep_models,
    )


@dataclass(frozen=True)
class _Choice:
    name: str
    changes: Changes
    levels: Mapping[str, str] = field(default_factory=dict)


def as_overrides(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return nested or dotted settings as the ``KEY=VALUE`` of `config.load_config`."""
    overrides = []
    for key, value in values.items():
        if isinstance(value, dict):
            overrides += as_overrides(value, f"{prefix}{key}.")
        else:
            # JSON is YAML, on one line.
            overrides.append(f"{prefix}{key}={json.dumps(value, default=str)}")
    return overrides


def _read_common(
    path: Path, file: _StudyFile, overrides: Sequence[str], data: str | Path | None
) -> list[str]:
    """Return what all settings share as overrides; a fault in it is told here, once."""
    base = path.parent / file.base if isinstance(file.base, str) else None
    given = as_overrides(file.base) if isinstance(file.base, dict) else []
    given += [*as_overrides(file.set or {}), *overrides]
    given += [] if data is None else as_overrides({"data.source": str(data)})
    try:
        config = load_config(base, overrides=given).with_source(None)
    except ConfigError as error:
        raise ConfigError(f"{path}: in base and set: {error}") from error
    return as_overrides(dataclasses.asdict(config))


def _read_list(file: _StudyFile, faults: list[str]) -> list[_Choice]:
    return [
        _Choice(name, _read_changes(name, changes, "settings", faults))
        for name, changes in (file.settings or {}).items()
    ]


def _read_grid(grid: Mapping[str, Any], faults: list[str]) -> list[_Choice]:
    """Return all combinations, the last component turning fastest."""
    sides = []
    owner: dict[str, str] = {}
    for component, given in grid.items():
        levels = _read_levels(component, given, faults)
        sides.append([(component, level, changes) for level, changes in levels.items()])
        for key in sorted({key for changes in levels.values() for key in changes}):
            if owner.setdefault(key, component) != component:
                faults.append(f"grid: {owner[key]} and {component} both set {key}")
    return [] if faults else [_combine(levels) for levels in itertools.product(*sides)]


def _read_levels(component: str, given: Any, faults: list[str]) -> dict[str, Changes]:
    where = f"grid.{component}"
    if isinstance(given, list):
        # `key: [values]`, short for a level of each value, called as the value is.
        named = {_call(value): {component: value} for value in given}
        if len(named) < len(given):
            faults.append(f"{where}: holds a value twice, which would be the same run twice")
        given = named
    if not isinstance(given, dict) or len(given) < 2:
        faults.append(f"{where}: expected two levels or more, LEVEL: {{KEY: value}}, or values")
        return {}
    return {level: _read_changes(level, given[level], where, faults) for level in given}


def _read_changes(name: object, changes: Any, where: str, faults: list[str]) -> Changes:
    """Return the dotted keys of one setting or level; none, where it is the common recipe."""
    changes = {} if changes is None else changes
    faults += _name_faults(name, f"{where}.{name}")
    if not isinstance(changes, dict) or not all(isinstance(key, str) for key in changes):
        faults.append(f"{where}.{name}: expected a section of KEY: value. Received: {changes!r}")
        return {}
    faults += _own_keys(changes, f"{where}.{name}")
    return changes


def _combine(levels: Sequence[tuple[str, str, Changes]]) -> _Choice:
    changes = {key: value for _, _, part in levels for key, value in part.items()}
    name = "-".join(str(level) for _, level, _ in levels)
    return _Choice(name, changes, {component: level for component, level, _ in levels})


def _call(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _build_settings(
    choices: Sequence[_Choice], common: Sequence[str], faults: list[str]
) -> list[Setting]:
    settings = []
    for choice in choices:
        try:
            config = load_config(overrides=[*common, *as_overrides(choice.changes)])
        except ConfigError as error:
            faults.append(f"{choice.name}: {error}")
        else:
            settings.append(Setting(choice.name, choice.changes, choice.levels, config))
    return settings


def _components(settings: Sequence[Setting]) -> dict[str, tuple[str, ...]]:
    found: dict[str, dict[str, None]] = {}
    for setting in settings:
        for component, level in setting.levels.items():
            found.setdefault(component, {})[level] = None
    return {component: tuple(levels) for component, levels in found.items()}


# --- what is refused ---


def _frame_faults(file: _StudyFile) -> list[str]:
    faults = _name_faults(file.name, "name")
    if bool(file.settings) == bool(file.grid):
        had = "both" if file.settings else "neither"
        faults.append(f"settings or grid: expected one of them. Received: {had}")
    if not file.seeds or len(set(file.seeds)) < len(file.seeds):
        faults.append(f"seeds: expected different seeds, at least one. Received: {file.seeds}")
    return faults


def _name_faults(name: object, where: str) -> list[str]:
    if isinstance(name, str) and _NAME.fullmatch(name):
        return []
    return [
        f"{where}: becomes a folder's name, so letters, digits, '.', '_' and '-' only (in quotes, "
        f"if YAML takes it for something else). Received: {name!r}"
    ]


def _own_keys(changes: Changes, where: str, *, allowed: Sequence[str] = ()) -> list[str]:
    owned = [key for key in changes if key in _OWN_KEYS and key not in allowed]
    return [f"{where}.{key}: is the study's own, given by {_OWN_KEYS[key]}" for key in owned]


def _setting_faults(settings: Sequence[Setting], where: str) -> list[str]:
    """Name settings that are one and the same, or that would be tested on other cells."""
    faults: list[str] = []
    seen: dict[str, str] = {}
    tested = {setting.name: _tested_cells(setting.config) for setting in settings}
    for setting in settings:
        first = seen.setdefault(_effective(setting.config), setting.name)
        if first != setting.name:
            faults.append(f"{where}: {first} and {setting.name} are the same run twice; keep one")
        if tested[setting.name] != tested[settings[0].name]:
            faults.append(
                f"{where}.{setting.name}: changes which cells are tested, so it cannot be held "
                f"against {settings[0].name}; data and split (but for data.image_size) belong to "
                "set"
            )
    names = [setting.name for setting in settings]
    twice = sorted({name for name in names if names.count(name) > 1})
    return faults + [f"{where}: two settings would be called {name}" for name in twice]


def _tested_cells(config: Config) -> tuple[Any, Any]:
    return dataclasses.replace(config.data, image_size=(96, 96)), config.split


def _effective(config: Config) -> str:
    """Return the settings that make a difference, so that equal texts are equal runs."""
    values = dict(text.split("=", 1) for text in as_overrides(dataclasses.asdict(config)))
    for key, (other, without) in _WITHOUT_EFFECT.items():
        if json.loads(values.get(other, "null")) in without:
            values.pop(key, None)
    return json.dumps(values, sort_keys=True)
