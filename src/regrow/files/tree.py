"""Nested states as JSON and tensors: everything that a state dict may hold, and nothing that runs when it is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["flatten", "restore"]


def flatten(tree: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return a nested state as what JSON can hold; its tensors are added to `tensors`, on the CPU.

    Args:
        tree: tensors, numbers, strings, and lists, tuples and dicts of them.
        name: of the state, and the beginning of the names of its tensors.
        tensors: what holds the tensors.

    Raises:
        ValueError: if something else is in it.

    Example:
        >>> import torch
        >>> tensors = {}
        >>> flatten({"lr": 0.1, 7: (torch.ones(2), None)}, "state", tensors), list(tensors)
        ({'dict': [['lr', 0.1], [7, {'tuple': [{'tensor': 'state/7/0'}, None]}]]}, ['state/7/0'])
    """
    if tree is None or type(tree) in (bool, int, str):
        return tree
    if type(tree) is float:
        return tree if math.isfinite(tree) else {"float": repr(tree)}
    if isinstance(tree, Tensor):
        while name in tensors:  # 1 and "1" are two keys
            name += "'"
        tensors[name] = tree.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(tree, Mapping):
        for key in tree:
            if type(key) not in (bool, int, str):
                raise ValueError(f"{name} has the key {key!r}, and a file takes numbers and strings alone as keys")
        return {"dict": [[key, flatten(value, f"{name}/{key}", tensors)] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        kind = "list" if isinstance(tree, list) else "tuple"
        return {kind: [flatten(value, f"{name}/{place}", tensors) for place, value in enumerate(tree)]}
    raise ValueError(
        f"{name} is a {type(tree).__name__}, and a file takes tensors, numbers, strings, lists and dicts alone: "
        "leave it out of the state"
    )


def restore(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return the nested state that `flatten` made JSON of.

    Raises:
        ValueError: if it is no such JSON, or a tensor is missing.

    Example:
        >>> restore({"dict": [["lr", 0.1], [7, {"tuple": [{"float": "inf"}]}]]}, {})
        {'lr': 0.1, 7: (inf,)}
    """
    if tree is None or type(tree) in (bool, int, float, str):
        return tree
    if isinstance(tree, dict) and len(tree) == 1:
        ((kind, inside),) = tree.items()
        if kind == "tensor" and type(inside) is str and inside in tensors:
            return tensors[inside]
        if kind == "float" and inside in ("inf", "-inf", "nan"):
            return float(inside)
        if kind in ("list", "tuple") and isinstance(inside, list):
            values = [restore(value, tensors) for value in inside]
            return values if kind == "list" else tuple(values)
        if kind == "dict" and isinstance(inside, list):
            return dict(_entry(entry, tensors) for entry in inside)
    raise ValueError(f"{str(tree)[:60]} is no part of a state")


def _entry(entry: Any, tensors: Mapping[str, Tensor]) -> tuple[Any, Any]:
    if not (isinstance(entry, list) and len(entry) == 2 and type(entry[0]) in (bool, int, str)):
        raise ValueError(f"{str(entry)[:60]} is no entry of a dict")
    return entry[0], restore(entry[1], tensors)
