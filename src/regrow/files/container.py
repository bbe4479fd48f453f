"""One file of the format safetensors: tensors, and plain data in its header, with a checksum over both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from regrow.files.atomic import replace_file

__all__ = ["read", "write"]

VERSION = 1
"""Of the format."""

_ENTRY = "regrow"


def write(path: Path, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a file whole or not at all.

    Args:
        path: the file.
        content: what JSON can hold.
        tensors: by name, on the CPU, contiguous.

    Raises:
        ImportError: if the library safetensors is missing.
        OSError: if it cannot be written; an older file is as it was.
    """
    library = _library()
    # One entry: the library keeps no order among several, and equal models are to give equal files.
    envelope = {"version": VERSION, "checksum": _digest(_text(content), tensors), "content": content}
    made: bytes = library.save(dict(tensors), {_ENTRY: _text(envelope)})
    replace_file(path, lambda file: file.write(made))


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a file and check all of it.

    Nothing in it is run. Tensors lie within the file, which the library sees to, and the checksum is that of what is
    returned.

    Returns:
        The content and the tensors.

    Raises:
        ImportError: if the library safetensors is missing.
        OSError: if it cannot be read.
        ValueError: if it is damaged, no such file, or of another version.
    """
    library = _library()
    raw = path.read_bytes()  # once: what is checked must be what is returned
    try:
        tensors: dict[str, Tensor] = library.load(raw)
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        envelope = json.loads(header["__metadata__"][_ENTRY], parse_constant=_refuse)
        version, checksum, content = (envelope[key] for key in ("version", "checksum", "content"))
        good = isinstance(content, dict) and checksum == _digest(_text(content), tensors)
    except Exception:  # whatever a foreign file makes the library and the decoder of JSON raise
        raise ValueError(
            f"{path} is truncated, damaged or was not written by regrow.save: take another copy of it"
        ) from None
    if version != VERSION:
        raise ValueError(
            f"{path} has format {version!r}, and this version of regrow reads {VERSION}: install the other"
        )
    if not good:
        raise ValueError(f"{path} is damaged, for its checksum is another: take another copy of it")
    return content, tensors


def _library() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise ImportError("files of sparse models want the library safetensors: pip install 'regrow[files]'") from None
    return safetensors.torch


def _text(content: Any) -> str:
    return json.dumps(content, allow_nan=False, separators=(",", ":"))


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"\n{json.dumps(name)} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
