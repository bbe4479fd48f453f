"""Sparse models for other programs, in the format ONNX."""

from __future__ import annotations

import copy
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from regrow.convert.densify import densify
from regrow.files.atomic import replace_file
from regrow.nn.sparse_layer import SparseLayer

__all__ = ["export_onnx"]


def export_onnx(model: nn.Module, example: Tensor | tuple[Any, ...], path: str | os.PathLike[str]) -> None:
    """Write a model as an ONNX file, for inference; the model stays as it is.

    Its weights are dense there, with zeros where they are absent: ONNX has no products with sparse weights. The number
    of samples stays open where the model allows that. The file is written whole or not at all, and holds all weights.

    Args:
        model: the model, in any storage, or dense.
        example: a batch of two samples or more, as the model takes it: a tensor, or a tuple of arguments.
        path: the file, `.onnx` by custom; an older one is replaced.

    Raises:
        ImportError: if the libraries onnx and onnxscript are missing.
        OSError: if the file cannot be written.

    Example:
        >>> import tempfile, regrow
        >>> model = regrow.sparsify(nn.Sequential(nn.Linear(8, 4)), density=0.25)
        >>> file = Path(tempfile.mkdtemp()) / "model.onnx"
        >>> export_onnx(model, torch.zeros(2, 8), file)
        >>> file.exists()
        True
    """
    if find_spec("onnx") is None or find_spec("onnxscript") is None:
        raise ImportError("export to ONNX wants the libraries onnx and onnxscript: pip install 'regrow[onnx]'")
    model = copy.deepcopy(model)
    dense = model.to_dense() if isinstance(model, SparseLayer) else densify(model)
    arguments = example if isinstance(example, tuple) else (example,)
    sizes = tree_map_only(Tensor, lambda tensor: {0: torch.export.Dim.AUTO} if tensor.dim() else {}, arguments)
    program = torch.onnx.export(
        dense.eval(), arguments, dynamo=True, dynamic_shapes=sizes, verbose=False, external_data=False
    )
    assert program is not None
    content = program.model_proto.SerializeToString()
    replace_file(Path(path), lambda file: file.write(content))
