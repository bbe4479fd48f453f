"""What is known of a run at its end: the contents of `result.json`."""

from __future__ import annotations

import json
import math
import platform
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import regrow
from regrow.experiments.errors import UserError
from regrow.experiments.train.run import Metrics, Run
from regrow.storage import sparse_weights

__all__ = ["Result", "read_metrics", "read_result", "result_of"]

Result = dict[str, Any]

_NUMBERS = ("test_accuracy", "nnz", "density_actual", "seconds_train", "model_bytes", "model_bytes_sparse")


def result_of(run: Run) -> Result:
    """Evaluate a finished run on the test set, and return all that `result.json` holds."""
    config, summary, last = run.config, run.summary(), run.rows[-1]
    test_loss, test_accuracy = run.evaluate(run.data.test)
    # As many as the dense network has, however its weights are stored.
    dense = {id(weight.weight): weight.numel for weight in sparse_weights(run.model).values()}
    parameters = sum(dense.get(id(parameter), parameter.numel()) for parameter in run.model.parameters())
    return {
        "preset": config.preset,
        "method": config.method,
        "backend": "dense" if run.topology is None else _backend(summary),
        "growth": None if run.recipe is None else str(run.recipe.growth or "default"),
        "density": config.density,
        "width": None if run.small is None else run.small.width,
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
        "seconds_waiting": run.waited.seconds,
        "peak_memory_bytes": _peak_memory(run.device),
        "model_bytes": regrow.summary(run.model).bytes,
        "model_bytes_sparse": summary.sparse_bytes if run.topology else regrow.summary(run.model).bytes,
        "explored": run.explored,
        "compute": config.compute,
        "multiply_adds_train": last["multiply_adds_train"],
        "multiply_adds_train_dense": last["multiply_adds_train_dense"],
        **run.work.flops(),
        "flops_per_step": 3 * summary.flops * config.batch_size,
        "nonzeros_by_layer": {layer.name: layer.nonzeros for layer in summary.layers},
        "weights_by_layer": {layer.name: math.prod(layer.shape) for layer in summary.layers},
        "device": torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "versions": {
            "regrow": regrow.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def read_result(path: Path) -> Result:
    """Read the `result.json` of a run.

    Raises:
        UserError: if the file is damaged.
    """
    try:
        result: Result = json.loads(path.read_text(encoding="utf-8"))
        good = all(isinstance(result[name], int | float) for name in _NUMBERS)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        good = False
    if not good:
        raise UserError(f"{path} is damaged: delete it, and the run makes it again when it goes on")
    return result


def read_metrics(folder: Path) -> list[Metrics]:
    """Read the metrics of every finished epoch from the folder of a run.

    Raises:
        UserError: if the file is missing or damaged.
    """
    path = folder / "metrics.jsonl"
    try:
        rows: list[Metrics] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        good = bool(rows) and all(isinstance(row["epoch"], int) for row in rows)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        good = False
    if not good:
        raise UserError(f"{path} is missing or damaged: delete it and result.json, and going on makes both again")
    return rows


def _backend(summary: regrow.Summary) -> str:
    """Return the backend that stores the sparse weights; several, where layers differ, with a plus between."""
    return "+".join(sorted({layer.storage.backend for layer in summary.layers}))


def _peak_memory(device: torch.device) -> int:
    """Return the most bytes ever held: on the CUDA device, or by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
