"""Where kernels may be called directly, by a plain `torch.autograd.Function`, outside of the compiler.

An operator of `torch.library` costs several times what such a call does, which shows on small layers.
"""

from __future__ import annotations

import torch
from torch import Tensor


def serves(*tensors: Tensor | None) -> bool:
    """Return whether nothing traces, transforms or stands in for these tensors."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._are_functorch_transforms_active()
        and all(tensor is None or type(tensor) in (Tensor, torch.nn.Parameter) for tensor in tensors)
    )
