"""What is known of a run at its end: the contents of `result.json`."""

from __future__ import annotations

import platform
import resource
import sys
from typing import Any

import numpy as np
import torch

import regrow
from regrow.experiments.train.run import Run

__all__ = ["Result", "result_of"]

Result = dict[str, Any]


def result_of(run: Run) -> Result:
    """Evaluate a finished run on the test set, and return all that `result.json` holds."""
    config, summary, last = run.config, run.summary(), run.rows[-1]
    test_loss, test_accuracy = run.evaluate(run.data.test)
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    return {
        "preset": config.preset,
        "method": config.method,
        "backend": "dense" if run.topology is None else _backend(summary),
        "growth": None if run.topology is None else str(run.topology.recipe.growth),
        "density": config.density,
        "density_actual": run.density,
        "nnz": summary.nonzeros,
        "parameters": parameters,
        "epochs": config.epochs,
        "steps": run.step,
        "seed": config.seed,
        "train_loss": last["train_loss"],
        "valid_accuracy": last["valid_accuracy"],
        "test_loss": test_loss,
        "test_accuracy": test_accuracy,
        "seconds_train": run.seconds,
        "seconds_per_step": run.seconds / run.step,
        "peak_memory_bytes": _peak_memory(run.device),
        "model_bytes": regrow.summary(run.model).bytes,
        "model_bytes_sparse": summary.sparse_bytes if run.topology else regrow.summary(run.model).bytes,
        "flops_per_step": 3 * summary.flops * config.batch_size,
        "nonzeros_by_layer": {layer.name: layer.nonzeros for layer in summary.layers},
        "device": torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "versions": {
            "regrow": regrow.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def _backend(summary: regrow.Summary) -> str:
    """Return the backend that stores the sparse weights; several, where layers differ, with a plus between."""
    backends = {"masked": "masked", "sparse": "cpu"}
    return "+".join(sorted({backends[layer.storage] for layer in summary.layers}))


def _peak_memory(device: torch.device) -> int:
    """Return the most bytes ever held: on the CUDA device, or by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
