"""How often weights are used: the positions at which modules apply them, counted while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves

from regrow.convert.eligible import slots_of
from regrow.convert.hook import Hook
from regrow.nn.modes import modes_kept
from regrow.nn.sparse_conv import SparseConv
from regrow.storage import Weight

__all__ = ["Uses", "positions_of_sample"]

# What `costs` takes the cost of a weight to be whose module was not called, while the model was: used once.
_ONCE = 1.0
_ATTENTION = ("query", "key", "value")

_Used = Callable[[tuple[Any, ...], Mapping[str, Any], Any], float]
"""From the arguments and the output of a module to the positions at which it has used a weight."""


class Uses:
    """Count the samples that a model is given, and the positions at which it uses each weight.

    A position takes one multiply-add of each weight. It is one of the output in convolutions, whatever the stride,
    dilation, padding or groups; one of the input in transposed ones; and a vector of features in linear, attention,
    recurrent and all other layers. Embeddings look up and multiply nothing. A layer that is called twice counts twice,
    a shared weight at each of its places. What a padding multiplies by zero counts.

    It hangs on the modules by forward hooks and never waits for a device: in a compiled model the graph counts. Copies
    of the model count nothing. The samples of a pass are the first dimension of the first tensor that the model is
    given.

    Args:
        model: the model.
        weights: those that are counted, by name.
        training_only: leave out passes without training: of modules in evaluation mode without gradients, and passes
            that activation checkpointing repeats in the backward pass.

    Example:
        >>> import regrow
        >>> model = regrow.sparsify(nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.Flatten(), nn.Linear(72, 2)), 0.5)
        >>> from regrow.storage import sparse_weights
        >>> uses = Uses(model, sparse_weights(model))
        >>> _ = model(torch.zeros(4, 3, 7, 7))
        >>> uses.costs()
        {'0.weight': 9.0, '2.weight': 1.0}
    """

    def __init__(self, model: nn.Module, weights: Mapping[str, Weight], *, training_only: bool = False) -> None:
        self._training_only = training_only
        self._samples = _Count(next(iter(weights.values())).weight.device)
        self._positions = {name: _Count(weight.weight.device) for name, weight in weights.items()}
        self._looked_up: set[str] = set()
        self._hooks = [model.register_forward_pre_hook(Hook(self._count_samples), with_kwargs=True)]
        for module, places in self._places(model, weights).items():
            count = Hook(self._count_positions, tuple(places))
            self._hooks.append(module.register_forward_hook(count, with_kwargs=True))

    @property
    def samples(self) -> float:
        """Samples that the model was given; waits for the device if the model is compiled."""
        return self._samples.read()

    def positions(self) -> dict[str, float]:
        """Return the positions at which each weight was used in all; waits for the device if the model is compiled."""
        return {name: count.read() for name, count in self._positions.items()}

    def costs(self, total: Callable[[Sequence[float]], Sequence[float]] = tuple) -> dict[str, float] | None:
        """Return the multiply-adds that one weight takes in the forward pass of a sample; None before the first pass.

        A mean over all samples. A weight whose module was never called, be it that something else reads the weight,
        counts as used once. If only parts of the model are called and never itself, samples are not known, and the
        numbers are those of all passes together: they stand to each other as costs do.

        Args:
            total: adds up what was counted over processes that train together.
        """
        samples, *counted = total((self.samples, *self.positions().values()))
        positions = dict(zip(self._positions, counted, strict=True))
        if not samples and not any(positions.values()):
            return None
        return {
            name: used / (samples or 1) if used or name in self._looked_up else _ONCE
            for name, used in positions.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what was counted."""
        return {"samples": self.samples, "positions": self.positions()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict` of a model with the same weights."""
        self._samples.set(state["samples"])
        for name, count in self._positions.items():
            count.set(state["positions"][name])

    def close(self) -> None:
        """Count no more."""
        for hook in self._hooks:
            hook.remove()

    def _places(self, model: nn.Module, weights: Mapping[str, Weight]) -> dict[nn.Module, list[tuple[_Count, _Used]]]:
        """Return for each module that applies some of the weights what counts each of them."""
        name_of = {id(weight.weight): name for name, weight in weights.items()}
        # Attention computes its output projection itself, without calling the module of it.
        caller: dict[nn.Module, nn.Module] = {
            module.out_proj: module for module in model.modules() if isinstance(module, nn.MultiheadAttention)
        }
        places: dict[nn.Module, list[tuple[_Count, _Used]]] = {}
        for slot in slots_of(model):  # a shared weight at each of its places
            name = name_of.get(id(slot.weight))
            if name is not None and isinstance(slot.module, nn.Embedding | nn.EmbeddingBag):
                self._looked_up.add(name)
            elif name is not None:
                module = caller.get(slot.module, slot.module)
                places.setdefault(module, []).append((self._positions[name], _used_by(module, slot.parameter)))
        return places

    def _count_samples(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._is_counted(module):
            self._samples.add(_samples((args, kwargs)))

    def _count_positions(
        self,
        places: tuple[tuple[_Count, _Used], ...],
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> None:
        if self._is_counted(module):
            for count, used in places:
                count.add(used(args, kwargs, output))

    def _is_counted(self, module: nn.Module) -> bool:
        if not self._training_only:
            return True
        if torch.compiler.is_compiling():
            return not torch.compiler.is_exporting() and (module.training or torch.is_grad_enabled())
        return (module.training or torch.is_grad_enabled()) and torch._C._current_graph_task_id() == -1


def positions_of_sample(
    model: nn.Module, weights: Mapping[str, Weight], arguments: tuple[Any, ...]
) -> dict[str, float]:
    """Run a batch through a model, in evaluation mode, and return the positions at which a sample uses each weight.

    Args:
        model: the model; each of its modules stays in its mode.
        weights: its sparse weights, by name.
        arguments: the batch, as the model takes it.

    Raises:
        ValueError: if no argument is a tensor with a batch dimension.
    """
    if not _samples(arguments):
        raise ValueError("the example has no samples: give a batch as the model takes it, a tensor or a tuple of them")
    uses = Uses(model, weights)
    try:
        with modes_kept(model), torch.no_grad():
            model.eval()
            model(*arguments)
    finally:
        uses.close()
    return {name: used / uses.samples for name, used in uses.positions().items()}


def _samples(arguments: Any) -> int:
    """Return the first dimension of the first tensor among the arguments of a model, at any depth; 0 without any."""
    leaves = tree_leaves(arguments)
    return next((leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()), 0)


class _Count:
    """A sum of whole or rational numbers: a float, beside a tensor for what compiled graphs add.

    Args:
        device: where the graphs run.
    """

    def __init__(self, device: torch.device) -> None:
        self._sum = 0.0
        dtype = torch.float32 if device.type == "mps" else torch.float64
        # AOTAutograd takes float64 tensors without dimensions for numbers of Python, and loses what is added to them.
        self._of_graphs = torch.zeros(1, dtype=dtype, device=device)

    def add(self, number: float) -> None:
        if torch.compiler.is_compiling():
            self._of_graphs.add_(number)
        else:
            self._sum += number

    def read(self) -> float:
        return self._sum + float(self._of_graphs)

    def set(self, number: float) -> None:
        self._sum = number
        self._of_graphs.zero_()


def _used_by(module: nn.Module, parameter: str) -> _Used:
    """Return what tells at how many positions a pass of a module has used one of its weights."""
    if isinstance(module, nn.MultiheadAttention):
        # a third of the rows of `in_proj_weight` is for each of the three
        read = {"k_proj_weight": ("key",), "v_proj_weight": ("value",), "in_proj_weight": _ATTENTION}
        return partial(_used_in_attention, read.get(parameter, ("query",)))
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | SparseConv):
        return partial(_used_for_outputs, module.out_channels)
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        # every input position is multiplied with the whole kernel
        return partial(_used_on_inputs, module.in_channels)
    return partial(_used_on_inputs, None)


def _used_in_attention(read: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any], _: Any) -> float:
    given = {**dict(zip(_ATTENTION, args, strict=False)), **kwargs}
    return sum(_vectors(given[name]) for name in read) / len(read)


def _used_for_outputs(channels: int, _args: tuple[Any, ...], _kwargs: Mapping[str, Any], output: Any) -> int:
    left: Tensor = output[0] if isinstance(output, tuple) else output
    return left.numel() // channels


def _used_on_inputs(channels: int | None, args: tuple[Any, ...], kwargs: Mapping[str, Any], _: Any) -> int:
    entered = args[0] if args else next(iter(kwargs.values()))
    if isinstance(entered, PackedSequence):
        entered = entered.data
    return _vectors(entered) if channels is None else int(entered.numel() // channels)


def _vectors(entered: Tensor) -> int:
    """Return how many vectors of features there are; they lie along the last dimension."""
    return entered.numel() // entered.shape[-1]
