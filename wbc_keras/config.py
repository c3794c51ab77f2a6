"""Settings: nested frozen dataclasses, read strictly from YAML and ``--set KEY=VALUE``.

Every fault of a file is named at once, in one line, before TensorFlow is loaded. A default stands
here and nowhere else; a YAML file states only what differs.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

from wbc_keras.errors import ConfigError

T = TypeVar("T")


def _setting(default: T, *, low: float | None = None, high: float | None = None) -> T:
    """Return a dataclass field with a default and an inclusive range."""
    return field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True)
class SyntheticConfig:
    """The drawn cells of ``--data synthetic``."""

    cells: int = _setting(800, low=16)
    image_size: int = _setting(128, low=32, high=1024)  # pixels, square
    imbalance: float = _setting(1.0, low=1.0)  # cells of the largest class over the smallest
    patients: int = _setting(20, low=1)
    seed: int = _setting(0, low=0)


@dataclass(frozen=True)
class DataConfig:
    """Where the cells come from and how they are read."""

    source: str | None = None  # what --data takes; --data wins
    label_column: str = "label"
    exclude_labels: tuple[str, ...] = ()
    bad_images: Literal["error", "skip"] = "error"
    near_duplicates: Literal["keep_together", "ignore"] = "keep_together"  # copies, in the splits
    image_size: tuple[int, int] = _setting((96, 96), low=32, high=1024)  # height, width
    synthetic: SyntheticConfig = SyntheticConfig()


@dataclass(frozen=True)
class SplitConfig:
    """Shares of the cells, or one fold of several; a `split` column in the data wins."""

    validation: float = _setting(0.1, low=0.01, high=0.5)
    test: float = _setting(0.2, low=0.01, high=0.5)
    fold: str | None = None  # "2 of 5": the second fifth is the test set
    seed: int = _setting(0, low=0)

    @property
    def fold_of(self) -> tuple[int, int] | None:
        """``(k, n)`` of "k of n", counted from 1, or None."""
        if self.fold is None:
            return None
        match = re.fullmatch(r"\s*(\d+)\s+of\s+(\d+)\s*", self.fold)
        return (int(match[1]), int(match[2])) if match else (0, 0)


@dataclass(frozen=True)
class RoiConfig:
    """How the cell is found and cropped."""

    mode: Literal["nucleus", "center", "none"] = "nucleus"
    margin: float = _setting(0.1, low=0.0, high=2.0)  # share of the nucleus's longer side


@dataclass(frozen=True)
class AugmentConfig:
    """Strengths of the random changes to training cells; 0 or false turns one off."""

    flip: bool = True
    quarter_turns: bool = True
    rotation: float = _setting(20.0, low=0.0, high=180.0)  # degrees, either way
    shift: float = _setting(0.05, low=0.0, high=0.5)  # share of the side, either way
    zoom: float = _setting(0.1, low=0.0, high=0.5)  # share, in or out
    brightness: float = _setting(0.1, low=0.0, high=1.0)  # share of 255, up or down
    contrast: float = _setting(0.15, low=0.0, high=1.0)  # share, up or down
    hue: float = _setting(8.0, low=0.0, high=180.0)  # degrees, either way
    saturation: float = _setting(0.2, low=0.0, high=1.0)  # share, up or down
    stain: float = _setting(0.0, low=0.0, high=0.5)  # share and optical density, up or down
    sharpness: float = _setting(0.0, low=0.0, high=1.0)  # 1: blurred by up to 3 % of the side
    tint: float = _setting(0.0, low=0.0, high=1.0)  # of the light, log of the channels' gains
    mixup: float = _setting(0.0, low=0.0, high=4.0)  # alpha of its Beta distribution; 0: off
    cutmix: float = _setting(0.0, low=0.0, high=4.0)  # the same; with both on, each half the time


@dataclass(frozen=True)
class ModelConfig:
    """The network. `weights`: imagenet, none, a path (weights, run folder), a shipped model."""

    backbone: Literal["resnet50", "efficientnetb0", "mobilenetv2"] = "efficientnetb0"
    attention: Literal["cbam", "se", "none"] = "cbam"
    attention_at: Literal["last", "stages"] = "last"  # stages: also before each halving of the map
    reduction_ratio: int = _setting(16, low=1)
    kernel_size: int = _setting(7, low=1, high=31)
    dropout: float = _setting(0.3, low=0.0, high=0.9)
    # Of the last residual block, earlier ones less; null: 0.2 in EfficientNetB0, 0 in the others.
    stochastic_depth: float | None = _setting(None, low=0.0, high=0.9)
    # When the trained model is used: answers are averaged over so many mirrored and turned views
    # of a cell, 1, 2, 4 or 8, and take as many times longer.
    symmetries: int = _setting(1, low=1, high=8)
    weights: str = "imagenet"


@dataclass(frozen=True)
class LossConfig:
    """Focal loss and class weights are settings of their own; the thesis uses both."""

    name: Literal["focal", "cross_entropy"] = "focal"
    gamma: float = _setting(2.0, low=0.0, high=10.0)
    alpha: tuple[float, ...] | float | None = _setting(None, low=0.0)
    logit_adjustment: float = _setting(0.0, low=0.0, high=3.0)  # tau; 1: balanced softmax
    label_smoothing: float = _setting(0.0, low=0.0, high=0.5)
    class_weight: Literal["none", "balanced", "capped", "effective_number"] = "balanced"
    cap: float = _setting(10.0, low=1.0)  # for capped
    beta: float = _setting(0.999, low=0.0, high=0.999999)  # for effective_number
    weights_after: float = _setting(0.0, low=0.0, high=0.99)  # share of train.epochs without them


@dataclass(frozen=True)
class TrainConfig:
    """The training itself: the head first with the backbone frozen, then everything."""

    seed: int = _setting(0, low=0)
    batch_size: int = _setting(32, low=1)
    # How often a class is drawn: its count to the power 1 - this. 0: every cell once an epoch;
    # 0.5: square root; 1: every class equally often.
    sampling_balance: float = _setting(0.0, low=0.0, high=1.0)
    head_epochs: int = _setting(3, low=0)
    epochs: int = _setting(20, low=0)
    head_learning_rate: float = _setting(1e-3, low=1e-8, high=1.0)
    learning_rate: float = _setting(1e-4, low=1e-8, high=1.0)
    warmup_epochs: float = _setting(1.0, low=0.0)
    weight_decay: float = _setting(1e-4, low=0.0, high=1.0)
    ema_decay: float = _setting(0.0, low=0.0, high=0.99999)  # a step; 0: the weights as they are
    freeze_batch_norm: bool = True
    patience: int = _setting(8, low=1)  # epochs without a better validation macro F1
    precision: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] = "auto"
    jit_compile: Literal["auto"] | bool = "auto"
    devices: Literal["auto"] | int = "auto"  # of each host, that share the batches; auto: all
    hosts_timeout: float = _setting(300.0, low=1.0)  # seconds to wait for the other hosts


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    name: str = "run"
    data: DataConfig = DataConfig()
    split: SplitConfig = SplitConfig()
    roi: RoiConfig = RoiConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()

    def with_source(self, data: str | Path | None) -> Config:
        """Return the same settings for the pictures of ``data``, or of data.source if None.

        Raises:
            ConfigError: neither is given.
        """
        source = str(data) if data is not None else self.data.source
        if source is None:
            raise ConfigError("no pictures given: pass --data PATH or set data.source")
        return dataclasses.replace(self, data=dataclasses.replace(self.data, source=source))


def load_config(path: str | Path | None = None, *, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply ``KEY=VALUE`` overrides in order, and check everything.

    Raises:
        ConfigError: the file cannot be read, or any number of faults, all named in one line.
    """
    values = _read_yaml(Path(path)) if path is not None else {}
    faults: list[str] = []
    for override in overrides:
        _apply_override(values, override, faults)
    config = _build(Config, values, "", faults)
    # Combinations are judged on well-formed values only, or they would report the same fault twice.
    faults += _combination_faults(config) if not faults else []
    if faults:
        where = f"{path}: " if path is not None else ""
        raise ConfigError(where + "; ".join(faults))
    return config


