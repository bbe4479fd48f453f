"""What a training computes: multiply-adds and FLOPs by layer, those of a dense training beside.

Counted as in the paper of RigL (Evci et al. 2020, arXiv:1911.11134): the forward pass, the gradient of the inputs and
that of the weights; two operations a multiply-add. Steps that look at absent weights take the gradient of those too.
Biases, norms and all other operations are not in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

from torch import Tensor, nn

import regrow
from regrow.convert.uses import positions_of_sample
from regrow.storage import Weight, sparse_weights

__all__ = ["Work", "layer_costs"]

# The forward pass, the gradient of the inputs and that of the weights take as many each.
_PASSES = 3
# A multiplication and an addition.
_OPERATIONS = 2


def layer_costs(model: nn.Module, example: Tensor) -> dict[str, tuple[float, int]]:
    """Return for each layer that could be sparse the multiply-adds of a weight on a sample, and its number of weights.

    Args:
        model: a dense model; it stays as it is.
        example: a batch of one sample.

    Example:
        >>> import torch
        >>> layer_costs(nn.Sequential(nn.Conv2d(3, 8, 3, stride=2)), torch.zeros(1, 3, 7, 7))
        {'0.weight': (9.0, 216)}
    """
    whole = regrow.sparsify(deepcopy(model), density=1.0, backend="masked")
    weights = sparse_weights(whole)
    positions = positions_of_sample(whole, weights, (example,))
    return {name: (positions[name], weight.numel) for name, weight in weights.items()}


class Work:
    """Counts what the layers of a model compute over the steps of a training.

    Args:
        costs: as `layer_costs` returns them, of all layers: those that are kept dense are counted too.
        sparse: names of the layers that may be sparse, or would be in a sparse model; multiply-adds are of these alone.
        weights: the sparse weights of the model.
        dense: costs of the dense network to hold it against; None where that is the same network.
    """

    def __init__(
        self,
        costs: Mapping[str, tuple[float, int]],
        sparse: Iterable[str],
        weights: Mapping[str, Weight],
        dense: Mapping[str, tuple[float, int]] | None = None,
    ) -> None:
        self._costs = {name: cost for name, (cost, _) in costs.items()}
        self._numel = {name: numel for name, (_, numel) in costs.items()}
        self._dense = {name: cost * numel for name, (cost, numel) in (dense or costs).items()}
        self._sparse = list(sparse)
        self._nonzeros = dict(self._numel)
        self._samples = 0
        self._not_added = 0
        # Sums over samples: of the weights there were, and of the absent ones that were looked at.
        self._taken = dict.fromkeys(costs, 0)
        self._looked = dict.fromkeys(costs, 0)
        self.look(weights)

    def look(self, weights: Mapping[str, Weight]) -> None:
        """Note how many weights there are, from now on."""
        self._add_up()
        self._nonzeros |= {name: weight.nonzeros() for name, weight in weights.items()}

    def add(self, samples: int, looked_at: Mapping[str, int | None]) -> None:
        """Count a step.

        Args:
            samples: in its batch.
            looked_at: absent weights whose gradient it took, by layer; None for all of a layer.
        """
        self._samples += samples
        self._not_added += samples
        for name, count in looked_at.items():
            absent = self._numel[name] - self._nonzeros[name] if count is None else count
            self._looked[name] += samples * absent

    def row(self) -> dict[str, int]:
        """Return what is known after an epoch, as metrics name it."""
        self._add_up()
        flops = self.flops_by_layer().values()
        dense = sum(self._dense[name] for name in self._sparse)
        return {
            "multiply_adds": round(self._sum(self._nonzeros)),
            "multiply_adds_dense": round(dense),
            "multiply_adds_train": round(_PASSES * self._sum(self._taken)),
            "multiply_adds_train_dense": round(_PASSES * self._samples * dense),
            "flops_train": sum(layer["train"] for layer in flops),
            "flops_train_dense": sum(layer["train_dense"] for layer in flops),
        }

    def flops(self) -> dict[str, Any]:
        """Return the FLOPs of a sample and of the training, in total and by layer, as `result.json` names them."""
        layers = self.flops_by_layer()
        kinds = ("inference", "inference_dense", "train", "train_dense", "train_looking")
        totals = {f"flops_{kind}": sum(layer[kind] for layer in layers.values()) for kind in kinds}
        return {**totals, "flops_by_layer": layers}

    def flops_by_layer(self) -> dict[str, dict[str, int]]:
        """Return the FLOPs of each layer: of the forward pass of a sample now, and of the steps so far."""
        self._add_up()
        found = {}
        for name, cost in self._costs.items():
            looking = cost * self._looked[name]
            multiply_adds = {
                "inference": cost * self._nonzeros[name],
                "inference_dense": self._dense[name],
                "train": _PASSES * cost * self._taken[name] + looking,
                "train_dense": _PASSES * self._samples * self._dense[name],
                "train_looking": looking,
            }
            found[name] = {kind: round(_OPERATIONS * number) for kind, number in multiply_adds.items()}
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return what was counted."""
        self._add_up()
        return {"samples": self._samples, "taken": dict(self._taken), "looked": dict(self._looked)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self._samples, self._not_added = state["samples"], 0
        self._taken, self._looked = dict(state["taken"]), dict(state["looked"])

    def _add_up(self) -> None:
        """Count the samples since the numbers of weights last changed."""
        if self._not_added:
            for name, nonzeros in self._nonzeros.items():
                self._taken[name] += self._not_added * nonzeros
            self._not_added = 0

    def _sum(self, numbers: Mapping[str, int]) -> float:
        """Return the multiply-adds of the layers that may be sparse, for a number of each."""
        return sum(self._costs[name] * numbers[name] for name in self._sparse)
