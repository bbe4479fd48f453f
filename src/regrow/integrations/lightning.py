"""Lightning: a callback that trains a module by a recipe, and one that averages sparse models.

Either package will do, `lightning` or `pytorch_lightning`. It is an extra: `pip install 'regrow[lightning]'`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regrow.convert.average import AveragedModel
from regrow.convert.densify import dense_state_dict
from regrow.core.recipe import Recipe
from regrow.core.step_rule import StepRule
from regrow.storage import Weight
from regrow.storage.masked import MaskedWeight
from regrow.topology.carried import has_topology
from regrow.topology.selected import selected
from regrow.topology.step_updater import StepUpdater
from regrow.topology.updater import OnUpdate, TopologyUpdater
from regrow.topology.wrapped import parameters_of

try:
    from lightning.pytorch import callbacks
except ModuleNotFoundError:
    try:
        from pytorch_lightning import callbacks
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("this module needs Lightning: pip install 'regrow[lightning]'") from error

__all__ = ["TopologyCallback", "WeightAveraging"]

_AVERAGES = ("WeightAveraging", "StochasticWeightAveraging")
_SHARDING = ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy", "XLAFSDPStrategy")


class TopologyCallback(callbacks.Callback):  # type: ignore[misc]
    """Train a sparse LightningModule by a recipe: the updater is made when `fit` starts, on the trainer's optimizer.

    The module is made sparse by its own code, in `__init__` or `configure_model`, before its optimizer. Gradient
    clipping, accumulation, `precision`, manual optimization and the trainer's checkpoints work as they do without it:
    the optimizer's state carries that of the topology, so `fit(ckpt_path=...)` goes on where it was. A checkpoint of a
    fit without this callback is refused, for the schedule would begin anew.

    Args:
        method: a factory of `regrow` (`regrow.sparse_momentum`), or what it returns, a `Recipe` or a `StepRule`.
        every: optimizer steps between updates, for the factory; None for those of an epoch.
        steps: optimizer steps of the whole training, for the factory; None for those of the fit.
        seed: seed of random growth.
        weights: which sparse weights it keeps, by glob over their names in the LightningModule; None for all. With
            several optimizers each has a callback of its own.
        on_update: called after every update with the steps taken and the changes of each layer.
        settings: further arguments of the factory, as `prune_rate=0.3`.

    Attributes:
        topology: the updater, from the start of `fit`.

    Raises:
        ValueError: if settings are given beside a recipe that is made already; when `fit` starts, if the module is not
            sparse, none or several of the optimizers have its sparse weights, the length of an epoch or of the fit is
            not known, a callback of Lightning's own would average weights, or the strategy shards parameters.
        RuntimeError: when a checkpoint without a topology is loaded for `fit`.

    Example:
        >>> import regrow
        >>> callback = TopologyCallback(regrow.sparse_momentum, prune_rate=0.3)
        >>> trainer = lightning.pytorch.Trainer(max_epochs=90, callbacks=[callback])  # doctest: +SKIP
    """

    def __init__(
        self,
        method: Recipe | StepRule | Callable[..., Recipe | StepRule],
        *,
        every: int | None = None,
        steps: int | None = None,
        seed: int = 0,
        weights: Sequence[str] | None = None,
        on_update: OnUpdate | None = None,
        **settings: Any,
    ) -> None:
        if not callable(method) and (settings or every is not None or steps is not None):
            raise ValueError(
                "this recipe is made already: give its settings to its factory, or the factory itself here"
            )
        self.topology: TopologyUpdater | StepUpdater | None = None
        self._method, self._every, self._steps, self._settings = method, every, steps, settings
        self._options: dict[str, Any] = {"seed": seed, "weights": weights, "on_update": on_update}
        self._weights = weights
        self._resumes = False

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Mapping[str, Any]) -> None:
        """Refuse a checkpoint from which the schedule would begin anew."""
        if trainer.state.fn != "fit":
            return
        states = checkpoint["global_step"] and checkpoint.get("optimizer_states")
        if states and not any(has_topology(state) for state in states):
            raise RuntimeError(
                "this checkpoint holds no topology and the schedule would begin anew: resume from one that was saved "
                "with a TopologyCallback, or load its weights alone (load_from_checkpoint) and fit without ckpt_path"
            )
        self._resumes = bool(states)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Make the updater; the trainer restores the optimizer's state after this."""
        if self.topology is not None:
            self.topology.remove()
        weights = selected(pl_module, self._weights)
        _check(trainer)
        method, optimizer = self._made(trainer), _optimizer_of(trainer, weights)
        resumes, self._resumes = self._resumes, False
        if isinstance(method, Recipe):
            self.topology = TopologyUpdater(pl_module, optimizer, method, **self._options)
            return
        # A rule may begin with all weights, and a model that goes on has been loaded already.
        loaded = _copy_of(pl_module) if resumes else {}
        for weight in weights if resumes and method.dense else ():
            if isinstance(weight, MaskedWeight):
                weight.buffer.fill_(True)
        self.topology = StepUpdater(pl_module, optimizer, method, **self._options)
        if resumes:
            pl_module.load_state_dict(loaded)

    def _made(self, trainer: Any) -> Recipe | StepRule:
        """Return the recipe or rule, made for the length of this fit."""
        if not callable(self._method):
            return self._method
        steps, every = self._steps, self._every
        if steps is None:
            steps = _whole(trainer.estimated_stepping_batches, "steps", "the fit")
        if every is None:
            _ = trainer.estimated_stepping_batches  # loads the data, where it is not yet
            every = _whole(trainer.num_training_batches / trainer.accumulate_grad_batches, "every", "an epoch")
        return self._method(every=every, steps=steps, **self._settings)


