"""Train neural networks that are sparse from their first step to their last.

Example:
    >>> import torch, regrow
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    >>> model = regrow.sparsify(model, density=0.05)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    >>> topology = regrow.TopologyUpdater(model, optimizer, regrow.sparse_momentum(every=100, steps=1000))
"""

from regrow import distribution as distribution
from regrow import growth as growth
from regrow import redistribute as redistribute
from regrow import schedule as schedule
from regrow import score as score
from regrow.entries import Change as Change
from regrow.entries import Entries as Entries
from regrow.entries import LayerState as LayerState
from regrow.methods.rigl import rigl as rigl
from regrow.methods.set import set as set
from regrow.methods.sparse_momentum import sparse_momentum as sparse_momentum
from regrow.methods.static import static as static
from regrow.nn.sparse_conv import SparseConv1d as SparseConv1d
from regrow.nn.sparse_conv import SparseConv2d as SparseConv2d
from regrow.nn.sparse_linear import SparseLinear as SparseLinear
from regrow.nn.sparsify import dense_state_dict as dense_state_dict
from regrow.nn.sparsify import densify as densify
from regrow.nn.sparsify import masks as masks
from regrow.nn.sparsify import sparsify as sparsify
from regrow.nn.summary import Summary as Summary
from regrow.nn.summary import summary as summary
from regrow.recipe import Recipe as Recipe
from regrow.recipe import update as update
from regrow.topology import TopologyUpdater as TopologyUpdater

__version__ = "0.1.0"
