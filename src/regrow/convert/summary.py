"""A sparse model as a table: what each layer holds, takes and computes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from regrow.convert.choice import in_one_line, remembered
from regrow.convert.uses import positions_of_sample
from regrow.nn.batch_last import BatchLast
from regrow.storage import Storage, Weight, sparse_weights

__all__ = ["LayerSummary", "Summary", "summary"]

# A column index for each value and a pointer for each row, as in CSR with 32-bit integers.
_INDEX_BYTES = 4
# To the left: weight, shape and storage, and why it is stored so.
_TEXT_COLUMNS = ("weight", "shape", "storage", "why")


@dataclass(frozen=True)
class LayerSummary:
    """One weight of a sparse model.

    Attributes:
        name: name of the weight.
        shape: shape of the dense weight.
        storage: how it is stored.
        nonzeros: weights that exist, and absent ones that are not zero.
        density: nonzeros over the dense weight's elements.
        bytes: bytes it takes in memory as it is stored now: the weights and the record of where they exist.
        sparse_bytes: bytes it would take as values, column indices and row pointers.
        flops: operations for one sample's forward pass, two for each nonzero and output position; without an
            example input, for one output position (a pixel, a token, a row).
        reason: why it is stored so, where `backend="auto"` chose; empty where the storage was asked for.
        unit: outputs and inputs of a unit of topology, along the first two dimensions.
        gain: how many times faster the layer's sparse form was measured to be than the dense one, forward and
            backward; None where nothing was measured.
        nonzero_absent: absent weights that are not zero, though they should be: something changed them without the
            updater, or the model is an average of others.
    """

    name: str
    shape: tuple[int, ...]
    storage: Storage
    nonzeros: int
    density: float
    bytes: int
    sparse_bytes: int
    flops: int
    reason: str = ""
    gain: float | None = None
    unit: tuple[int, int] = (1, 1)
    nonzero_absent: int = 0


@dataclass(frozen=True)
class Summary:
    """A sparse model: its sparse weights and what else it holds. `str()` gives the table.

    Attributes:
        layers: one row for each sparse weight.
        parameters: trained numbers of the model: nonzeros and all dense parameters.
        dense_parameters: trained numbers outside the sparse weights (biases, norms, layers kept dense).
        dense_bytes: bytes of those.
        per_sample: whether `flops` count a whole sample or one output position.
        batch_last: names of the norms, activations and pools that follow the layout of sparse convolutions.
    """

    layers: tuple[LayerSummary, ...]
    parameters: int
    dense_parameters: int
    dense_bytes: int
    per_sample: bool
    batch_last: tuple[str, ...] = ()

    @property
    def nonzeros(self) -> int:
        """Weights that exist in the sparse layers, and absent ones that are not zero."""
        return sum(layer.nonzeros for layer in self.layers)

    @property
    def density(self) -> float:
        """Nonzeros over all weights that may be sparse; 1 without any."""
        numel = sum(math.prod(layer.shape) for layer in self.layers)
        return self.nonzeros / numel if numel else 1.0

    @property
    def bytes(self) -> int:
        """Bytes of all parameters, masks and positions as they are stored now."""
        return self.dense_bytes + sum(layer.bytes for layer in self.layers)

    @property
    def sparse_bytes(self) -> int:
        """Bytes of all parameters with the sparse weights as values and indices."""
        return self.dense_bytes + sum(layer.sparse_bytes for layer in self.layers)

    @property
    def stored(self) -> str:
        """How many weights are stored in which way, and why some are masked, in one line."""
        return in_one_line((layer.storage, layer.reason) for layer in self.layers)

    @property
    def flops(self) -> int:
        """Operations of the sparse layers, as counted in the rows."""
        return sum(layer.flops for layer in self.layers)

    def __str__(self) -> str:
        header = (
            "weight",
            "shape",
            "storage",
            "nonzeros",
            "density",
            "bytes",
            "as sparse",
            self._flops_title,
        )
        rows: list[tuple[str, ...]] = [header]
        for layer in self.layers:
            shape = "x".join(map(str, layer.shape))
            in_units = "" if layer.unit == (1, 1) else f" in {layer.unit[0]}x{layer.unit[1]}"
            rows.append((layer.name, shape + in_units, str(layer.storage), *_figures(layer)))
        rows.append(("all sparse weights", "", "", *_figures(self)))
        if any(layer.reason for layer in self.layers):
            rows = [(*row, *why) for row, why in zip(rows, self._reasons(), strict=True)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(_align(*each) for each in zip(row, widths, rows[0], strict=True)).rstrip() for row in rows]
        rule = "-" * max(map(len, lines))
        note = f"{self.dense_parameters:,} more parameters are dense; {self.parameters:,} in all"
        notes = [note]
        if self.batch_last:
            notes.append(f"{len(self.batch_last)} modules follow the layout of sparse layers")
        filled = [layer for layer in self.layers if layer.nonzero_absent]
        if filled:
            notes.append(
                f"{sum(layer.nonzero_absent for layer in filled):,} of these nonzeros are absent by the masks of "
                f"{', '.join(layer.name for layer in filled)}: only the optimizer that was given to "
                "regrow.TopologyUpdater may change them"
            )
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], *notes])

    def _reasons(self) -> list[tuple[str, ...]]:
        """Return for each line of the table why the weight is stored so, after the gain where any was measured."""
        reasons = ["why", *(layer.reason for layer in self.layers), ""]
        if all(layer.gain is None for layer in self.layers):
            return [(reason,) for reason in reasons]
        gains = ["gain", *(f"{layer.gain:.2f}x" if layer.gain else "-" for layer in self.layers), ""]
        return list(zip(gains, reasons, strict=True))

    @property
    def _flops_title(self) -> str:
        return "FLOPs a sample" if self.per_sample else "FLOPs a position"


def summary(model: nn.Module, example: Tensor | tuple[Any, ...] | None = None) -> Summary:
    """Describe a sparse model: nonzeros, density, bytes and operations of every sparse weight.

    Args:
        model: any module; one that is not sparse gives a summary without rows.
        example: a batch as the model takes it (a tensor, or a tuple of arguments), to be run through it so that
            operations are counted for a whole sample. Without it they are counted for one output position of each
            layer.

    Raises:
        ValueError: if no argument of the example is a tensor with a batch dimension.

    Example:
        >>> import regrow
        >>> model = regrow.sparsify(nn.Sequential(nn.Linear(200, 100), nn.Linear(100, 10)), density=0.1)
        >>> print(summary(model))  # doctest: +NORMALIZE_WHITESPACE
        weight              shape    storage  nonzeros  density   bytes  as sparse  FLOPs a position  why
        ------------------------------------------------------------------------------------------------------------------
        0.weight            100x200  sparse      2,000   0.1000  42,448     16,404             4,000  density up to 0.1
        1.weight            10x100   masked        100   0.1000   5,000        844               200  below 16,384 weights
        ------------------------------------------------------------------------------------------------------------------
        all sparse weights                       2,100   0.1000  47,888     17,688             4,200
        110 more parameters are dense; 2,210 in all
    """  # noqa: E501
    weights = sparse_weights(model)
    counted = weights and example is not None
    arguments = example if isinstance(example, tuple) else (example,)
    positions = positions_of_sample(model, weights, arguments) if counted else dict.fromkeys(weights, 1.0)
    sparse = {id(weight.weight) for weight in weights.values()}
    dense = [parameter for parameter in model.parameters() if id(parameter) not in sparse]
    layers = tuple(_layer(weight, positions[name]) for name, weight in weights.items())
    dense_parameters = sum(parameter.numel() for parameter in dense)
    return Summary(
        layers=layers,
        parameters=dense_parameters + sum(layer.nonzeros for layer in layers),
        dense_parameters=dense_parameters,
        dense_bytes=sum(parameter.nbytes for parameter in dense),
        per_sample=example is not None,
        batch_last=tuple(name for name, module in model.named_modules() if isinstance(module, BatchLast)),
    )


def _layer(weight: Weight, positions: float) -> LayerSummary:
    nonzero_absent = weight.nonzero_absent()
    nonzeros = weight.nonzeros() + nonzero_absent
    rows = weight.shape[0]
    choice = remembered(weight.module, weight.name.rpartition(".")[2])
    return LayerSummary(
        name=weight.name,
        shape=weight.shape,
        storage=weight.storage,
        nonzeros=nonzeros,
        density=nonzeros / weight.numel,
        bytes=weight.bytes,
        sparse_bytes=nonzeros * (weight.weight.element_size() + _INDEX_BYTES) + (rows + 1) * _INDEX_BYTES,
        flops=round(2 * nonzeros * positions),
        reason=choice.reason if choice else "",
        gain=choice.gain if choice else None,
        unit=weight.units.unit,
        nonzero_absent=nonzero_absent,
    )


def _figures(of: LayerSummary | Summary) -> tuple[str, ...]:
    return (f"{of.nonzeros:,}", f"{of.density:.4f}", f"{of.bytes:,}", f"{of.sparse_bytes:,}", f"{of.flops:,}")


def _align(text: str, width: int, column: str) -> str:
    """Align text to the left, numbers to the right."""
    return text.ljust(width) if column in _TEXT_COLUMNS else text.rjust(width)
