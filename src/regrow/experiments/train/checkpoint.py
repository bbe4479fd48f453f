"""Checkpoints: whole, written atomically, the last two kept, checked on load."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, BinaryIO

import torch

from regrow.experiments.errors import UserError
from regrow.experiments.files import SEAL_BYTES, remove_left_overs, seal, seal_is_good, write_atomically

__all__ = ["list_checkpoints", "load_checkpoint", "load_latest", "save_checkpoint"]

_FORMAT = "regrow-checkpoint"
_VERSION = 3
_KEPT = 2
_MEND = "delete it and --resume from the one before, or start again with another --out"


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write the checkpoint of a step and delete all but it and the one before.

    Those of later steps go too: they were damaged, or the run would not have gone on from an earlier one.

    Args:
        folder: where checkpoints lie; made if missing.
        step: optimizer steps taken, which names the file.
        state: tensors, numbers, strings, and lists and dicts of them.

    Raises:
        SaveError: if it cannot be written; the earlier checkpoints are as they were.
    """
    path = folder / f"step-{step:09d}.pt"
    content = {"format": _FORMAT, "version": _VERSION, "state": state}

    def write(file: BinaryIO) -> None:
        torch.save(content, file)
        seal(file)

    write_atomically(path, write)
    before = [earlier for earlier in list_checkpoints(folder) if earlier.name <= path.name]
    for other in set(list_checkpoints(folder)) - set(before[-_KEPT:]):
        other.unlink(missing_ok=True)
    remove_left_overs(folder)
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, the oldest first."""
    return sorted(folder.glob("step-*.pt"))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint and check all of it, on the CPU.

    Raises:
        UserError: if the file is truncated, damaged, or not a checkpoint of this library.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> load_checkpoint(save_checkpoint(folder, 7, {"weights": torch.ones(2)}))
        {'weights': tensor([1., 1.])}
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read ({error.strerror}): {_MEND}") from None
    # What is loaded must be what was verified, so it is read once. The sums within a zip file do not cover its
    # directory: with one bit changed there PyTorch leaves a tensor as it was allocated.
    if not seal_is_good(io.BytesIO(raw)):
        raise UserError(f"checkpoint {path} is truncated, damaged or not one of this version of regrow: {_MEND}")
    try:
        content = torch.load(io.BytesIO(raw[:-SEAL_BYTES]), map_location="cpu", weights_only=True)
        if content["format"] != _FORMAT:
            raise KeyError(_FORMAT)
        version, state = content["version"], content["state"]
    except Exception:  # whatever a foreign file makes torch.load raise
        raise UserError(f"{path} is not a checkpoint of regrow: take another --out for a new run") from None
    if version != _VERSION:
        raise UserError(f"checkpoint {path} has format {version}, this version reads {_VERSION}: install the other one")
    loaded: dict[str, Any] = state
    return loaded


def load_latest(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the state of the newest sound checkpoint, and a warning for each newer one that is not.

    Returns:
        The state, or None if there are no checkpoints at all, and the warnings.

    Raises:
        UserError: if there are checkpoints and none is sound.
    """
    warnings: list[str] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            return load_checkpoint(path), warnings
        except UserError as error:
            warnings.append(str(error))
    if warnings:
        raise UserError(f"no checkpoint in {folder} is sound; the newest: {warnings[0]}")
    return None, []