def read_settings(cls: type[T], path: str | Path) -> T:
    """Read a YAML file strictly into a dataclass of settings.

    Args:
        cls: a frozen dataclass whose fields are of the kinds that `Config` has, or mappings.
        path: the file.

    Raises:
        ConfigError: the file cannot be read, or any number of faults, all named in one line.
    """
    faults: list[str] = []
    settings = _build(cls, _read_yaml(Path(path)), "", faults)
    if faults:
        raise ConfigError(f"{path}: {'; '.join(faults)}")
    return settings


def dump_config(config: Config) -> str:
    """Return the whole config, defaults included, as YAML that `load_config` reads back equal."""
    return yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False)


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key given twice, where PyYAML silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise ConfigError(
                f"line {node.start_mark.line + 1}: {', '.join(twice)} stands twice; keep one"
            )
        return super().construct_mapping(node, deep=deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check --config") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: is not valid YAML ({reason})") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `key: value` lines. Received: {values!r}")
    return values


def _apply_override(values: dict[str, Any], override: str, faults: list[str]) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        faults.append(f"--set expects KEY=VALUE. Received: {override!r}")
        return
    *parents, last = key.strip().split(".")
    for parent in parents:
        values[parent] = {} if values.get(parent) is None else values[parent]
        values = values[parent]
        if not isinstance(values, dict):
            faults.append(f"--set {key}: {parent} is a value, not a section")
            return
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        faults.append(f"--set {key}: the value is not valid YAML. Received: {text!r}")


