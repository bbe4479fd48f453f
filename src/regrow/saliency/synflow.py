"""SynFlow: keep the weights that carry most of what flows from input to output, without any data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regrow.convert.eligible import Selector
from regrow.saliency.network import gradients_of, highest, left_as_it_was, number_kept, outputs_of, weights_of

__all__ = ["synflow", "synflow_scores"]


def synflow(
    model: nn.Module,
    density: float,
    input_shape: Sequence[int],
    *,
    rounds: int = 100,
    include: Sequence[Selector] = (),
    keep_dense: Sequence[Selector] = (),
) -> dict[str, Tensor]:
    """SynFlow: keep the weights that carry most from input to output, in many rounds and without data.

    **What it does.** Every parameter counts by its absolute value, the input is all ones, and R is the sum of the
    outputs. In each round a weight scores `|weight * dR/dweight|`, and the highest of all layers together stay: after
    round k of n the part `density ** (k / n)` of them, at last `round(density * weights)`. What has gone does not
    return.

    **When to use it.** At a few percent and below, where one round of SNIP or GraSP empties a layer: the scores of what
    goes into a unit sum to those of what comes out of it, so with enough rounds none is emptied before the others. No
    data, no labels, no loss.

    **Settings.** 100 rounds. Everything is computed in float64: in float32 deep networks overflow.

    **Watch for.** It knows nothing of the task: at moderate densities SNIP is better. Activations other than ReLU, and
    biases that are not zero, break the conservation. The network is taken in evaluation mode, norms with their running
    statistics.

    **Cost and information.** A forward and backward pass of one sample a round before training; nothing in it.
    The shape of a sample.

    **Credit.** Tanaka et al. 2020, "Pruning neural networks without any data by iteratively conserving synaptic
    flow", arXiv:2006.05467, and its code `Synaptic-Flow`. There the running statistics of norms count by absolute
    value too; here they stay.

    Args:
        model: a dense model, left as it was.
        density: nonzeros over all weights that may be sparse, in (0, 1].
        input_shape: shape of one sample, without the batch.
        rounds: how often weights are scored and removed, at least 1.
        include: further parameters that may be sparse, as `regrow.sparsify` takes them.
        keep_dense: weights to leave dense, likewise.

    Returns:
        For each weight by name a bool tensor in its shape, for `regrow.sparsify(model, masks=...)`.

    Raises:
        ValueError: if the model is sparse, the density is outside (0, 1], a selector matches nothing, `rounds` is below
            1 or a score is not finite.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
        >>> masks = synflow(model, 0.25, input_shape=(8,))
        >>> sum(int(mask.sum()) for mask in masks.values())
        16
    """
    if rounds < 1:
        raise ValueError(f"{rounds} rounds are not possible: SynFlow removes weights in one round or more")
    weights = weights_of(model, include, keep_dense)
    count = number_kept(weights, density)
    total = sum(weight.numel() for weight in weights.values())
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    for number in range(1, rounds + 1):
        left = count if number == rounds else max(round(density ** (number / rounds) * total), count)
        scores = synflow_scores(model, masks, input_shape)
        # what has gone stands below all others, whose scores are not negative
        masks = highest({name: score.where(masks[name], -1.0) for name, score in scores.items()}, left)
    return masks


def synflow_scores(model: nn.Module, masks: dict[str, Tensor], input_shape: Sequence[int]) -> dict[str, Tensor]:
    """Return the score of every weight of a network from which some have been removed.

    Args:
        model: the dense model.
        masks: where weights are left, by name.
        input_shape: shape of one sample.

    Returns:
        For each name in `masks` a float64 tensor in its shape, zero where a weight has been removed.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 1, bias=False))
        >>> _ = model[0].weight.data.copy_(torch.tensor([[-3.0, 2.0]]))
        >>> synflow_scores(model, {"0.weight": torch.tensor([[True, False]])}, (2,))
        {'0.weight': tensor([[3., 0.]], dtype=torch.float64)}
    """
    parameters = {name: parameter.detach().double().abs() for name, parameter in model.named_parameters()}
    buffers = {
        name: buffer.to(torch.float64, copy=True) if buffer.is_floating_point() else buffer.clone()
        for name, buffer in model.named_buffers()
    }
    weights = {name: parameters[name].mul_(mask).requires_grad_() for name, mask in masks.items()}
    device = next(iter(weights.values())).device
    with left_as_it_was(model, batch_statistics=False):
        ones = torch.ones(1, *input_shape, dtype=torch.float64, device=device)
        outputs = outputs_of(model, weights, ones, {**parameters, **buffers})
        found = gradients_of(outputs.sum(), weights)
    return {name: (weight.detach() * found[name]).abs() for name, weight in weights.items()}
