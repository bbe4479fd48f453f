"""Presets: the protocols of the paper and of the field, one for each network and data set."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

from regrow.experiments.errors import UserError
from regrow.experiments.train.config import TrainConfig

__all__ = ["PRESETS", "preset"]

# arXiv:1907.04840, section 4: the learning rate falls by ten every 25,000 (MNIST) or 30,000 steps (CIFAR-10).
_MNIST_STEPS = 100 * 540
_CIFAR_STEPS = 250 * 352


def _mnist(data: str, model: str) -> TrainConfig:
    return TrainConfig(
        preset=f"{data.removesuffix('-mnist')}-{model}",
        data=data,
        valid_samples=6_000,
        model=model,
        epochs=100,
        batch_size=100,
        learning_rate_drops=(25_000 / _MNIST_STEPS, 50_000 / _MNIST_STEPS),
    )


def _cifar10(model: str) -> TrainConfig:
    return TrainConfig(
        preset=f"cifar10-{model}",
        data="cifar10",
        valid_samples=5_000,
        augment="crop-flip",
        model=model,
        epochs=250,
        learning_rate_drops=(30_000 / _CIFAR_STEPS, 60_000 / _CIFAR_STEPS),
    )


_DIGITS_MLP = TrainConfig(
    preset="digits-mlp",
    data="digits",
    valid_samples=200,
    model="mlp",
    model_options={"hidden": [300, 100]},
    density=0.1,
    epochs=30,
    batch_size=32,
    learning_rate=0.05,
    learning_rate_drops=(0.5, 0.8),
)

_IMAGENET_RESNET50 = TrainConfig(
    preset="imagenet-resnet50",
    data="imagenet",
    augment="random-resized-crop",
    image_size=224,
    workers=8,
    model="resnet50",
    density=0.1,
    prune_rate=0.2,
    epochs=100,
    batch_size=256,
    weight_decay=1e-4,
    learning_rate_drops=(0.3, 0.6, 0.9),
)

_IMAGENET_RESNET50_TUNED = _IMAGENET_RESNET50.model_copy(
    update={
        "preset": "imagenet-resnet50-tuned",
        "epochs": 90,
        "learning_rate_drops": (30 / 90, 60 / 90, 80 / 90),
        "warmup": 5 / 90,
        "label_smoothing": 0.1,
    }
)

_CIFAR10_MODELS = (
    "alexnet-s",
    "alexnet-b",
    "vgg16-c",
    "vgg16-d",
    "vgg16-like",
    "vgg-small",
    "wrn-28-2",
    "wrn-22-8",
    "wrn-16-4",
    "wrn-16-8",
    "wrn-16-10",
    "resnet18",
    "mlp",
)

PRESETS: Mapping[str, TrainConfig] = {
    preset.preset: preset
    for preset in (
        _DIGITS_MLP,
        *(_mnist(data, model) for data in ("mnist", "fashion-mnist") for model in ("lenet300-100", "lenet5")),
        *(_cifar10(model) for model in _CIFAR10_MODELS),
        _IMAGENET_RESNET50,
        _IMAGENET_RESNET50_TUNED,
    )
}
"""Every preset by name."""


def preset(name: str) -> TrainConfig:
    """Return the settings of a preset.

    Raises:
        UserError: if there is none of that name.

    Example:
        >>> preset("mnist-lenet300-100").epochs
        100
    """
    if name not in PRESETS:
        near = get_close_matches(name, PRESETS, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"choose among {', '.join(PRESETS)}"
        raise UserError(f"there is no preset {name!r}: {hint}")
    return PRESETS[name]
