"""The networks of the sparse-training papers, and a transformer on text, built by name.

Every model is an ordinary PyTorch module that returns logits (N, classes); on text (N, classes, T). Those on images
can be traced by `torch.fx`, and each use of an activation or a norm is a module of its own, so that chains such as
convolution, norm, ReLU can be found by pattern.
"""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from inspect import signature

from torch import nn

from regrow.experiments.errors import UserError
from regrow.experiments.models.alexnet import alexnet
from regrow.experiments.models.gpt import gpt
from regrow.experiments.models.layers import ImageShape
from regrow.experiments.models.lenet import lenet5, lenet300_100
from regrow.experiments.models.mlp import mlp
from regrow.experiments.models.resnet import resnet18, resnet50
from regrow.experiments.models.vgg import vgg16
from regrow.experiments.models.vgg_small import vgg_small
from regrow.experiments.models.wide_resnet import wide_resnet

__all__ = ["MODELS", "build"]

MODELS: Mapping[str, Callable[..., nn.Module]] = {
    "lenet300-100": lenet300_100,
    "lenet5": lenet5,
    "alexnet-s": partial(alexnet, 1024),
    "alexnet-b": partial(alexnet, 2048),
    "vgg16-c": partial(vgg16, "c"),
    "vgg16-d": partial(vgg16, "d"),
    "vgg16-like": partial(vgg16, "like"),
    "vgg-small": vgg_small,
    "wrn-28-2": partial(wide_resnet, 28, 2),
    "wrn-22-8": partial(wide_resnet, 22, 8),
    "wrn-16-4": partial(wide_resnet, 16, 4),
    "wrn-16-8": partial(wide_resnet, 16, 8),
    "wrn-16-10": partial(wide_resnet, 16, 10),
    "resnet18": resnet18,
    "resnet50": resnet50,
    "mlp": mlp,
    "gpt": gpt,
}
"""The builder of each model, which takes `image_shape`, `classes` and its own options by keyword."""


def build(name: str, *, image_shape: ImageShape, classes: int, **options: object) -> nn.Module:
    """Build the model called `name` with fresh weights, drawn from PyTorch's global generator.

    Args:
        name: a key of `MODELS`.
        image_shape: channels, height and width of one input.
        classes: the number of logits.
        **options: what this model's builder takes beyond that, such as `dropout` or `hidden`.

    Raises:
        UserError: for an unknown name, an option the model does not take, or a value it cannot work with.

    Example:
        >>> model = build("lenet300-100", image_shape=(1, 28, 28), classes=10)
        >>> sum(parameter.numel() for parameter in model.parameters())
        266610
    """
    if name not in MODELS:
        near = get_close_matches(name, MODELS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(MODELS)}"
        raise UserError(f"there is no model {name!r}; {hint}")
    builder = MODELS[name]
    known = [option for option in signature(builder).parameters if option not in ("image_shape", "classes")]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise UserError(f"model {name} takes no option {', '.join(unknown)}; its options: {', '.join(known) or 'none'}")
    try:
        return builder(image_shape=image_shape, classes=classes, **options)
    except ValueError as error:
        raise UserError(f"model {name}: {error}") from error