def _build(cls: type[T], values: Any, prefix: str, faults: list[str]) -> T:
    """Build the dataclass ``cls`` from a mapping; faults are collected, defaults stand in."""
    # A section whose lines are all commented out.
    values = {} if values is None else values
    if not isinstance(values, dict):
        faults.append(f"{prefix.rstrip('.')}: expected a section of settings. Received: {values!r}")
        return cls()
    hints = typing.get_type_hints(cls)
    fields = {item.name: item for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    faults += [_unknown(key, prefix, fields) for key in values if key not in fields]
    given: dict[str, Any] = {}
    for key in (name for name in fields if name in values):
        hint, where = hints[key], prefix + key
        if dataclasses.is_dataclass(hint):
            given[key] = _build(typing.cast(type, hint), values[key], where + ".", faults)
            continue
        try:
            given[key] = _in_range(_convert(values[key], hint), fields[key])
        except ValueError as error:
            faults.append(f"{where}: expected {error}. Received: {values[key]!r}")
    return cls(**given)


def _unknown(key: object, prefix: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(key), list(known), n=1)
    hint = f"did you mean {prefix}{close[0]}?" if close else f"known: {', '.join(known)}"
    return f"{prefix}{key}: unknown setting ({hint})"


def _convert(value: Any, hint: Any) -> Any:
    """Return ``value`` as the type ``hint`` asks; ValueError says what was expected."""
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_any(value, choices)
    if origin is Literal:
        if value in choices and isinstance(value, str):
            return value
        raise ValueError(" | ".join(map(str, choices)))
    if origin is tuple:
        return _convert_tuple(value, choices)
    if origin is dict:
        return _convert_scalar(value, dict)
    if hint is type(None):
        if value is None:
            return None
        raise ValueError("null")
    return _convert_scalar(value, hint)


def _convert_any(value: Any, choices: Sequence[Any]) -> Any:
    expected = []
    for choice in choices:
        try:
            return _convert(value, choice)
        except ValueError as error:
            expected.append(str(error))
    raise ValueError(" or ".join(expected))


def _convert_tuple(value: Any, choices: Sequence[Any]) -> tuple[Any, ...]:
    endless = choices[-1] is Ellipsis
    name = choices[0].__name__
    expected = f"a list of {name}" if endless else f"a list of {len(choices)} {name}"
    if not isinstance(value, (list, tuple)) or not (endless or len(value) == len(choices)):
        raise ValueError(expected)
    try:
        return tuple(_convert(item, choices[0]) for item in value)
    except ValueError:
        raise ValueError(expected) from None


def _convert_scalar(value: Any, hint: type) -> Any:
    if hint is float and isinstance(value, str):
        # YAML 1.1 reads 1e-3 as a string.
        try:
            value = float(value)
        except ValueError:
            raise ValueError("a number") from None
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if type(value) is hint:
        return value
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    names[dict] = "a section"
    raise ValueError(names[hint])


def _in_range(value: Any, item: dataclasses.Field[Any]) -> Any:
    low, high = item.metadata.get("low"), item.metadata.get("high")
    numbers = value if isinstance(value, tuple) else () if value is None else (value,)
    for number in numbers:
        if isinstance(number, float) and not math.isfinite(number):
            raise ValueError("a finite number")
        too_low = low is not None and number < low
        too_high = high is not None and number > high
        if too_low or too_high:
            upper = f" and at most {high:g}" if high is not None else ""
            raise ValueError(f"at least {low:g}{upper}")
    return value


def _combination_faults(config: Config) -> list[str]:
    faults = []
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", config.name):
        faults.append(
            "name: becomes a folder's name, so letters, digits, '.', '_' and '-' only. "
            f"Received: {config.name!r}"
        )
    split, train, model = config.split, config.train, config.model
    if split.validation + split.test > 0.9:
        faults.append(
            "split.validation and split.test leave less than a tenth for training. "
            f"Received: {split.validation:g} and {split.test:g}"
        )
    if split.fold_of is not None:
        k, n = split.fold_of
        if not (1 <= k <= n and n >= 2):
            faults.append(f'split.fold: expected "k of n", 1 to n. Received: {split.fold!r}')
    if train.head_epochs + train.epochs < 1:
        faults.append("train.head_epochs and train.epochs are both 0: nothing would be trained")
    if model.weights == "none" and train.head_epochs > 0:
        faults.append(
            "train.head_epochs trains a head on a frozen backbone, which needs weights: "
            "set it to 0, or model.weights to imagenet or a path"
        )
    if model.weights == "none" and train.freeze_batch_norm and train.epochs > 0:
        faults.append(
            "train.freeze_batch_norm keeps statistics that model.weights none does not have: "
            "set it to false"
        )
    if train.devices != "auto" and train.devices < 1:
        faults.append(f"train.devices: expected auto or at least 1. Received: {train.devices}")
    if model.symmetries not in (1, 2, 4, 8):
        faults.append(f"model.symmetries: expected 1, 2, 4 or 8. Received: {model.symmetries}")
    height, width = config.data.image_size
    if model.symmetries == 8 and height != width:
        faults.append(
            "model.symmetries: 8 exchange height and width, so data.image_size must be square. "
            f"Received: {height}x{width}; choose 4"
        )
    if model.kernel_size % 2 == 0:
        faults.append(f"model.kernel_size: expected an odd number. Received: {model.kernel_size}")
    return faults


def _plain(value: Any) -> Any:
    """Return nested tuples as lists, which YAML writes plainly."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
