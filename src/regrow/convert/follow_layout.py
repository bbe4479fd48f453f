"""Find norms, activations, dropout and pools between sparse convolutions, and exchange them for their batch-last forms.

Sparse convolutions return activations with the batch innermost. PyTorch's element-wise operations keep that, but its
norms and pools put the batch first again, which costs more than they do. Where the data flow of a model is known, from
`torch.fx`, the modules that meet such activations are exchanged; what is not known is left as it is.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import fx, nn

from regrow.convert.exchange import has_hooks, replace_modules
from regrow.nn.batch_last import (
    BatchLast,
    BatchLastAdaptiveAvgPool2d,
    BatchLastAvgPool2d,
    BatchLastDropout,
    BatchLastMaxPool2d,
    BatchLastNorm1d,
    BatchLastNorm2d,
    Fold,
    FoldedDropout,
    FoldedReLU,
    SharedReLU,
)
from regrow.nn.batch_last_1d import BatchLastAdaptiveAvgPool1d, BatchLastAvgPool1d, BatchLastMaxPool1d
from regrow.nn.batch_last_conv import BatchLastConv2d
from regrow.nn.modes import modes_kept
from regrow.nn.sparse_conv import SparseConv
from regrow.nn.sparse_layer import SparseLayer

__all__ = ["follow_layout", "restore_layout"]

_Norm = nn.BatchNorm1d | nn.BatchNorm2d
_Module = TypeVar("_Module", bound=nn.Module)

# Exactly these types: a subclass may compute something else.
_NORMS: Mapping[type[nn.Module], Any] = {nn.BatchNorm1d: BatchLastNorm1d, nn.BatchNorm2d: BatchLastNorm2d}
_POOLS: Mapping[type[nn.Module], Any] = {
    nn.MaxPool1d: BatchLastMaxPool1d,
    nn.AvgPool1d: BatchLastAvgPool1d,
    nn.AdaptiveAvgPool1d: BatchLastAdaptiveAvgPool1d,
    nn.MaxPool2d: BatchLastMaxPool2d,
    nn.AvgPool2d: BatchLastAvgPool2d,
    nn.AdaptiveAvgPool2d: BatchLastAdaptiveAvgPool2d,
}
# What keeps the layout of its tensors if they all have the same.
_KEEPING_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Mish, nn.Tanh, nn.Sigmoid,
    nn.Identity, nn.Dropout,
)  # fmt: skip
_KEEPING_FUNCTIONS = (
    operator.add, operator.iadd, operator.mul, operator.imul, torch.add, torch.mul,
    torch.relu, F.relu, F.gelu, F.silu, F.dropout,
)  # fmt: skip
_KEEPING_METHODS = ("add", "add_", "mul", "mul_", "relu", "relu_")


def follow_layout(model: nn.Module) -> None:
    """Exchange norms, activations, dropout and pools between sparse convolutions, in place.

    A norm or pool is exchanged if each of its calls gets the output of a sparse convolution, directly or through what
    keeps the layout; and a norm, too, whose output goes, likewise, to sparse convolutions, or into a sum with what has
    the batch innermost, and to nothing that would want another layout: it then leads from a dense convolution into it.
    A ReLU is folded into the norm before it if it alone uses what the norm gives, and so is dropout after both, if it
    follows nothing else; other dropout is exchanged as pools are. Norms, pools and ReLUs with hooks, and models that
    `torch.fx` cannot trace, are left alone. What was folded applies itself again as soon as something else stands where
    one of these modules did.

    Dense convolutions whose calls all get such activations become `BatchLastConv2d`, where they stand.
    """
    if not any(isinstance(module, SparseConv) for module in model.modules()):
        return
    try:
        graphs = _traced(model)
    except Exception:  # whatever a model's own code raises when called with placeholders
        return
    flow = _Flow(model, graphs)
    norms, relus, dropouts = flow.norms(), flow.relus(), flow.dropouts()
    # One dropout may follow several norms.
    silent = {dropout: FoldedDropout(dropout).train(dropout.training) for dropout in dropouts.values()}
    exchanged: dict[nn.Module, nn.Module] = dict(silent.items())
    shared = flow.shared_relus()
    for relu in relus.values():
        exchanged[relu] = (SharedReLU if relu in shared else FoldedReLU)(relu.inplace).train(relu.training)
    for norm in norms:
        folded = silent[dropouts[norm]] if norm in dropouts else None
        exchanged[norm] = _NORMS[type(norm)](norm, relu=norm in relus, dropout=folded).train(norm.training)
    _tie(_places(model), exchanged, relus, dropouts)
    for pool in flow.pools():
        exchanged[pool] = _POOLS[type(pool)](pool).train(pool.training)
    for dropout in flow.other_dropouts():
        exchanged[dropout] = BatchLastDropout(dropout).train(dropout.training)
    replace_modules(model, exchanged)
    for convolution in flow.dense_convolutions():
        BatchLastConv2d.of(convolution)


_Places = Mapping[nn.Module, list[tuple[nn.Module, str]]]


def _places(model: nn.Module) -> _Places:
    """Return for each module below `model` where it stands: parents, and its names within them."""
    places: dict[nn.Module, list[tuple[nn.Module, str]]] = {}
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None:
                places.setdefault(child, []).append((parent, name))
    return places


def _tie(
    places: _Places,
    exchanged: Mapping[nn.Module, Any],
    relus: Mapping[_Norm, nn.ReLU],
    dropouts: Mapping[_Norm, nn.Dropout],
) -> None:
    """Give norms and what is folded into them the folds that they have in common."""

    def fold(members: Iterable[nn.Module]) -> Fold:
        return Fold((parent, name, exchanged[each]) for each in members for parent, name in places[each])

    def before(folded: Mapping[_Norm, nn.Module], module: nn.Module) -> list[_Norm]:
        return [norm for norm, each in folded.items() if each is module]

    for relu in set(relus.values()):
        norms = before(relus, relu)
        tied, shared = fold([relu, *norms]), isinstance(exchanged[relu], SharedReLU)
        if not shared:
            exchanged[relu].fold = tied
        for norm in norms:
            exchanged[norm].relu_fold = tied
            exchanged[norm].shares_relu = shared
    for dropout in set(dropouts.values()):
        norms = before(dropouts, dropout)
        # With a ReLU between that applies itself, dropout before that would be in the wrong order.
        between = {relus[norm] for norm in norms if norm in relus}
        others = {norm for relu in between for norm in before(relus, relu)}
        exchanged[dropout].fold = tied = fold({dropout, *norms, *between, *others})
        for norm in norms:
            exchanged[norm].dropout_fold = tied


def restore_layout(model: nn.Module) -> None:
    """Put the ordinary modules back, in place."""
    exchanged = [module for module in model.modules() if isinstance(module, BatchLast)]
    replace_modules(model, {module: module.to_ordinary().train(module.training) for module in exchanged})


def _copy(model: nn.Module) -> nn.Module:
    """Return a copy to trace: a `forward` may write into buffers and keep what it is given.

    Sparse layers are in it themselves: to the tracer they are single operations.
    """
    return deepcopy(model, {id(module): module for module in model.modules() if isinstance(module, SparseLayer)})


class _Tracer(fx.Tracer):
    """Takes sparse layers for what they are: one operation."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, SparseLayer | BatchLast) or super().is_leaf_module(m, module_qualified_name)


