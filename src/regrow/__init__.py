"""Train neural networks that are sparse from their first step to their last.

Example:
    >>> import torch, regrow
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    >>> model = regrow.sparsify(model, density=0.05)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    >>> topology = regrow.TopologyUpdater(model, optimizer, regrow.sparse_momentum(every=100, steps=1000))
"""

from regrow import distribution, growth, methods, processes, redistribute, saliency, schedule, score
from regrow.convert.average import AveragedModel
from regrow.convert.densify import dense_state_dict, densify
from regrow.convert.sparsify import masks, sparsify
from regrow.convert.summary import Summary, summary
from regrow.core.entries import Change, Entries, LayerState
from regrow.core.recipe import Recipe
from regrow.core.step_rule import StepLayer, StepRule
from regrow.core.update import update
from regrow.files.onnx import export_onnx
from regrow.files.saving import load, save
from regrow.methods import *  # noqa: F403 - a method is named once, in regrow.methods
from regrow.nn.sparse_conv import SparseConv1d, SparseConv2d
from regrow.nn.sparse_linear import SparseLinear
from regrow.topology.decay import decay_groups
from regrow.topology.explored import Explored
from regrow.topology.step_updater import StepUpdater
from regrow.topology.updater import TopologyUpdater

__version__ = "0.1.0"

__all__ = [
    "AveragedModel",
    "Change",
    "Entries",
    "Explored",
    "LayerState",
    "Recipe",
    "SparseConv1d",
    "SparseConv2d",
    "SparseLinear",
    "StepLayer",
    "StepRule",
    "StepUpdater",
    "Summary",
    "TopologyUpdater",
    "decay_groups",
    "dense_state_dict",
    "densify",
    "distribution",
    "export_onnx",
    "growth",
    "load",
    "masks",
    "methods",
    "processes",
    "redistribute",
    "saliency",
    "save",
    "schedule",
    "score",
    "sparsify",
    "summary",
    "update",
]
__all__ += methods.__all__
