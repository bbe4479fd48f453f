"""The trainings whose steps are compared: sparse ones, checked, dense ones in their faster form, other libraries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from statistics import median

from torch import nn

import regrow
from regrow.experiments.bench.common.options import block_name
from regrow.experiments.bench.common.turns import FEWEST_ROUNDS, take_turns
from regrow.experiments.bench.steps.check import check
from regrow.experiments.bench.steps.compile import CompileError, compile_training
from regrow.experiments.bench.steps.peer_networks import PEERS
from regrow.experiments.bench.steps.report import COMPILED, EAGER, Settings
from regrow.experiments.bench.steps.training import (
    BFLOAT16,
    DENSE,
    SPARSE,
    Batches,
    Training,
    dense_training,
    sparse_model,
    sparse_training,
)
from regrow.experiments.train.config import TrainConfig, override

__all__ = ["Contenders", "Dense", "Sparse", "prepare"]

_BESIDE_GROWTH = "window:22"


@dataclass(frozen=True)
class Sparse:
    """A sparse training.

    Attributes:
        config: the settings that it is of.
        backend: storage of its weights.
        training: its steps.
        bfloat16: whether under autocast to bfloat16.
    """

    config: TrainConfig
    backend: str
    training: Training
    bfloat16: bool = False


@dataclass(frozen=True)
class Dense:
    """A dense training in both of its forms.

    Attributes:
        eager: as it is.
        form: name of the faster form.
        training: that form.
        milliseconds: of a step of each form that ran.
        left_out: what did not run, and why.
    """

    eager: Training
    form: str
    training: Training
    milliseconds: dict[str, float]
    left_out: dict[str, str]


@dataclass(frozen=True)
class Contenders:
    """All that is compared, by name.

    Attributes:
        sparse: `sparse`, and those beside it: with units of several weights, everything stored sparsely, or under
            autocast to bfloat16.
        dense: `dense`, and `bfloat16` unless it was not wanted.
        peers: other libraries.
        left_out: what cannot run, and why.
    """

    sparse: Mapping[str, Sparse]
    dense: Mapping[str, Dense]
    peers: Mapping[str, Training]
    left_out: Mapping[str, str]

    @property
    def trainings(self) -> dict[str, Training]:
        """What takes turns."""
        dense, *others = self.dense
        return {
            dense: self.dense[dense].training,
            **{name: each.training for name, each in self.sparse.items()},
            **{name: self.dense[name].training for name in others},
            **self.peers,
        }


def prepare(config: TrainConfig, model: nn.Module, batches: Batches, settings: Settings) -> Contenders:
    """Make and check what is compared.

    Args:
        config: the preset's settings, as they are to be measured.
        model: its dense network, which stays as it is.
        batches: what all train on.
        settings: how to measure.

    Raises:
        WrongResultError: if a sparse network computes another loss than masked storage.
        ValueError: if the storage cannot hold the network.
    """
    wanted = {SPARSE: (config, settings.backend), **_beside(config, settings)}
    sparse = {name: _sparse(each, backend, model, batches) for name, (each, backend) in wanted.items()}
    if settings.sparse_bfloat16:
        for name, (each, backend) in wanted.items():
            sparse[f"{name} {BFLOAT16}"] = _sparse(each, backend, model, batches, bfloat16=True)
    kinds = (DENSE, BFLOAT16) if settings.bfloat16 else (DENSE,)
    dense = {kind: _dense(kind, config, model, batches, settings) for kind in kinds}
    peers, missing = _peers(config, model, sparse[SPARSE].training.model, batches, settings.peers)
    left_out = {name: why for each in dense.values() for name, why in each.left_out.items()}
    return Contenders(sparse, dense, peers, {**left_out, **missing})


def _beside(config: TrainConfig, settings: Settings) -> dict[str, tuple[TrainConfig, str]]:
    """Return settings and storage of the sparse trainings beside, by name."""
    found = {
        block_name(block): (override(config, {"block": f"{block[0]}x{block[1]}"}), settings.backend)
        for block in settings.blocks
    }
    if settings.all_sparse:
        found[f"cpu, {_BESIDE_GROWTH}"] = (override(config, {"growth": _BESIDE_GROWTH}), "cpu")
    return found


def _sparse(config: TrainConfig, backend: str, model: nn.Module, batches: Batches, *, bfloat16: bool = False) -> Sparse:
    network = sparse_model(config, model, batches, backend, bfloat16=bfloat16)
    check(model, network, batches, config)
    if not any(layer.storage == SPARSE for layer in regrow.summary(network).layers):
        config = override(config, {"growth": "exact"})  # masked storage has all that growth reads
    return Sparse(config, backend, sparse_training(config, network, batches, bfloat16=bfloat16), bfloat16)


def _dense(kind: str, config: TrainConfig, model: nn.Module, batches: Batches, settings: Settings) -> Dense:
    bfloat16 = kind == BFLOAT16
    eager = dense_training(config, deepcopy(model), batches, bfloat16=bfloat16)
    forms, left_out = {EAGER: eager}, {}
    if settings.compile_seconds > 0:
        try:
            forms[COMPILED] = compile_training(eager, config, batches, settings.compile_seconds, bfloat16=bfloat16)
        except CompileError as error:
            left_out[f"{kind} compiled"] = str(error)
    times = take_turns({name: each.step for name, each in forms.items()}, FEWEST_ROUNDS, 0)
    medians = {name: median(each) for name, each in times.items()}
    form = min(medians, key=lambda name: medians[name])
    return Dense(eager, form, forms[form], medians, left_out)


def _peers(
    config: TrainConfig, model: nn.Module, sparse: nn.Module, batches: Batches, names: Iterable[str]
) -> tuple[dict[str, Training], dict[str, str]]:
    """Return the trainings of other libraries, and for those that cannot, why."""
    found, left_out = {}, {}
    for name in names:
        try:
            training = PEERS[name](config, model, regrow.masks(sparse), batches)
            training.step()  # what cannot train says so here, not among the timings of the others
            found[name] = training
        except (ImportError, RuntimeError, ValueError) as error:
            left_out[name] = " ".join(str(error).split())[:160]
    return found, left_out
