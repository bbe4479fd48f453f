"""The global random generators, which dropout and a user's code draw from: their states, saved with a run."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

__all__ = ["generator_states", "seed_generators", "set_generators"]


def seed_generators(seed: int) -> None:
    """Begin the numbers of every global random generator anew."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - a user's code may draw from it


def generator_states() -> dict[str, Any]:
    """Return the state of every global random generator, as plain data and tensors."""
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - a user's code may draw from it
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
    }


def set_generators(states: Mapping[str, Any]) -> None:
    """Go on from what `generator_states` returned."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
