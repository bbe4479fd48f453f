"""Which weights are stored sparsely without measuring: by kind of layer, shape and density.

The numbers are fitted to steps (forward, backward, SGD with momentum) of single layers in both storages, on one and two
threads of an AMD EPYC with AVX2, PyTorch 2.13: layers of the CIFAR and MNIST networks, of ResNet-50, of transformers
and of networks for speech, at densities from 0.02 to 1, with batches of 16 to 128; those for units of several outputs
to fewer layers, with AVX-512. A slow test holds those for single weights against the running machine. The batch is not
known here: with fewer than about eight samples a step, dense convolutions win earlier, and an example input, with which
layers are timed, says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from regrow.convert.choice import Choice
from regrow.convert.eligible import Slot
from regrow.convert.exchange import unserved
from regrow.core.units import Units
from regrow.nn.kinds import is_linear
from regrow.ops.pattern import rows_of_entry
from regrow.storage import Storage

__all__ = ["LayerShape", "choose_by_rule", "conv_choice", "linear_choice"]

# Linear layers: from so many weights on, up to which density. The larger the weight, the more of a step is the
# optimizer's way through memory, which shrinks with the density.
_LINEAR = ((1 << 22, 0.3), (1 << 17, 0.2), (1 << 14, 0.1))
# Of units whose outputs the kernels take together: one load serves them all.
_LINEAR_OF_UNITS = ((1 << 22, 0.6), (1 << 17, 0.4), (1 << 14, 0.2))
# A linear layer with a shorter side does too little for each number that it reads and writes. But sparse linear layers
# hand on the batch innermost, which a dense one with few outputs takes slowly: where at least half of a model's linear
# layers are stored sparsely, it comes along up to this density.
_SHORTEST_SIDE, _LINEAR_IN_COMPANY = 32, 0.3

# Convolutions hand on the layout that they compute in, so most of them go together. Each is for sparse storage up to
# the first density, one of 1x1 kernels up to the second. If at least half of a model's convolutions are, the others
# come along up to the third: the change of layout before and after would cost more than they do. A layer alone would be
# so up to 0.5, but redistribution by momentum fills the layers that take most of the time.
_CONV, _CONV_OF_ONE_TAP, _CONV_IN_COMPANY = 0.35, 0.2, 0.5
_CONV_OF_UNITS, _CONV_OF_UNITS_AND_ONE_TAP, _CONV_OF_UNITS_IN_COMPANY = 0.6, 0.4, 0.6
# From so many outputs of a unit on.
_LEAST_UNIT = 4
# Among dense convolutions the change of layout must pay: up to which density, from how many inputs of an output on.
_CONV_ALONE, _INPUTS_ALONE = 0.2, 512

# Under autocast to bfloat16 dense layers take half the time where the processor has instructions for it, and sparse
# ones little less than in float32. Convolutions of units gain more from it: at 40 % they were as fast as dense ones.
_BFLOAT16_SPEED, _BFLOAT16_SPEED_BESIDE_UNITS = 2.0, 1.7


@dataclass(frozen=True)
class LayerShape:
    """What the rule knows of a layer.

    Attributes:
        outputs: features or channels of the output.
        inputs: features of the input, or channels of it that one output sees.
        taps: positions of the kernel; 1 for a linear layer.
        density: share of the weights that exist.
        unit: outputs that the kernels take together, as they exist or do not exist together.
        dense_speed: how many times as fast as in float32 the dense layer is.
    """

    outputs: int
    inputs: int
    taps: int
    density: float
    unit: int = 1
    dense_speed: float = 1.0


def choose_by_rule(
    model: nn.Module,
    slots: Sequence[Slot],
    positions: Mapping[str, Tensor],
    units: Mapping[str, Units],
    *,
    beside: Sequence[Slot] = (),
) -> dict[str, Choice]:
    """Choose a storage for every weight; equal models, densities and machines give equal choices.

    Args:
        model: the model, still dense, on the device on which it is to be used.
        slots: the weights that are to be sparse.
        positions: for each by name a bool tensor in its shape, true where the weight exists.
        units: for each by name the units in which its topology changes.
        beside: weights that are stored sparsely whatever is chosen here.
    """
    unfit = unserved(model, slots)
    fit = [slot for slot in slots if slot.name not in unfit]
    shapes = {slot.name: _shape(slot, positions[slot.name], units[slot.name]) for slot in fit}
    convolutions = {slot.name for slot in slots if isinstance(slot.module, _ConvNd)} & shapes.keys()
    wanting = {name for name, shape in shapes.items() if _wants(shape, convolution=name in convolutions)}
    sparse = [slot.module for slot in (*slots, *beside) if slot.name in wanting or slot in beside]

    def most(of_kind: Callable[[nn.Module], bool]) -> bool:
        return 2 * sum(map(of_kind, sparse)) >= sum(map(of_kind, model.modules()))

    in_company = {True: most(lambda module: isinstance(module, _ConvNd)), False: most(is_linear)}
    choices = {name: Choice(Storage.MASKED, reason) for name, reason in unfit.items()}
    for name, shape in shapes.items():
        choose = conv_choice if name in convolutions else linear_choice
        choices[name] = choose(shape, company=in_company[name in convolutions])
    return {slot.name: choices[slot.name] for slot in slots}


def linear_choice(layer: LayerShape, *, company: bool) -> Choice:
    """Choose for a linear layer.

    Args:
        layer: its shape.
        company: whether most linear layers of the model are to be stored sparsely.

    Example:
        >>> linear_choice(LayerShape(4096, 4096, 1, density=0.1), company=False).reason
        'density up to 0.3'
        >>> linear_choice(LayerShape(10, 4096, 1, density=0.1), company=False).reason
        'a side below 32'
    """
    numel, short = layer.outputs * layer.inputs, min(layer.outputs, layer.inputs) < _SHORTEST_SIDE
    limits = _LINEAR_OF_UNITS if layer.unit >= _LEAST_UNIT else _LINEAR
    limit = next((limit for least, limit in limits if numel >= least), None)
    if limit is None:
        return Choice(Storage.MASKED, f"below {_LINEAR[-1][0]:,} weights")
    if short and not company:
        return Choice(Storage.MASKED, f"a side below {_SHORTEST_SIDE}")
    return _up_to(_LINEAR_IN_COMPANY if short else limit, layer)


def conv_choice(layer: LayerShape, *, company: bool) -> Choice:
    """Choose for a convolution.

    Args:
        layer: its shape.
        company: whether most convolutions of the model are to be stored sparsely.

    Example:
        >>> conv_choice(LayerShape(64, 64, 9, density=0.4), company=True).reason
        'density up to 0.5'
        >>> conv_choice(LayerShape(64, 16, 1, density=0.1), company=False).reason
        'fewer than 512 inputs an output, among dense convolutions'
    """
    if company:
        return _up_to(_CONV_OF_UNITS_IN_COMPANY if layer.unit >= _LEAST_UNIT else _CONV_IN_COMPANY, layer)
    if layer.density <= _CONV_ALONE and layer.inputs * layer.taps < _INPUTS_ALONE:
        return Choice(Storage.MASKED, f"fewer than {_INPUTS_ALONE} inputs an output, among dense convolutions")
    return _up_to(_CONV_ALONE, layer)


def _wants(layer: LayerShape, *, convolution: bool) -> bool:
    """Return whether a layer is for sparse storage whatever becomes of the others."""
    if convolution:
        several, one = (
            (_CONV_OF_UNITS, _CONV_OF_UNITS_AND_ONE_TAP) if layer.unit >= _LEAST_UNIT else (_CONV, _CONV_OF_ONE_TAP)
        )
        return layer.density * layer.dense_speed <= (several if layer.taps > 1 else one)
    return linear_choice(layer, company=False).storage is Storage.SPARSE


def _up_to(limit: float, layer: LayerShape) -> Choice:
    limit, density = limit / layer.dense_speed, layer.density
    if density <= limit:
        return Choice(Storage.SPARSE, f"density up to {limit:g}")
    return Choice(Storage.MASKED, f"density above {limit:g}")


def _shape(slot: Slot, positions: Tensor, units: Units) -> LayerShape:
    (outputs, inputs, *kernel), unit = slot.weight.shape, units.unit
    if slot.inputs_first:  # a linear layer: transposed convolutions have no sparse form
        (outputs, inputs), unit = (inputs, outputs), unit[::-1]
    rows = rows_of_entry((outputs, inputs, *kernel), unit, getattr(slot.module, "groups", 1))
    # A density of 0.3 of the user's may be a weight more in a layer.
    density = round(int(positions.count_nonzero()) / positions.numel(), 3)
    # Autocast to what the kernels do not know keeps a layer from getting here.
    dense_speed = 1.0
    if torch.is_autocast_enabled(slot.weight.device.type):
        beside_units = isinstance(slot.module, _ConvNd) and rows >= _LEAST_UNIT
        dense_speed = _BFLOAT16_SPEED_BESIDE_UNITS if beside_units else _BFLOAT16_SPEED
    return LayerShape(outputs, inputs, prod(kernel), density, rows, dense_speed)
