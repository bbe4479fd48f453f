"""Sparse training in the Trainer of the library transformers, and its folders of weights.

Install the extra: `pip install 'regrow[transformers]'`.

Example:
    >>> import regrow
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> from regrow.integrations.transformers import TopologyCallback
    >>> config = GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=8, vocab_size=32)
    >>> model = regrow.sparsify(GPT2LMHeadModel(config), density=0.25)
    >>> callback = TopologyCallback(lambda steps: regrow.sparse_momentum(every=max(steps // 20, 1), steps=steps))
    >>> # Trainer(model, arguments, train_dataset=..., callbacks=[callback]).train(resume_from_checkpoint=...)
"""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

import regrow
from regrow.core.recipe import Recipe
from regrow.core.step_rule import StepRule
from regrow.storage import sparse_weights
from regrow.topology.step_updater import StepUpdater
from regrow.topology.updater import OnUpdate, TopologyUpdater

__all__ = ["TopologyCallback", "from_pretrained", "load_masks", "save_pretrained"]

_MASK = "_mask"

_NO_METHOD = (
    "TopologyCallback has no method: give it one; with restore_callback_states_from_checkpoint=True the Trainer makes "
    "callbacks anew without it, so leave that False: the topology goes on without it"
)
_NO_STATE = (
    "this checkpoint of step {} holds no state of the topology, whose schedule would begin again: resume from one that "
    "a Trainer with a TopologyCallback wrote"
)
_SHARDED = "{} shards parameters, and a topology is over whole ones: take processes without it, or one device"
_NO_RULE = (
    "a method that acts in every step cannot resume in the Trainer, which loads the optimizer's state before the "
    "updater is made: take a recipe, or a loop of your own"
)

Method = Recipe | StepRule
"""What an updater carries out: a recipe, or a rule of every step."""


class TopologyCallback(TrainerCallback, ExportableState):
    """Keep a sparse model sparse, and update its topology, while `transformers.Trainer` trains it.

    When training begins it makes the updater on the Trainer's own optimizer, and when training ends it removes it.
    The topology's state goes into the file `trainer_state.json` of every checkpoint, and a training that resumes goes
    on with it. Gradient accumulation, clipping and autocast are the Trainer's, and stay as they are.

    While it is among a Trainer's callbacks, checkpoints, `trainer.save_model()` and `model.save_pretrained()` write
    what `save_pretrained` of this module does: dense weights, which any `from_pretrained` loads, and masks.

    Args:
        method: a recipe, or a rule, whose training cannot resume; or a function that makes it from the number of steps
            of the training, which the Trainer counts.
        seed: as for `regrow.TopologyUpdater`.
        on_update: as for `regrow.TopologyUpdater`.
        weights: as for `regrow.TopologyUpdater`.

    Attributes:
        topology: the updater of the training that runs or ran last; None before.

    Example:
        >>> import regrow
        >>> callback = TopologyCallback(lambda steps: regrow.rigl(every=100, steps=steps))
        >>> callback.topology is None
        True
    """

    def __init__(
        self,
        method: Method | Callable[[int], Method] | None = None,
        *,
        seed: int = 0,
        on_update: OnUpdate | None = None,
        weights: Sequence[str] | None = None,
    ) -> None:
        self._method = method
        self._settings: dict[str, Any] = {"seed": seed, "on_update": on_update, "weights": weights}
        self.topology: TopologyUpdater | StepUpdater | None = None

    def state(self) -> dict[str, Any]:
        """Return the topology's state as the Trainer writes it."""
        saved = None if self.topology is None else _as_text(self.topology.state_dict())
        return {"args": {}, "attributes": {"saved": saved}}

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **others: Any,
    ) -> None:
        """Let the model save itself dense, with its masks."""
        _let_save_dense(model)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        **others: Any,
    ) -> None:
        """Make the updater; where the training resumes, go on with the state that was saved.

        Raises:
            ValueError: if a checkpoint holds no state of the topology, a rule is to go on, the Trainer has made this
                callback anew, or parameters are sharded.
        """
        assert model is not None
        assert optimizer is not None
        if self._method is None:
            raise ValueError(_NO_METHOD)
        for sharding in ("fsdp", "deepspeed"):
            if getattr(args, sharding, None):
                raise ValueError(_SHARDED.format(sharding))
        # A recipe and a rule are objects of settings, which cannot be called.
        method = self._method(state.max_steps) if callable(self._method) else self._method
        saved = _saved_in(state, type(self).__name__) if state.global_step else None
        if state.global_step and (saved is None or not isinstance(method, Recipe)):
            raise ValueError(_NO_STATE.format(state.global_step) if saved is None else _NO_RULE)
        _let_save_dense(model)
        self._remove()
        # Accelerate's stands around the one that steps.
        optimizer = getattr(optimizer, "optimizer", optimizer)
        updater: Any = TopologyUpdater if isinstance(method, Recipe) else StepUpdater
        # The state that was loaded is in the shapes of the topology that goes on, not of one that begins.
        with nullcontext() if saved is None else _set_aside(optimizer.state):
            self.topology = updater(model, optimizer, method, **self._settings)
        if saved is not None:
            self.topology.load_state_dict(_from_text(saved))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Remove the updater: the model may be trained on by others, or made dense."""
        self._remove()

    def _remove(self) -> None:
        if self.topology is not None:
            self.topology.remove()


def save_pretrained(model: PreTrainedModel, folder: str | PathLike[str], **settings: Any) -> None:
    """Write a sparse model as its dense form, which any `from_pretrained` loads, with its masks.

    Beside each sparse weight stands its mask under the weight's name and `_mask`, bool; `from_pretrained` of
    transformers reports these names as unexpected and leaves them out. The size is that of the dense model.

    Args:
        model: a model from `regrow.sparsify`, in either storage; a dense one is saved as ever.
        folder: where to.
        **settings: as for `model.save_pretrained`.

    Example:
        >>> import tempfile, regrow
        >>> from transformers import GPT2Config, GPT2Model
        >>> config = GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=8, vocab_size=32)
        >>> model = regrow.sparsify(GPT2Model(config), density=0.25)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_pretrained(model, folder)
        ...     again = from_pretrained(GPT2Model, folder)
        >>> str(regrow.summary(again)) == str(regrow.summary(model))
        True
    """
    if "state_dict" not in settings:
        settings["state_dict"] = _dense_with_masks(model)
    type(model).save_pretrained(model, folder, **settings)


def load_masks(folder: str | PathLike[str]) -> dict[str, Tensor]:
    """Return the masks in a folder that `save_pretrained` or a Trainer with a `TopologyCallback` wrote.

    Returns:
        For each sparse weight by its name a bool tensor in its dense shape, as `regrow.sparsify(masks=...)` takes it.

    Raises:
        ValueError: if there are none, or the folder holds sparse storage as it is.
    """
    names: set[str] = set()
    found: dict[str, Tensor] = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            inside = list(opened.keys())
            found.update({name: opened.get_tensor(name) for name in inside if name.endswith(_MASK)})
            names.update(inside)
    if any(name.endswith(".values") and f"{name.removesuffix('values')}index" in names for name in names):
        raise ValueError(
            f"{folder} holds weights in sparse storage, which from_pretrained does not know: it would leave them "
            "random; write the folder by regrow.integrations.transformers.save_pretrained(model, folder)"
        )
    masks = {name.removesuffix(_MASK): mask for name, mask in found.items() if name.removesuffix(_MASK) in names}
    if not masks:
        raise ValueError(f"{folder} holds no masks: regrow.integrations.transformers.save_pretrained writes them")
    return masks


def from_pretrained(
    kind: Any, folder: str | PathLike[str], *, sparsify: Mapping[str, Any] | None = None, **settings: Any
) -> Any:
    """Return the sparse model that a folder holds.

    Args:
        kind: class of the model, or one of transformers' `AutoModel...` classes.
        folder: as `save_pretrained` or a Trainer with a `TopologyCallback` wrote it.
        sparsify: settings of `regrow.sparsify` beside the masks, as `{"backend": "masked"}`.
        **settings: as for `kind.from_pretrained`.

    Raises:
        ValueError: if the folder holds no masks, or sparse storage as it is, which would come out random.
    """
    saved = load_masks(folder)
    model = kind.from_pretrained(folder, **settings)
    return regrow.sparsify(model, masks=_of_model(saved, model), **(sparsify or {}))


class _SavesDense:
    """What stands in the place of a model's `save_pretrained`: the same, of the dense form with masks."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def __call__(
        self, save_directory: str | PathLike[str], is_main_process: bool = True, state_dict: Any = None, **settings: Any
    ) -> None:
        if state_dict is not None:
            settings["state_dict"] = state_dict
        save_pretrained(self._model, save_directory, is_main_process=is_main_process, **settings)


