"""The network of a run from its settings, dense."""

from __future__ import annotations

from textwrap import shorten

from torch import nn

from regrow.experiments import models
from regrow.experiments.errors import UserError
from regrow.experiments.models.layers import ImageShape
from regrow.experiments.models.small import Small, small_dense
from regrow.experiments.train.config import TrainConfig
from regrow.experiments.train.methods import DENSE

__all__ = ["build_network"]


def build_network(config: TrainConfig, image_shape: ImageShape, classes: int) -> tuple[nn.Module, Small | None]:
    """Build the network that settings name, with fresh weights from PyTorch's global generator.

    Args:
        config: the settings.
        image_shape: channels, height and width of one input.
        classes: the number of logits.

    Returns:
        The network, and what is known of its width if the method is small-dense.

    Raises:
        UserError: if a setting does not fit the network.
    """
    options = config.model_options
    if config.method in DENSE and config.method_options:
        raise UserError(f"method_options: {config.method} takes no option")
    small = None
    try:
        if config.method == "small-dense":
            small = small_dense(
                config.model,
                config.density,
                image_shape=image_shape,
                classes=classes,
                options=options,
                keep_dense=config.keep_dense,
            )
            options = {**options, "width": small.width}
        model = models.build(config.model, image_shape=image_shape, classes=classes, **options)
    except (TypeError, RuntimeError) as error:  # a builder met a value of another type or size than it takes
        reason = shorten(str(error), 300)
        raise UserError(f"model_options {config.model_options} do not fit {config.model}: {reason}") from error
    empty = [name for name, parameter in model.named_parameters() if parameter.numel() == 0]
    if empty:
        raise UserError(f"model_options {config.model_options} leave {empty[0]} of {config.model} no weights")
    return model, small
