"""Averages of a sparse model over its training (SWA, EMA): held dense, for each model has weights at other places."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import swa_utils

from regrow.convert.densify import densify
from regrow.nn.sparse_layer import SparseLayer
from regrow.storage import sparse_weights

__all__ = ["AveragedModel"]


class AveragedModel(swa_utils.AveragedModel):
    """`torch.optim.swa_utils.AveragedModel` of a sparse model, in either storage.

    `module` is an ordinary model: its weights are the averages of the dense weights, and so are not zero wherever one
    of the averaged models had a weight. `torch.optim.swa_utils.update_bn` takes it as any other.

    Args:
        model: the sparse model.
        device: as of the class in PyTorch.
        avg_fn: as of the class in PyTorch.
        multi_avg_fn: as of the class in PyTorch.
        use_buffers: as of the class in PyTorch.

    Raises:
        ValueError: if the model itself is a sparsely stored layer.

    Example:
        >>> import regrow
        >>> model = regrow.sparsify(nn.Sequential(nn.Linear(8, 4)), density=0.25)
        >>> averaged = AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.99))
        >>> averaged.update_parameters(model)  # after each step, or each epoch
        >>> averaged(torch.randn(2, 8)).shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        model: nn.Module,
        device: int | torch.device | None = None,
        avg_fn: Callable[[Tensor, Tensor, Tensor | int], Tensor] | None = None,
        multi_avg_fn: Callable[..., None] | None = None,
        use_buffers: bool = False,
    ) -> None:
        settings: dict[str, Any] = {"avg_fn": avg_fn, "multi_avg_fn": multi_avg_fn, "use_buffers": use_buffers}
        super().__init__(_dense(model), device, **settings)

    def update_parameters(self, model: nn.Module) -> None:
        """Take a model into the average.

        Args:
            model: the sparse model, at another time of its training.
        """
        super().update_parameters(_Dense(model))  # type: ignore[arg-type]


class _Dense:
    """The parameters and buffers that a model would have if it were dense, in the same order."""

    def __init__(self, model: nn.Module) -> None:
        weights = sparse_weights(model).values()
        self._dense = {id(weight.weight): weight.dense() for weight in weights}
        self._positions = {id(model.get_buffer(weight.state_keys[1])) for weight in weights}
        self._model = model

    def parameters(self) -> Iterator[Tensor]:
        return (self._dense.get(id(parameter), parameter) for parameter in self._model.parameters())

    def buffers(self) -> Iterator[Tensor]:
        return (buffer for buffer in self._model.buffers() if id(buffer) not in self._positions)


def _dense(model: nn.Module) -> nn.Module:
    """Return a dense copy of a model; a copy of a sparse layer covers its active weights alone."""
    if isinstance(model, SparseLayer):
        raise ValueError("the model itself is a sparse layer, so nothing can hold its dense form: put it in a module")
    return densify(deepcopy(model))
