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


def _cifar10(model: str, density: float) -> TrainConfig:
    return TrainConfig(
        preset=f"cifar10-{model}",
        data="cifar10",
        valid_samples=5_000,
        augment="reflect-crop-flip",
        model=model,
        model_options=_CIFAR10_OPTIONS.get(model, {}),
        density=density,
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

# The authors' first recipe: the first convolution and the shortcuts are dense.
_IMAGENET_RESNET50 = TrainConfig(
    preset="imagenet-resnet50",
    data="imagenet",
    augment="random-resized-crop",
    image_size=224,
    workers=8,
    model="resnet50",
    density=0.15626,
    keep_dense=("conv1", "*.downsample.0"),
    prune_rate=0.2,
    epochs=100,
    batch_size=256,
    weight_decay=1e-4,
    learning_rate_drops=(0.3, 0.6, 0.9),
)


def _imagenet_tuned(name: str, density: float, batch_size: int) -> TrainConfig:
    """Return the authors' tuned recipe, in which every layer is sparse."""
    changes = {
        "preset": name,
        "density": density,
        "keep_dense": (),
        "prune_rate": 0.5,
        "batch_size": batch_size,
        "learning_rate": 0.2,
        "nesterov": False,
        "decay_norms": False,
        "learning_rate_drops": (0.3, 0.6, 0.8),
        "warmup": 0.05,
        "label_smoothing": 0.1,
        "precision": "bfloat16",
    }
    return _IMAGENET_RESNET50.model_copy(update=changes)


def _imagenette(model: str, density: float) -> TrainConfig:
    """Return the first recipe on ten of the classes at 64 pixels, the learning rate in proportion to the batch."""
    batch_size = 64
    changes = {
        "preset": f"imagenette-{model}",
        "data": "imagenette",
        "image_size": 64,
        "workers": 2,
        "model": model,
        "density": density,
        "batch_size": batch_size,
        "learning_rate": _IMAGENET_RESNET50.learning_rate * batch_size / _IMAGENET_RESNET50.batch_size,
    }
    return _IMAGENET_RESNET50.model_copy(update=changes)


# A protocol of this project's own: no paper has it.
_SHAKESPEARE_GPT = TrainConfig(
    preset="shakespeare-gpt",
    data="tinyshakespeare",
    valid_samples=785,
    model="gpt",
    density=0.1,
    epochs=10,
    batch_size=32,
    optimizer="adamw",
    learning_rate=1e-3,
    weight_decay=0.1,
    decay_norms=False,
    clip_gradient_norm=1.0,
    warmup=0.02,
    learning_rate_drops=(0.7, 0.9),
    update_every=0.2,
)

# What a network is built with where its own defaults are for larger images.
_CIFAR10_OPTIONS = {"resnet18": {"stem": "cifar"}}
# Where the paper has a network, the density at which it compares methods on it; 5 % elsewhere.
_CIFAR10_DENSITIES = {
    "alexnet-s": 0.1,
    "alexnet-b": 0.1,
    "vgg16-c": 0.05,
    "vgg16-d": 0.05,
    "vgg16-like": 0.03,
    "vgg-small": 0.05,
    "wrn-28-2": 0.1,
    "wrn-22-8": 0.05,
    "wrn-16-4": 0.05,
    "wrn-16-8": 0.05,
    "wrn-16-10": 0.05,
    "resnet18": 0.05,
    "mlp": 0.05,
}

PRESETS: Mapping[str, TrainConfig] = {
    preset.preset: preset
    for preset in (
        _DIGITS_MLP,
        *(_mnist(data, model) for data in ("mnist", "fashion-mnist") for model in ("lenet300-100", "lenet5")),
        *(_cifar10(model, density) for model, density in _CIFAR10_DENSITIES.items()),
        _IMAGENET_RESNET50,
        _imagenet_tuned("imagenet-resnet50-tuned", 0.1, 288),
        _imagenet_tuned("imagenet-resnet50-tuned-20", 0.2, 256),
        _imagenet_tuned("imagenet-resnet50-tuned-30", 0.3, 256),
        _imagenette("resnet18", 0.1),
        _imagenette("resnet50", 0.15626),
        _SHAKESPEARE_GPT,
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
