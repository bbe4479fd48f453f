"""Norms, pools and dropout between sparse layers, in the layout of these; they are what they replace in all but speed.

Each is a subclass of the module it stands for, with the same parameters, buffers and names, so state dicts load either
way. What the kernels do not serve (other types than float32 and bfloat16, other devices, inputs without a batch)
PyTorch computes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regrow.nn.numbers import version_of
from regrow.ops.dropout import dropout
from regrow.ops.normalise import Running, normalise
from regrow.ops.pool import MOST_TAPS, max_pool2d, mean_pool2d

__all__ = [
    "BatchLast",
    "BatchLastAdaptiveAvgPool2d",
    "BatchLastAvgPool2d",
    "BatchLastDropout",
    "BatchLastMaxPool2d",
    "BatchLastNorm1d",
    "BatchLastNorm2d",
    "Fold",
    "FoldedDropout",
    "FoldedReLU",
    "SharedReLU",
]


_Reference = Callable[[], nn.Module | None]

# What a norm notes on an output to which it has applied ReLU: the version, so that a change in place is seen.
_RECTIFIED = "_regrow_rectified"


class BatchLast(nn.Module):
    """What all of them share: the way back to the ordinary module."""

    @abstractmethod
    def to_ordinary(self) -> nn.Module:
        """Return the ordinary module, with the same parameters and buffers."""


class Fold:
    """What must stand in a model, and where, so that a norm applies what follows it: else each applies its own.

    A model is changed behind our back by whatever exchanges modules, as `nn.SyncBatchNorm.convert_sync_batchnorm`.
    Norms and what is folded into them ask the same fold at every call, and so always agree.

    Args:
        places: parent, name within it, and module that stands there. They are not kept alive.

    Example:
        >>> model = nn.Sequential(nn.ReLU())
        >>> fold = Fold([(model, "0", model[0])])
        >>> fold.holds()
        True
        >>> model[0] = nn.GELU()
        >>> fold.holds()
        False
    """

    def __init__(self, places: Iterable[tuple[nn.Module, str, nn.Module]]) -> None:
        self._places: list[tuple[_Reference, str, _Reference]] = [
            (ref(parent), name, ref(module)) for parent, name, module in places
        ]

    def holds(self) -> bool:
        """Return whether every module stands where it stood."""
        for parent_of, name, module_of in self._places:
            parent, module = parent_of(), module_of()
            if parent is None or module is None or parent._modules.get(name) is not module:
                return False
        return True

    def __getstate__(self) -> list[tuple[Any, str, Any]]:
        """Return the modules themselves, so that a copy is of the copied ones."""
        return [(parent(), name, module()) for parent, name, module in self._places]

    def __setstate__(self, places: list[tuple[Any, str, Any]]) -> None:
        """Take over a state; where a module is gone, it holds no more."""
        self._places = [(_reference(parent), name, _reference(module)) for parent, name, module in places]


class _Norm(nn.modules.batchnorm._BatchNorm, BatchLast):
    """A norm, and ReLU and dropout after it where there are such, in one go.

    Args:
        norm: the norm whose parameters, buffers and settings it takes over.
        relu: whether ReLU follows.
        dropout: what stands in the model for the dropout that follows: its rate and its mode count.

    Attributes:
        relu_fold: while it holds, ReLU is applied; None for always.
        dropout_fold: while it holds, dropout is applied; None for always.
        shares_relu: whether the ReLU that follows also follows something else, and so must know this norm's output.
    """

    _ordinary: Callable[..., nn.BatchNorm1d | nn.BatchNorm2d]

    def __init__(
        self, norm: nn.BatchNorm1d | nn.BatchNorm2d, *, relu: bool = False, dropout: FoldedDropout | None = None
    ) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, affine=False, track_running_stats=False)
        _take_over(self, norm)
        self.relu = relu
        # In a tuple it is no submodule: its place in the model is where the dropout stood.
        self._dropout = (dropout,)
        self.relu_fold: Fold | None = None
        self.dropout_fold: Fold | None = None
        self.shares_relu = False

    def to_ordinary(self) -> nn.BatchNorm1d | nn.BatchNorm2d:
        """Return the ordinary norm, without ReLU and dropout."""
        norm = self._ordinary(self.num_features, self.eps, self.momentum, affine=False, track_running_stats=False)
        _take_over(norm, self)
        return norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x`, shape (N, C, H, W), (N, C, L) or (N, C), as the ordinary norm takes it."""
        mean, variance = (None, None) if self.training else (self.running_mean, self.running_var)
        (dropout,) = self._dropout
        drops = dropout is not None and dropout.training and _holds(self.dropout_fold)
        rate = dropout.p if dropout is not None and drops else 0.0
        relu = self.relu and _holds(self.relu_fold)
        self._check_input_dim(x)  # type: ignore[no-untyped-call]
        output, *_ = normalise(
            _as_planes(x),
            self.weight,
            self.bias,
            mean=mean,
            variance=variance,
            epsilon=self.eps,
            relu=relu,
            rate=rate if rate < 1 else 0.0,
            running=self._running,
        )
        output = output.flatten(x.dim() - 1) if x.dim() < 4 else output
        output = output if rate < 1 else F.dropout(output, rate)
        if relu and self.shares_relu and not torch.compiler.is_compiling():
            setattr(output, _RECTIFIED, version_of(output))
        return output

    @property
    def _running(self) -> Running | None:
        """The statistics that a batch moves now."""
        mean, variance, batches = self.running_mean, self.running_var, self.num_batches_tracked
        if not (self.training and self.track_running_stats) or mean is None or variance is None or batches is None:
            return None
        return Running(mean, variance, batches, self.momentum)

    def extra_repr(self) -> str:
        """Return what `print(model)` shows of the module."""
        dropout = self._dropout[0] is not None
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, relu={self.relu}, dropout={dropout}"


