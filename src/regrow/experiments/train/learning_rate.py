"""The learning rate as a pure function of the step."""

from __future__ import annotations

from regrow.experiments.train.config import TrainConfig

__all__ = ["learning_rate"]


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Return the learning rate of the step after `step` steps out of `steps`: warm-up, then drops.

    Example:
        >>> config = TrainConfig(
        ...     preset="mine", data="digits", model="mlp", epochs=1, learning_rate=1.0, warmup=0.1,
        ...     learning_rate_drops=(0.5,),
        ... )
        >>> [learning_rate(config, step, 100) for step in (0, 4, 10, 49, 50)]
        [0.1, 0.5, 1.0, 1.0, 0.1]
    """
    rising = round(config.warmup * steps)
    if step < rising:
        return config.learning_rate * (step + 1) / rising
    drops = sum(step >= round(fraction * steps) for fraction in config.learning_rate_drops)
    return config.learning_rate * config.learning_rate_drop_factor**drops
