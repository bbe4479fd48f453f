"""The exploration rate: the part of all weights that were active at any time of the training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from regrow.core.entries import Change
from regrow.storage import sparse_weights

__all__ = ["Explored"]

# How many bits of each byte are set.
_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)).reshape(256, 8).sum(axis=1)


class Explored:
    """Note which sparse weights of a model were ever active, one bit each, and what part of all that is.

    In-time over-parameterization (Liu et al. 2021, arXiv:2102.02887) calls it R_s, and finds that the accuracy of
    dynamic sparse training follows it: every weight that was tried counts, also one that is absent now. It is touched
    by updates alone, in time that what they grow takes.

    Args:
        model: a sparse model, at the start of its training.

    Example:
        >>> import regrow
        >>> model = regrow.sparsify(nn.Linear(8, 5), density=0.5)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> explored = Explored(model)
        >>> recipe = regrow.set(every=1, steps=20)
        >>> topology = regrow.TopologyUpdater(model, optimizer, recipe, on_update=explored.add)
        >>> explored.rate
        0.5
        >>> for _ in range(20):
        ...     model(torch.randn(4, 8)).square().sum().backward()
        ...     optimizer.step()
        >>> 0.5 < explored.rate <= 1
        True
    """

    def __init__(self, model: nn.Module) -> None:
        self._numel: dict[str, int] = {}
        self._bits: dict[str, NDArray[np.uint8]] = {}
        self._count = 0
        for name, weight in sparse_weights(model).items():
            self._numel[name] = weight.numel
            self._bits[name] = np.zeros(-(-weight.numel // 8), dtype=np.uint8)
            self._note(name, weight.index())

    @property
    def rate(self) -> float:
        """The part of all sparse weights that were ever active, in [0, 1]."""
        return self._count / max(sum(self._numel.values()), 1)

    @property
    def by_layer(self) -> dict[str, float]:
        """The same of each weight, by its name."""
        return {name: int(_ONES[bits].sum()) / self._numel[name] for name, bits in self._bits.items()}

    def add(self, step: int, changes: Mapping[str, Change]) -> None:
        """Note what an update has grown; fits `TopologyUpdater(..., on_update=explored.add)`.

        Args:
            step: optimizer steps taken.
            changes: of each layer.
        """
        for name, change in changes.items():
            self._note(name, change.grow)

    def _note(self, name: str, positions: Tensor) -> None:
        bits, at = self._bits[name], positions.cpu().numpy()
        byte, bit = at >> 3, np.left_shift(1, at & 7).astype(np.uint8)
        self._count += int(np.count_nonzero(bits[byte] & bit == 0))
        np.bitwise_or.at(bits, byte, bit)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the bits of each weight, uint8."""
        return {name: torch.from_numpy(bits.copy()) for name, bits in self._bits.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`.

        Raises:
            ValueError: if it is that of another model.
        """
        sizes = {name: len(bits) for name, bits in state.items()}
        if sizes != {name: len(bits) for name, bits in self._bits.items()}:
            raise ValueError("these are bits of a model with other sparse weights: load what its state_dict() returned")
        self._bits = {name: bits.cpu().numpy().copy() for name, bits in state.items()}
        self._count = sum(int(_ONES[bits].sum()) for bits in self._bits.values())
