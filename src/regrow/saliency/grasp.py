"""GraSP: keep the weights without which the gradient would lose most of its norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map

from regrow.convert.eligible import Selector
from regrow.saliency.network import Loss, gradients_of, highest, left_as_it_was, number_kept, outputs_of, weights_of

__all__ = ["grasp"]


def grasp(
    model: nn.Module,
    density: float,
    inputs: Any,
    targets: Any,
    *,
    loss: Loss = F.cross_entropy,
    temperature: float = 200.0,
    batch_statistics: bool = True,
    include: Sequence[Selector] = (),
    keep_dense: Sequence[Selector] = (),
) -> dict[str, Tensor]:
    """GraSP: keep the weights that preserve the flow of the gradient.

    **What it does.** With g the gradient and H the Hessian of the loss, removing a weight changes the squared norm of
    the gradient by about `-2 * weight * (H g)`. The `round(density * weights)` weights of largest `weight * (H g)` of
    all layers together stay. The loss is that of `outputs / temperature`. g is the sum over both halves of the batch;
    the product with H is taken half by half and summed.

    **When to use it.** Where a layer that SNIP empties matters: at a few percent it tends to keep more weights in late
    layers. At higher densities SNIP is as good.

    **Settings.** Ten samples of each class, temperature 200. The halves are the first and the second half of
    `inputs` in their order.

    **Watch for.** It needs second derivatives of every operation of the model, and the memory of two passes.
    Which weights go has nothing to do with their own size: at moderate densities important ones may go.

    **Cost and information.** Three forward passes, two backward and two of second order before training; nothing in
    it. Loss and a batch.

    **Credit.** Wang et al. 2020, "Picking Winning Tickets Before Training by Preserving Gradient Flow",
    arXiv:2002.07376, and its code `GraSP`. There linear layers are drawn anew before the scores; here weights count as
    they are.

    Args:
        model: a dense model, left as it was.
        density: nonzeros over all weights that may be sparse, in (0, 1].
        inputs: a batch of at least two samples as the model takes it: a tensor, or a tuple of tensors.
        targets: what the loss compares with, samples along the first dimension.
        loss: from what the model returns, divided by the temperature, and the targets to a number.
        temperature: what the model's outputs, which must be a tensor, are divided by.
        batch_statistics: whether norms take the statistics of the batch, as in training. Dropout is off in any case.
        include: further parameters that may be sparse, as `regrow.sparsify` takes them.
        keep_dense: weights to leave dense, likewise.

    Returns:
        For each weight by name a bool tensor in its shape, for `regrow.sparsify(model, masks=...)`.

    Raises:
        ValueError: if the model is sparse, the density is outside (0, 1], a selector matches nothing, the batch has one
            sample only, or a score is not finite.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
        >>> masks = grasp(model, 0.25, torch.randn(16, 8), torch.randint(3, (16,)))
        >>> sum(int(mask.sum()) for mask in masks.values())
        16
    """
    weights = weights_of(model, include, keep_dense)
    count = number_kept(weights, density)
    halves = _halves(inputs, targets)

    def gradients(half: tuple[Any, Any], *, again: bool) -> dict[str, Tensor]:
        outputs = outputs_of(model, weights, half[0]) / temperature
        return gradients_of(loss(outputs, half[1]), weights, again=again)

    # the fused kernels of attention have no second derivative
    with left_as_it_was(model, batch_statistics=batch_statistics), sdpa_kernel(SDPBackend.MATH):
        first, second = (gradients(half, again=False) for half in halves)
        whole = {name: first[name] + second[name] for name in weights}
        product = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        for half in halves:
            own = gradients(half, again=True)
            value = torch.stack([(own[name] * whole[name]).sum() for name in weights]).sum()
            if value.requires_grad:
                more = gradients_of(value, weights)
                product = {name: product[name] + more[name] for name in weights}
    return highest({name: weight.detach() * product[name] for name, weight in weights.items()}, count)


def _halves(inputs: Any, targets: Any) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Return the first and the second half of a batch; what has no samples is part of both."""
    both = (inputs, targets)
    samples = min((len(leaf) for leaf in tree_leaves(both) if _has_samples(leaf)), default=0)
    if samples < 2:
        raise ValueError("GraSP takes the gradient of both halves of a batch: give it two samples or more")

    def part(where: slice) -> Any:
        return tree_map(lambda leaf: leaf[where] if _has_samples(leaf) else leaf, both)

    return part(slice(None, samples // 2)), part(slice(samples // 2, None))


def _has_samples(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0
