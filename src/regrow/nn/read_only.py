"""A tensor that can be read and not written: a write into what was made for the reader would be lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["ReadOnly"]

_WRITING = ("__set__", "__setitem__", "__delitem__")


class ReadOnly(Tensor):
    """A tensor, and views of it, that refuse what works in place; what is computed from it is an ordinary tensor.

    Gradients flow through it. `clone()` gives a tensor that may be written.

    Example:
        >>> weight = torch.ones(2).as_subclass(ReadOnly)
        >>> weight + 1
        tensor([2., 2.])
        >>> weight.zero_()
        Traceback (most recent call last):
        RuntimeError: this weight was made to be read, and a write into it would be lost: ...
    """

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function of PyTorch, unless it would write into such a tensor."""
        kwargs = kwargs or {}
        target = args[0] if args else next(iter(kwargs.values()), None)
        written = [*_all(kwargs.get("out")), *(_all(target) if _writes(function.__name__) else ())]
        if any(isinstance(each, cls) for each in written):
            raise RuntimeError(
                "this weight was made to be read, and a write into it would be lost: load other weights with "
                'layer.load_state_dict({"weight": ...}, strict=False), train and freeze `layer.values`, or take a '
                "clone()"
            )
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **kwargs)
            memory = {each.untyped_storage().data_ptr() for each in args if isinstance(each, cls)}
            if type(result) is tuple and all(isinstance(each, Tensor) for each in result):
                return tuple(_typed(cls, each, memory) for each in result)
            return _typed(cls, result, memory) if isinstance(result, Tensor) else result


def _writes(name: str) -> bool:
    in_place = name.startswith("__i") and name not in ("__invert__", "__index__", "__int__")
    return name in _WRITING or in_place or (name.endswith("_") and not name.endswith("__"))


def _all(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _typed(kind: type[ReadOnly], result: Tensor, memory: set[int]) -> Tensor:
    """Return a result as read-only if it lies in the memory of a read-only tensor, else as an ordinary tensor."""
    inside = result.layout is torch.strided and result.untyped_storage().data_ptr() in memory
    return result.as_subclass(kind if inside else Tensor)
