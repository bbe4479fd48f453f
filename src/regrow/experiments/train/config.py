"""The settings of a training run, checked, with overrides and a file form."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from regrow.experiments.errors import UserError
from regrow.experiments.train.growth import FORMS, parse_growth

__all__ = ["WAIT_SECONDS", "WITHOUT_DENSITY", "TrainConfig", "override", "parse_settings", "read_config"]


WITHOUT_DENSITY = {
    "sr-ste": "that of its pattern, as method_options={keep: 2, of: 4}",
    "soft-threshold": "what its training makes of it",
}
"""Methods that start from every weight and end with a density that is not set, with what it is."""


WAIT_SECONDS = 1800.0
"""How long processes wait for each other where nothing else is set: PyTorch's own default."""


class TrainConfig(BaseModel):
    """Everything that decides what a training run computes. Immutable; unknown settings are refused.

    Times that depend on the length of the training are fractions of it, so `epochs` scales them.

    Example:
        >>> config = TrainConfig(preset="mine", data="digits", model="mlp", epochs=2)
        >>> config.density, config.method
        (0.05, 'sparse-momentum')
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    preset: str = Field(description="name of the preset that this came from")
    # data
    data: str = Field(description="data set")
    valid_samples: int = Field(0, ge=0, description="training samples held out for validation")
    train_samples: int | None = Field(None, ge=1, description="training samples at most; all that are left if null")
    augment: Literal["none", "crop-flip", "reflect-crop-flip", "random-resized-crop"] = Field(
        "none", description="how training images are changed, anew in each epoch"
    )
    image_size: int | None = Field(None, description="side of images, or characters of a piece; the data's own if null")
    workers: int = Field(2, ge=0, description="processes that decode images, where that is done per epoch")
    # model
    model: str = Field(description="name of the network")
    model_options: dict[str, Any] = Field({}, description="options of the network's builder")
    # sparsity
    method: str = Field("sparse-momentum", description="dense, a method's name, or path/to/file.py:recipe")
    method_options: dict[str, Any] = Field({}, description="further settings of the method, by the names of its card")
    density: float = Field(0.05, gt=0, le=1, description="nonzeros over all sparse weights, in (0, 1]")
    distribution: str | None = Field(
        None, description="uniform, erdos-renyi or erdos-renyi-kernel; the method's own if null"
    )
    keep_dense: tuple[str, ...] = Field((), description='weights to leave dense: globs, "first", "last"')
    backend: str | dict[str, str] = Field(
        "auto", description="storage of the sparse weights: auto, masked or cpu, or such by globs over their names"
    )
    method_digest: str | None = Field(
        None, description="SHA-256 of the file that method names; written down when a run starts, and compared"
    )
    block: str | None = Field(
        None, description="outputs x inputs of a unit, which is dropped and grown whole, as 4x1; single weights if null"
    )
    prune_rate: float | None = Field(None, ge=0, le=1, description="first prune rate; the method's own if null")
    prune_rate_decay: Literal["constant", "cosine", "linear"] | None = Field(
        None, description="how the prune rate falls: to 0.005 along a cosine, to 0 in a line; the method's own if null"
    )
    prune: Literal["magnitude", "global-magnitude", "set"] | None = Field(
        None, description="what is dropped; the method's own if null"
    )
    grow: Literal["momentum", "gradient", "random", "momentum-neuron", "global-momentum"] | None = Field(
        None, description="what grows; the method's own if null"
    )
    redistribute: Literal["method", "momentum", "magnitude", "nonzeros", "none", "keep", "compute"] = Field(
        "method", description="what each layer grows of all that was dropped; as the method says if method"
    )
    compute: float | None = Field(
        None,
        gt=0,
        description="how many times the multiply-adds of a uniform spread the sparse layers may take after an update; "
        "no bound if null",
    )
    keep_returning: bool | None = Field(
        None,
        description="whether a weight that is dropped and grown again in one update stays as it was; the method's own "
        "if null",
    )
    growth: str | None = Field(None, description=f"what growth looks at: {FORMS}; the recipe's own if null")
    update_every: float = Field(1.0, gt=0, description="epochs between updates of the topology")
    # optimisation
    epochs: int = Field(ge=1, lt=2**31, description="times through the training set; schedules scale with them")
    batch_size: int = Field(128, ge=1, lt=2**31, description="samples in a step")
    optimizer: Literal["sgd", "adam", "adamw"] = Field("sgd", description="what takes the steps")
    learning_rate: float = Field(0.1, gt=0, description="after the warm-up, before the first drop")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD's momentum, or Adam's first beta")
    nesterov: bool = Field(True, description="whether SGD looks ahead along its momentum")
    weight_decay: float = Field(5e-4, ge=0, description="of all parameters")
    decay_norms: bool = Field(True, description="whether weight decay acts on the scales and shifts of norms too")
    learning_rate_drops: tuple[float, ...] = Field((), description="fractions of the training at which it drops")
    learning_rate_drop_factor: float = Field(0.1, gt=0, le=1, description="what each drop multiplies it by")
    warmup: float = Field(0.0, ge=0, lt=1, description="fraction of the training over which the rate rises")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of a label spread over all classes")
    clip_gradient_norm: float | None = Field(None, gt=0, description="largest norm of all gradients; any if null")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16 means autocast")
    seed: int = Field(0, ge=0, lt=2**64, description="of everything random")
    # the run
    device: str = Field("auto", description="auto takes CUDA where there is one")
    save_every_seconds: float = Field(60.0, gt=0, description="time between checkpoints")
    wait_seconds: float = Field(
        WAIT_SECONDS, gt=0, description="how long a process waits for another of its run before it gives up"
    )
    tensorboard: bool = Field(False, description="whether to write metrics for TensorBoard too")

    @field_validator("keep_dense", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("growth")
    @classmethod
    def _names_a_source(cls, value: str | None) -> str | None:
        if value is not None:
            parse_growth(value)
        return value

    @field_validator("block")
    @classmethod
    def _names_a_block(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[1-9]\d{0,8}x[1-9]\d{0,8}", value):
            raise ValueError("write outputs x inputs, for instance 4x1")
        return value

    @property
    def block_shape(self) -> tuple[int, int]:
        """Outputs and inputs of a unit.

        Example:
            >>> TrainConfig(preset="mine", data="digits", model="mlp", epochs=2, block="4x1").block_shape
            (4, 1)
        """
        outputs, inputs = (self.block or "1x1").split("x")
        return int(outputs), int(inputs)

    def to_yaml(self) -> str:
        """Return the settings as YAML, in the order of the fields."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def override(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """Return `config` with some settings changed.

    Raises:
        UserError: if a setting is unknown or a value does not fit.

    Example:
        >>> config = TrainConfig(preset="mine", data="digits", model="mlp", epochs=2)
        >>> override(config, {"epochs": 5}).epochs
        5
    """
    unknown = [name for name in changes if name not in TrainConfig.model_fields]
    if unknown:
        raise UserError(f"there is no setting {unknown[0]!r}: the settings are {', '.join(TrainConfig.model_fields)}")
    settings = {**config.model_dump(), **changes}
    if settings["method"] == "dense":
        if changes.get("density", 1.0) != 1.0:
            raise UserError("the dense method has density 1: leave --density out, or name another --method")
        settings["density"] = 1.0
    elif settings["method"] in WITHOUT_DENSITY:
        if changes.get("density", 1.0) != 1.0:
            why = WITHOUT_DENSITY[settings["method"]]
            raise UserError(f"the density of {settings['method']} is {why}: leave --density out")
        settings["density"] = 1.0
    try:
        return TrainConfig(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{name} = {first['input']!r} does not fit: {first['msg'].lower()}") from None


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Parse `key=value` pairs from the command line, values as YAML.

    Raises:
        UserError: if a pair has no `=` or its value is not YAML.

    Example:
        >>> parse_settings(["learning_rate=0.05", "keep_dense=[first, 'fc*']"])
        {'learning_rate': 0.05, 'keep_dense': ['first', 'fc*']}
    """
    parsed = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: write key=value, for instance --set learning_rate=0.05")
        try:
            parsed[key.strip()] = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: 2001-99-99 is no day
            raise UserError(f"--set {setting}: the value is not valid YAML") from None
    return parsed


def read_config(path: Path) -> TrainConfig:
    """Read settings that `TrainConfig.to_yaml` wrote.

    Raises:
        UserError: if the file is damaged or from an incompatible version.
    """
    try:
        return TrainConfig(**yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError, TypeError, RecursionError):
        raise UserError(f"{path} is not a run's settings, or is damaged: take another --out for a new run") from None
