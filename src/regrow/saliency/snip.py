"""SNIP: keep the weights that the loss is most sensitive to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from regrow.convert.eligible import Selector
from regrow.saliency.network import Loss, gradients_of, highest, left_as_it_was, number_kept, outputs_of, weights_of

__all__ = ["snip"]


def snip(
    model: nn.Module,
    density: float,
    inputs: Any,
    targets: Any,
    *,
    loss: Loss = F.cross_entropy,
    batch_statistics: bool = True,
    include: Sequence[Selector] = (),
    keep_dense: Sequence[Selector] = (),
) -> dict[str, Tensor]:
    """SNIP: keep the weights that the loss of one batch is most sensitive to.

    **What it does.** Scores every weight by `|weight * gradient|` on one batch and keeps the `round(density * weights)`
    highest of all layers together. The topology is then that of the whole training.

    **When to use it.** As the baseline of pruning at the start: one pass through one batch. It spreads weights over
    layers by itself, better than a random static topology; methods that move weights in training reach higher accuracy.

    **Settings.** A batch as in training (100 samples for MNIST, 128 for CIFAR-10 in the paper).

    **Watch for.** At a percent or less a layer may be left without a weight, and then nothing passes: `regrow.summary`
    shows it; `keep_dense` or `synflow` help. Weights should start with a variance by their fans, as PyTorch's do.

    **Cost and information.** One forward and backward pass before training; nothing in it. Loss and a batch.

    **Credit.** Lee et al. 2019, "SNIP: Single-shot Network Pruning based on Connection Sensitivity",
    arXiv:1810.02340, and its code `snip-public`. There norms take their running statistics
    (`batch_statistics=False`), which normalise nothing at the start; biases are pruned too, and weights are drawn anew
    afterwards: here biases stay, and drawing anew is the caller's to do.

    Args:
        model: a dense model, left as it was; weights count as they are now.
        density: nonzeros over all weights that may be sparse, in (0, 1].
        inputs: a batch as the model takes it: a tensor, or a tuple of arguments.
        targets: what the loss compares with.
        loss: from what the model returns and the targets to a number.
        batch_statistics: whether norms take the statistics of the batch, as in training. Dropout is off in any case.
        include: further parameters that may be sparse, as `regrow.sparsify` takes them.
        keep_dense: weights to leave dense, likewise.

    Returns:
        For each weight by name a bool tensor in its shape, for `regrow.sparsify(model, masks=...)`.

    Raises:
        ValueError: if the model is sparse, the density is outside (0, 1], a selector matches nothing or a score is not
            finite.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
        >>> masks = snip(model, 0.25, torch.randn(16, 8), torch.randint(3, (16,)))
        >>> sum(int(mask.sum()) for mask in masks.values())
        16
    """
    weights = weights_of(model, include, keep_dense)
    count = number_kept(weights, density)
    with left_as_it_was(model, batch_statistics=batch_statistics):
        value = loss(outputs_of(model, weights, inputs), targets)
        gradients = gradients_of(value, weights)
    return highest({name: (weight * gradients[name]).detach().abs() for name, weight in weights.items()}, count)