def _traced(model: nn.Module) -> list[fx.Graph]:
    """Return the graphs of the model in training and in evaluation: they may take different ways."""
    graphs = []
    # the copies have sparse layers of the model itself
    with modes_kept(model), torch.random.fork_rng(devices=[]):
        for mode in (True, False):
            copy = _copy(model)
            for module in copy.modules():
                module.training = mode
            graphs.append(_Tracer().trace(copy))
    return graphs


class _Flow:
    """Which modules of a model meet activations with the batch innermost.

    Attributes:
        calls: for each module the nodes that call it.
    """

    def __init__(self, model: nn.Module, graphs: Iterable[fx.Graph]) -> None:
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._nodes = [node for graph in graphs for node in graph.nodes]
        self.calls: dict[nn.Module, list[fx.Node]] = {}
        for node in self._nodes:
            if (module := self._called(node)) is not None:
                self.calls.setdefault(module, []).append(node)
        self._refused: set[nn.Module] = set()
        self._settle()

    def norms(self) -> list[_Norm]:
        """Return the norms to exchange."""
        return [
            module
            for module in self.calls
            if isinstance(module, _Norm) and type(module) in _NORMS and self._exchangeable(module)
        ]

    def relus(self) -> dict[_Norm, nn.ReLU]:
        """Return the ReLUs to fold, by the norms to fold them into."""
        return self._foldable(self._norm_calls(), nn.ReLU)

    def shared_relus(self) -> set[nn.ReLU]:
        """Return those of them that follow something else too, as the one ReLU of a block that also follows its sum."""
        calls, relus = self._norm_calls(), self.relus()
        return {relu for relu in relus.values() if not self._always_after(calls, relu, relus)}

    def dropouts(self) -> dict[_Norm, nn.Dropout]:
        """Return the dropout to fold, by the norms to fold it into, after the ReLU where there is one."""
        relus = self.relus()
        ends = {
            norm: [next(iter(call.users)) for call in self.calls[norm]] if norm in relus else self.calls[norm]
            for norm in self.norms()
        }
        folded = self._foldable(ends, nn.Dropout)
        # Unlike ReLU, dropout must not be applied twice: what also follows something else stays as it is.
        while True:
            kept = {norm: each for norm, each in folded.items() if self._always_after(ends, each, folded)}
            if len(kept) == len(folded):
                return folded
            folded = kept

    def other_dropouts(self) -> list[nn.Dropout]:
        """Return the dropout to exchange by itself."""
        folded = set(self.dropouts().values())
        return [
            module
            for module, calls in self.calls.items()
            if type(module) is nn.Dropout
            and module not in folded
            and not has_hooks(module)
            and all(map(self._meets, calls))
        ]

    def pools(self) -> list[nn.Module]:
        """Return the pools to exchange."""
        return [module for module in self.calls if type(module) in _POOLS and self._exchangeable(module)]

    def dense_convolutions(self) -> list[nn.Conv2d]:
        """Return the convolutions that are not sparse and get batch-last activations at each of their calls."""
        return [
            module for module, calls in self.calls.items() if type(module) is nn.Conv2d and all(map(self._meets, calls))
        ]

    def _norm_calls(self) -> dict[_Norm, list[fx.Node]]:
        return {norm: self.calls[norm] for norm in self.norms()}

    def _called(self, node: fx.Node) -> nn.Module | None:
        return self._modules[node.target] if node.op == "call_module" and isinstance(node.target, str) else None

    def _settle(self) -> None:
        """Find which nodes give batch-last activations; a module is exchanged at all of its calls or at none."""
        while True:
            self._batch_last: set[fx.Node] = set()
            known = -1
            # What else goes into a sum may be known only after what stands before it.
            while len(self._batch_last) > known:
                known = len(self._batch_last)
                for node in self._nodes:
                    if node not in self._batch_last and self._gives(node):
                        self._batch_last.add(node)
            refused = {
                module
                for module, calls in self.calls.items()
                if self._exchangeable(module) and not all(map(self._pays, calls))
            }
            if not refused:
                return
            self._refused |= refused

    def _gives(self, node: fx.Node) -> bool:
        return isinstance(self._called(node), SparseConv) or (self._keeps(node) and self._pays(node))

    def _keeps(self, node: fx.Node) -> bool:
        """Return whether what a node gives has the layout of what it gets, where all of that has the same."""
        module = self._called(node)
        return (
            (node.op == "call_function" and node.target in _KEEPING_FUNCTIONS)
            or (node.op == "call_method" and node.target in _KEEPING_METHODS)
            or (module is not None and (type(module) in _KEEPING_MODULES or self._exchangeable(module)))
        )  # fmt: skip

    def _pays(self, node: fx.Node) -> bool:
        """Return whether what keeps the layout of its input is better off batch-last."""
        return self._meets(node) or (isinstance(self._called(node), _Norm) and self._feeds(node))

    def _meets(self, node: fx.Node) -> bool:
        """Return whether all that goes into a node is batch-last."""
        return bool(node.all_input_nodes) and all(source in self._batch_last for source in node.all_input_nodes)

    def _feeds(self, node: fx.Node) -> bool:
        """Return whether what uses the output of a node wants it batch-last: all that cares, and anything at all."""
        wants = [self._wants(user, node) for user in node.users]
        return any(wants) and all(wanted is not False for wanted in wants)

    def _wants(self, user: fx.Node, source: fx.Node) -> bool | None:
        """Return whether a user wants what `source` gives batch-last; None if it takes it in any layout."""
        module = self._called(user)
        if isinstance(module, SparseConv):
            return True
        if type(module) is nn.Conv2d:
            return None
        others = [node for node in user.all_input_nodes if node is not source]
        if others:
            return self._keeps(user) and all(node in self._batch_last for node in others)
        return self._keeps(user) and self._feeds(user)

    def _exchangeable(self, module: nn.Module) -> bool:
        if module in self._refused or has_hooks(module):
            return False
        if type(module) in _POOLS:
            serves: Callable[[nn.Module], bool] = _POOLS[type(module)].serves
            return serves(module)
        return type(module) in _NORMS

    def _foldable(self, ends: Mapping[_Norm, list[fx.Node]], kind: type[_Module]) -> dict[_Norm, _Module]:
        """Return the modules of a kind that norms can apply: nothing else uses what these give.

        Args:
            ends: for each norm the nodes that give what it gives with what is folded into it already.
            kind: of modules to fold.
        """
        alone = {norm: self._alone_after(nodes, kind) for norm, nodes in ends.items()}
        return {norm: module for norm, module in alone.items() if module is not None}

    def _always_after(self, ends: Mapping[_Norm, list[fx.Node]], module: nn.Module, folded: Iterable[_Norm]) -> bool:
        """Return whether every call of a module follows one of the norms that it is folded into."""
        inside = {node for norm in folded for node in ends[norm]}
        return all(call.all_input_nodes[0] in inside for call in self.calls[module])

    def _alone_after(self, nodes: list[fx.Node], kind: type[_Module]) -> _Module | None:
        """Return the one module of a kind that alone uses what nodes give; None if there is none, or anything else."""
        users = {user for node in nodes for user in node.users}
        modules = {self._called(user) for user in users}
        if len(modules) != 1 or any(len(node.users) != 1 for node in nodes):
            return None
        (module,) = modules
        return module if module is not None and type(module) is kind and not has_hooks(module) else None
