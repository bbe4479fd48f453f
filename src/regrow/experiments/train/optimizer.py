"""The optimizer of a training run, from its settings."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from regrow.experiments.train.config import TrainConfig

__all__ = ["make_optimizer"]

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimizer that the settings name, over all parameters of the model."""
    # fused: one pass over each weight and its state, where the plain form makes several with temporaries
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in model.parameters())
    parameters = _parameter_groups(model, config)
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=config.learning_rate,
            momentum=config.momentum,
            nesterov=config.nesterov and config.momentum > 0,
            weight_decay=config.weight_decay,
            fused=fused,
        )
    adam = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    betas = (config.momentum, 0.999)
    return adam(
        parameters,
        lr=config.learning_rate,
        betas=betas,
        weight_decay=config.weight_decay,
        fused=fused,
    )


def _parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Return the parameters as the optimizer takes them: those of norms apart if they do not decay."""
    if config.decay_norms:
        return [{"params": list(model.parameters())}]
    modules = [module for module in model.modules() if isinstance(module, _NORMS)]
    of_norms = {id(parameter) for module in modules for parameter in module.parameters()}
    norms = [parameter for parameter in model.parameters() if id(parameter) in of_norms]
    others = [parameter for parameter in model.parameters() if id(parameter) not in of_norms]
    return [{"params": others}, {"params": norms, "weight_decay": 0.0}]