class BatchLastNorm2d(_Norm, nn.BatchNorm2d):
    """`nn.BatchNorm2d`, and ReLU and dropout after it where there are such, in one go.

    Example:
        >>> import torch
        >>> norm = BatchLastNorm2d(nn.BatchNorm2d(1), relu=True)
        >>> norm(torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1)).flatten().round()
        tensor([0., 1.], grad_fn=<RoundBackward0>)
    """

    _ordinary = nn.BatchNorm2d


class BatchLastNorm1d(_Norm, nn.BatchNorm1d):
    """`nn.BatchNorm1d`, and ReLU and dropout after it where there are such, in one go."""

    _ordinary = nn.BatchNorm1d


class BatchLastMaxPool2d(nn.MaxPool2d, BatchLast):
    """`nn.MaxPool2d`; see `serves` for the settings that it knows.

    Args:
        pool: the pool whose settings it takes over.
    """

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__(pool.kernel_size, pool.stride, pool.padding)

    @staticmethod
    def serves(pool: nn.MaxPool2d) -> bool:
        """Return whether kernels exist for the settings of a pool."""
        kernel = _two(pool.kernel_size)
        plain = _two(pool.dilation) == (1, 1) and not pool.ceil_mode and not pool.return_indices
        return plain and kernel[0] * kernel[1] <= MOST_TAPS

    def to_ordinary(self) -> nn.MaxPool2d:
        """Return the ordinary pool."""
        return nn.MaxPool2d(self.kernel_size, self.stride, self.padding)

    def forward(self, x: Tensor) -> Tensor:
        """Pool `x`, shape (N, C, H, W)."""
        if x.dim() != 4:
            output: Tensor = super().forward(x)
            return output
        return max_pool2d(x, _two(self.kernel_size), _two(self.stride), _two(self.padding))


class BatchLastAvgPool2d(nn.AvgPool2d, BatchLast):
    """`nn.AvgPool2d`; see `serves` for the settings that it knows.

    Args:
        pool: the pool whose settings it takes over.
    """

    def __init__(self, pool: nn.AvgPool2d) -> None:
        super().__init__(
            pool.kernel_size, pool.stride, pool.padding, False, pool.count_include_pad, pool.divisor_override
        )

    @staticmethod
    def serves(pool: nn.AvgPool2d) -> bool:
        """Return whether kernels exist for the settings of a pool."""
        return not pool.ceil_mode and (pool.divisor_override is None or pool.divisor_override > 0)

    def to_ordinary(self) -> nn.AvgPool2d:
        """Return the ordinary pool."""
        return nn.AvgPool2d(
            self.kernel_size, self.stride, self.padding, False, self.count_include_pad, self.divisor_override
        )

    def forward(self, x: Tensor) -> Tensor:
        """Pool `x`, shape (N, C, H, W)."""
        if x.dim() != 4:
            return super().forward(x)
        kernel = _two(self.kernel_size)
        divisor = self.divisor_override or (kernel[0] * kernel[1] if self.count_include_pad else None)
        return mean_pool2d(x, kernel, _two(self.stride), _two(self.padding), divisor=divisor)


