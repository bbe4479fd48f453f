"""A network that was trained, from the folder of its run or from a file: to evaluate it, and to write it elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import regrow
from regrow.experiments import data
from regrow.experiments.errors import SaveError, UserError
from regrow.experiments.files import write_atomically
from regrow.experiments.models.layers import ImageShape
from regrow.experiments.train.checkpoint import load_latest
from regrow.experiments.train.config import TrainConfig, read_config
from regrow.experiments.train.evaluate import evaluate
from regrow.experiments.train.loading import load_data
from regrow.experiments.train.network import build_network
from regrow.experiments.train.passes import Passes
from regrow.files.saving import read_notes

__all__ = ["Format", "Trained", "evaluate_trained", "export", "read_trained"]

Format = Literal["dense", "safetensors", "onnx"]


@dataclass(frozen=True)
class Trained:
    """A network that was trained.

    Attributes:
        config: the settings of its run.
        model: the network, sparse where it was, on the CPU.
        image_shape: channels, height and width of one input.
        classes: the number of logits.
    """

    config: TrainConfig
    model: nn.Module
    image_shape: ImageShape
    classes: int


def read_trained(source: Path, data_root: Path | None = None) -> Trained:
    """Read a network; nothing that its run names is executed, and no random number is drawn.

    Args:
        source: folder of a run, of which the newest sound checkpoint is taken, or a file of `export`.
        data_root: folder with the data sets, for those that alone know how many classes they have.

    Raises:
        UserError: if there is none, it is damaged, or it says nothing of its network.
    """
    if not source.exists():
        raise UserError(f"there is no {source}: name the folder of a run, or a file of regrow export")
    with torch.random.fork_rng(devices=[]):
        return _of_run(source, data_root) if source.is_dir() else _of_file(source)


def evaluate_trained(trained: Trained, data_root: Path | None = None) -> tuple[float, float]:
    """Return the loss and the accuracy on the test set, computed as at the end of the run.

    Raises:
        UserError: if the data set cannot be had.
    """
    config = trained.config
    batches = load_data(config, data_root, torch.device("cpu")).test
    passes = Passes(trained.model.eval(), config, data.Share())
    loss, accuracy = evaluate(lambda images, labels: passes(images, labels, batches), batches, torch.device("cpu"))
    if loss is None or accuracy is None:
        raise UserError(f"{config.data} has no test samples: name another copy of it with --data")
    return loss, accuracy


def export(trained: Trained, form: Format, out: Path) -> None:
    """Write a network to a file, whole or not at all.

    Args:
        trained: the network.
        form: "dense" is the state dict of the ordinary network, for `torch.load(..., weights_only=True)`;
            "safetensors" a file of `regrow.save`, with the settings of the run; "onnx" a program for other libraries.
        out: the file.

    Raises:
        UserError: if a library is missing.
        SaveError: if it cannot be written.
    """
    model, config = trained.model, trained.config
    if form == "dense":
        state = regrow.dense_state_dict(model)
        write_atomically(out, lambda file: torch.save(state, file))
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if form == "onnx":
            regrow.export_onnx(model, torch.zeros(2, *trained.image_shape), out)
        else:
            notes = {"image_shape": list(trained.image_shape), "classes": trained.classes}
            regrow.save(model, out, notes={"config": config.model_dump(mode="json"), **notes})
    except ImportError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise SaveError(f"cannot write {out}: {error.strerror or error}") from error


def _of_run(folder: Path, data_root: Path | None) -> Trained:
    if not (folder / "config.yaml").exists():
        raise UserError(f"{folder} holds no run: name the folder of a run, or a file of regrow export")
    config = read_config(folder / "config.yaml")
    state, _ = load_latest(folder / "checkpoints")
    if state is None:
        raise UserError(f"{folder} holds no checkpoint yet: let the run go on with regrow train --resume")
    shape, classes = _shape_and_classes(config, data_root)
    model = _network(config, shape, classes)
    try:
        _make_sparse(model, state["model"], config)
        model.load_state_dict(state["model"])
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"the checkpoint in {folder} does not fit its settings: {str(error)[:300]}") from error
    return Trained(config, model, shape, classes)


def _of_file(path: Path) -> Trained:
    try:
        notes = read_notes(path)
        if notes is None or not {"config", "image_shape", "classes"} <= notes.keys():
            raise UserError(
                f"{path} does not say what network it holds: name a file of regrow export, or load it with regrow.load"
            )
        config, shape, classes = _settings(notes, path)
        model = _network(config, shape, classes)
        regrow.load(path, model)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ImportError, ValueError) as error:
        raise UserError(str(error)) from error
    return Trained(config, model, shape, classes)


def _settings(notes: Mapping[str, Any], path: Path) -> tuple[TrainConfig, ImageShape, int]:
    try:
        channels, height, width, classes = (int(number) for number in (*notes["image_shape"], notes["classes"]))
        return TrainConfig(**notes["config"]), (channels, height, width), classes
    except (TypeError, ValueError):
        raise UserError(f"{path} holds other settings than this version of regrow has: install the other") from None


def _network(config: TrainConfig, shape: ImageShape, classes: int) -> nn.Module:
    model, _ = build_network(config, shape, classes)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in PyTorch's stubs
    return model


def _make_sparse(model: nn.Module, state: Mapping[str, Any], config: TrainConfig) -> None:
    """Make a network sparse at the positions, and in the storage, that a state of it has."""
    masks: dict[str, Tensor] = {}
    backends: dict[str, Any] = {}
    for key, value in state.items():
        prefix = key.removesuffix("index")
        if key.endswith("_mask"):
            name, backend = key.removesuffix("_mask"), "masked"
            masks[name] = value
        elif key.endswith("index") and f"{prefix}values" in state:
            name, backend = f"{prefix}weight", "cpu"
            masks[name] = torch.zeros(model.get_parameter(name).shape, dtype=torch.bool)
            masks[name].view(-1)[value.long()] = True
        else:
            continue
        backends[escape(name)] = backend
    if masks:
        regrow.sparsify(model, masks=masks, block=config.block_shape, backend=backends)


def _shape_and_classes(config: TrainConfig, data_root: Path | None) -> tuple[ImageShape, int]:
    dataset = data.DATASETS.get(config.data)
    if dataset is None:
        raise UserError(f"there is no data set {config.data!r}: regrow data list shows all")
    size = config.image_size or dataset.image_size
    if dataset.classes is not None:
        return (dataset.channels, size, size), dataset.classes
    found = data.load(config.data, root=data_root, batch_size=1, valid_samples=0, image_size=config.image_size)
    return found.image_shape, found.classes