class WeightAveraging(callbacks.WeightAveraging):  # type: ignore[misc]
    """Lightning's `WeightAveraging` for sparse models, in either storage.

    The average is that of the dense weights (`regrow.AveragedModel`). The module takes it at the weights that exist:
    in validations, after the training, and as `state_dict` of checkpoints. So it is as sparse as the module, and a
    weight that has just grown counts the time before as zero. Settings and `should_update` are those of
    Lightning's; an exponential average is `WeightAveraging(avg_fn=torch.optim.swa_utils.get_ema_avg_fn(0.999))`.
    """

    _current: dict[str, Tensor] | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Make the average when `fit` begins."""
        if stage == "fit":
            pl_module.configure_model()  # as Lightning's own does: the layers may come with it
            device = self._device or pl_module.device
            self._average_model = AveragedModel(pl_module, device, use_buffers=self._use_buffers, **self._kwargs)

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Let the module hold the average."""
        if self._average_model is not None:
            self._current = _copy_of(pl_module)
            self._put_into(pl_module)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Let the module hold its own weights again."""
        if self._current is not None:
            pl_module.load_state_dict(self._current)
            self._current = None

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Let the module hold the average."""
        self._put_into(pl_module)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Save the average as the module holds it, the module's own weights, and the dense average."""
        if self._average_model is None:
            super().on_save_checkpoint(trainer, pl_module, checkpoint)
            return
        current = _copy_of(pl_module)
        self._put_into(pl_module)
        checkpoint["state_dict"] = _copy_of(pl_module)
        pl_module.load_state_dict(current)
        checkpoint["current_model_state"] = current
        checkpoint["averaging_state"] = self._average_model.state_dict()

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Load the dense average and the module's own weights; without an average begin it at the module."""
        if self._average_model is None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
        elif "averaging_state" in checkpoint:
            self._average_model.load_state_dict(checkpoint["averaging_state"])
            pl_module.load_state_dict(checkpoint["current_model_state"])
        else:
            self._average_model.module.load_state_dict(dense_state_dict(pl_module))

    def _put_into(self, pl_module: Any) -> None:
        assert self._average_model is not None
        pl_module.load_state_dict(self._average_model.module.state_dict())


def _check(trainer: Any) -> None:
    """Raise a ValueError where something of the trainer would break the topology."""
    for callback in trainer.callbacks:
        kinds = {kind.__name__ for kind in type(callback).__mro__} & set(_AVERAGES)
        if kinds and not isinstance(callback, WeightAveraging):
            raise ValueError(
                f"{type(callback).__name__} of Lightning averages weights at absent positions too, or by their order "
                "in sparse storage: take regrow.integrations.lightning.WeightAveraging in its place"
            )
    strategy = type(trainer.strategy).__name__
    if strategy in _SHARDING:
        raise ValueError(f"{strategy} shards parameters, and a topology is over whole ones: take ddp or one device")


def _optimizer_of(trainer: Any, weights: Sequence[Weight]) -> torch.optim.Optimizer:
    """Return the one optimizer of a trainer that has some weights."""
    wanted = {id(weight.weight) for weight in weights}
    found: list[torch.optim.Optimizer] = [each for each in trainer.optimizers if parameters_of(each) & wanted]
    if not found:
        raise ValueError(
            "no optimizer of the trainer has the sparse weights: make the module sparse in its __init__ or "
            "configure_model, and give configure_optimizers its parameters"
        )
    if len(found) > 1:
        raise ValueError(
            f"{len(found)} optimizers have sparse weights: give the trainer a TopologyCallback for each, with "
            '`weights=["..."]`, the names of those that its optimizer has'
        )
    return found[0]


def _whole(number: float, setting: str, of: str) -> int:
    """Return a number of steps, rounded up."""
    if not 0 < number < math.inf:
        raise ValueError(f"the trainer does not know the optimizer steps of {of}: give TopologyCallback {setting}=...")
    return math.ceil(number)


def _copy_of(module: nn.Module) -> dict[str, Any]:
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in module.state_dict().items()}
