"""A process of `pair` that stands as a launcher would have started it."""

import os
from contextlib import contextmanager
from unittest.mock import patch

import accelerate


@contextmanager
def launched(rank, size):
    """Have the environment that `torchrun` and `accelerate launch` give; leave nothing to what is tested next."""
    given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "OMP_NUM_THREADS": 1}
    # the processes have met already, and do not go there
    where = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    try:
        with patch.dict(os.environ, {name: str(value) for name, value in {**given, **where}.items()}):
            yield
    finally:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerate.state.GradientState._reset_state()
