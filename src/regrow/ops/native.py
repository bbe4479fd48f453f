"""The compiled kernels, where this installation has them."""

from __future__ import annotations

import os
import warnings
from importlib import import_module
from types import ModuleType

# torch comes first: the kernels then share its OpenMP threads.
import torch  # noqa: F401

__all__ = ["LARGEST", "MISSING", "ONE_THREAD", "instruction_set", "kernels", "on_one_thread", "use_instruction_set"]

MISSING = "regrow was installed without its compiled kernels; reinstall it where GCC 11 or Clang 14 is, or newer"
ONE_THREAD = "regrow's kernels were compiled without OpenMP and compute on one thread; reinstall it where OpenMP is"
# The largest size, stride and the like: these and their sums are 32-bit numbers to kernels.
LARGEST = 1 << 29


def _load() -> ModuleType | None:
    try:
        module = import_module("regrow._kernels")
    except ModuleNotFoundError:
        return None
    except ImportError as error:
        warnings.warn(
            f"regrow's compiled kernels do not load ({error}), so weights are stored masked: install what is missing, "
            "or regrow anew",
            stacklevel=2,
        )
        return None
    if "REGROW_INSTRUCTION_SET" in os.environ:
        module.use_instruction_set(os.environ["REGROW_INSTRUCTION_SET"])
    return module


_kernels = _load()


def kernels() -> ModuleType:
    """Return the compiled kernels.

    Raises:
        RuntimeError: if this installation has none.
    """
    if _kernels is None:
        raise RuntimeError(MISSING)
    return _kernels


def on_one_thread() -> bool:
    """Return whether there are kernels, and they cannot share their work among threads."""
    return _kernels is not None and not _kernels.openmp


def instruction_set() -> str:
    """Return which kernels are in use: `portable`, `avx2` or `avx512`.

    The best that the processor has is chosen when regrow is loaded; the environment variable
    `REGROW_INSTRUCTION_SET` names another.
    """
    return str(kernels().instruction_set())


def use_instruction_set(name: str) -> None:
    """Use the kernels of another instruction set.

    Args:
        name: `portable`, `avx2` or `avx512`.

    Raises:
        ValueError: if this processor or build has no such kernels.
    """
    kernels().use_instruction_set(name)
