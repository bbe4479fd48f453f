"""Masks from a dense network before its training: which weights are worth keeping, by one number for each.

Every function takes a dense model and leaves it as it was. What it returns is for `regrow.sparsify(model, masks=...)`;
after that the topology stays (`regrow.static()`) or any recipe goes on from it.
"""

from collections.abc import Callable, Mapping

from torch import Tensor

from regrow.saliency.grasp import grasp
from regrow.saliency.snip import snip
from regrow.saliency.synflow import synflow

__all__ = ["SALIENCIES", "grasp", "snip", "synflow"]

SALIENCIES: Mapping[str, Callable[..., dict[str, Tensor]]] = {"snip": snip, "grasp": grasp, "synflow": synflow}
"""The function of each by its name on the command line."""