class BatchLastAdaptiveAvgPool2d(nn.AdaptiveAvgPool2d, BatchLast):
    """`nn.AdaptiveAvgPool2d` to one position.

    Args:
        pool: the pool whose settings it takes over.
    """

    def __init__(self, pool: nn.AdaptiveAvgPool2d) -> None:
        super().__init__(pool.output_size)

    @staticmethod
    def serves(pool: nn.AdaptiveAvgPool2d) -> bool:
        """Return whether a pool leaves one position."""
        return pool.output_size in (1, (1, 1))

    def to_ordinary(self) -> nn.AdaptiveAvgPool2d:
        """Return the ordinary pool."""
        return nn.AdaptiveAvgPool2d(self.output_size)

    def forward(self, x: Tensor) -> Tensor:
        """Take the mean over the plane of `x`, shape (N, C, H, W)."""
        if x.dim() != 4:
            return super().forward(x)
        plane = (x.shape[2], x.shape[3])
        return mean_pool2d(x, plane, plane)


class FoldedReLU(BatchLast):
    """Where `nn.ReLU` stood that a norm before it applies: gives back its input.

    Args:
        inplace: as in the `nn.ReLU` that it replaces.

    Attributes:
        fold: while it holds, the norm applies ReLU; else this module does. None for always.
    """

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace
        self.fold: Fold | None = None

    def to_ordinary(self) -> nn.ReLU:
        """Return the ordinary module."""
        return nn.ReLU(self.inplace)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`, to which ReLU has been applied."""
        return x if _holds(self.fold) else F.relu(x, self.inplace)


class SharedReLU(nn.ReLU, BatchLast):
    """`nn.ReLU` that norms apply at some of its calls: it gives back what they say is rectified.

    Applied once more, as in a compiled model, ReLU changes nothing.

    Args:
        inplace: as in the `nn.ReLU` that it replaces.
    """

    def to_ordinary(self) -> nn.ReLU:
        """Return the ordinary module."""
        return nn.ReLU(self.inplace)

    def forward(self, x: Tensor) -> Tensor:
        """Apply ReLU to `x`, unless it was applied before."""
        if not torch.compiler.is_compiling() and getattr(x, _RECTIFIED, None) == version_of(x):
            return x
        return super().forward(x)


class FoldedDropout(nn.Dropout, BatchLast):
    """Where `nn.Dropout` stood that a norm before it applies: gives back its input.

    The norm asks it, at every call, for its rate and whether it trains.

    Args:
        dropout: the dropout whose settings it takes over.

    Attributes:
        fold: while it holds, the norm applies dropout; else this module does. None for always.
    """

    def __init__(self, dropout: nn.Dropout) -> None:
        super().__init__(dropout.p, dropout.inplace)
        self.fold: Fold | None = None

    def to_ordinary(self) -> nn.Dropout:
        """Return the ordinary module."""
        return nn.Dropout(self.p, self.inplace)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`, to which dropout has been applied."""
        return x if _holds(self.fold) else super().forward(x)


class BatchLastDropout(nn.Dropout, BatchLast):
    """`nn.Dropout`, with other random numbers and no mask in memory.

    Args:
        dropout: the dropout whose settings it takes over.
    """

    def __init__(self, dropout: nn.Dropout) -> None:
        super().__init__(dropout.p, dropout.inplace)

    def to_ordinary(self) -> nn.Dropout:
        """Return the ordinary module."""
        return nn.Dropout(self.p, self.inplace)

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements of `x`, shape (N, C, H, W) or (N, C, L)."""
        if not self.training or x.dim() not in (3, 4) or self.p >= 1:
            return super().forward(x)
        output = dropout(_as_planes(x), self.p, inplace=self.inplace)
        return output if x.dim() == 4 else output.squeeze(-1)


def _as_planes(x: Tensor) -> Tensor:
    """Return `x`, with two to four dimensions, with four: those at the end are of size one."""
    return x if x.dim() > 3 else x.reshape(*x.shape, *(1,) * (4 - x.dim()))


def _take_over(norm: nn.modules.batchnorm._BatchNorm, other: nn.modules.batchnorm._BatchNorm) -> None:
    """Give a norm without parameters and buffers those of another, and its settings."""
    norm.affine, norm.track_running_stats = other.affine, other.track_running_stats
    for name, parameter in other._parameters.items():
        norm.register_parameter(name, parameter)
    for name, buffer in other._buffers.items():
        norm.register_buffer(name, buffer)


def _reference(module: nn.Module | None) -> _Reference:
    return _nothing if module is None else ref(module)


def _nothing() -> None:
    return None


def _holds(fold: Fold | None) -> bool:
    return fold is None or fold.holds()


def _two(numbers: int | tuple[int, ...]) -> tuple[int, int]:
    return (numbers, numbers) if isinstance(numbers, int) else (numbers[0], numbers[1])
