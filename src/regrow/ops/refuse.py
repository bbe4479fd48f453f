"""Second derivatives, which the kernels do not have."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor


def refuse_double_backward(*_: Any) -> NoReturn:
    """Refuse a gradient of a gradient.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError(
        "sparse layers have no second derivatives: call backward without create_graph, or use masked storage"
    )


class _Refuse(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, gradient: Tensor, *__: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(*_: Any) -> NoReturn:
        refuse_double_backward()


def without_derivative(gradient: Tensor | None, *depends_on: Tensor) -> Tensor | None:
    """Return a gradient as it is, but so that its own gradient is refused where someone would ask for it."""
    if gradient is None or not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in depends_on):
        return gradient
    refused: Tensor = _Refuse.apply(gradient, *depends_on)  # type: ignore[no-untyped-call]
    return refused
