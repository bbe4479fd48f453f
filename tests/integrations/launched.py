"""Processes as launchers start them: one of `pair` that stands as if, and two that are started."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import accelerate
import torch

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


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


def ends_of_two(program, folder, *arguments, launcher=TORCHRUN):
    """Start a program, which writes what each process ends with to a file of its rank in the folder; return both."""
    started = folder / "started.py"
    started.write_text(program)
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, *launcher, str(started), *arguments, str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return tuple(torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2))