def _let_save_dense(model: nn.Module | None) -> None:
    """Have a sparse model of transformers save itself in the form that `from_pretrained` loads."""
    if isinstance(model, PreTrainedModel) and sparse_weights(model):
        model.__dict__["save_pretrained"] = _SavesDense(model)


def _dense_with_masks(model: nn.Module) -> dict[str, Any]:
    """Return a state dict that the sparse model loads in each storage, and the dense one but for the masks."""
    found = {name + _MASK: mask for name, mask in regrow.masks(model).items()}
    return {**regrow.dense_state_dict(model), **found}


def _of_model(masks: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return masks by the names of a model that may be the body of the one they are of, or have that as its body."""
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    body = getattr(model, "base_model_prefix", "") + "."
    fitting = {}
    for name, mask in masks.items():
        known = next((each for each in (name, name.removeprefix(body), body + name) if each in names), None)
        if known is not None:
            fitting[known] = mask
    return fitting


def _saved_in(state: TrainerState, callback: str) -> str | None:
    """Return the topology's state in a checkpoint of a Trainer; None if there is none."""
    found: Any = state.stateful_callbacks or {}
    found = found.get(callback) or {}
    saved: str | None = found.get("attributes", {}).get("saved")
    return saved


@contextmanager
def _set_aside(state: dict[Any, Any]) -> Iterator[None]:
    """Have an optimizer without state for some time."""
    kept = dict(state)
    state.clear()
    try:
        yield
    finally:
        state.update(kept)


def _as_text(state: Mapping[str, Any]) -> str:
    """Return a state of plain values and tensors as text, as JSON holds it."""
    file = io.BytesIO()
    torch.save(state, file)
    return base64.b64encode(zlib.compress(file.getvalue())).decode("ascii")


def _from_text(text: str) -> Any:
    return torch.load(io.BytesIO(zlib.decompress(base64.b64decode(text))), weights_only=True)
