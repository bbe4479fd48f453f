"""The table of cases. A new method, model, optimizer or storage is one row, and every general test runs over it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import reference
import regrow
from regrow.storage import Storage

EVERY, STEPS = 2, 8  # the schedule of the general tests: short, with several updates


@dataclass(frozen=True)
class Method:
    """A row of METHODS: the name of a registered method, and what its card promises."""

    name: str
    needs_momentum: bool = False
    resets_state: bool = False  # a grown weight's optimizer state starts anew; else it keeps what it has
    keeps_returning: bool = False  # a weight that is dropped and grown in the same update stays as it was
    needs_gradient: bool = False
    keeps_layers: bool = True  # each layer gets back as many weights as it dropped
    keeps_number: bool = True  # the network has as many weights after an update; else the recipe's density says
    resets_momentum: bool = False  # and that of all weights of a layer that grows is zero
    grows_all: bool = False  # every absent weight at times, so growth may not look at some alone
    due: tuple[int, ...] = ()  # steps after which updates are due with every=2, steps=8
    settings: Mapping[str, Any] = field(default_factory=dict)  # of its factory, where tests want others than its own

    @property
    def updates(self) -> tuple[int, ...]:
        """Steps that carry out the updates."""
        return tuple(step + 1 for step in self.due)

    @property
    def factory(self) -> Callable[..., regrow.Recipe]:
        factory = regrow.methods.METHODS[self.name]
        return partial(factory, **self.settings) if self.settings else factory

    def recipe(self) -> regrow.Recipe:
        return self.factory(every=EVERY, steps=STEPS)


METHODS = [
    Method("static"),
    Method("set", resets_state=True, due=(2, 4, 6)),
    Method("rigl", needs_gradient=True, resets_state=True, keeps_returning=True, due=(2, 4)),
    Method("sparse-momentum", needs_momentum=True, keeps_returning=True, keeps_layers=False, due=(2, 4, 6)),
    Method("dsr", resets_state=True, keeps_layers=False, due=(2, 4, 6)),
    Method("gmp", keeps_layers=False, keeps_number=False, due=(4, 6)),
    Method(
        "granet",
        needs_gradient=True,
        resets_state=True,
        keeps_returning=True,
        keeps_layers=False,
        keeps_number=False,
        due=(2, 4, 6),
    ),
    Method("itop", resets_state=True, keeps_returning=True, due=(2, 4, 6)),
    # a factor with which sums are exact, so that ties are ties
    Method("mest", needs_gradient=True, resets_state=True, due=(2, 4), settings={"gradient": 1 / 128}),
    Method(
        "acdc",
        resets_state=True,
        resets_momentum=True,
        keeps_layers=False,
        keeps_number=False,
        grows_all=True,
        due=(2, 4, 6),
    ),
    Method("srigl", needs_gradient=True, resets_state=True, keeps_returning=True, due=(2, 4)),
    Method("chts", resets_state=True, keeps_returning=True, due=(2, 4, 6)),
    # so many candidates that all absent weights are
    Method(
        "gse", needs_gradient=True, resets_state=True, keeps_layers=False, due=(2, 4, 6), settings={"per_nonzero": 1e6}
    ),
]


@dataclass(frozen=True)
class StepMethod:
    """A row of STEP_METHODS: a registered method that acts in every step, with settings that make it move quickly."""

    name: str
    settings: dict[str, Any]
    density: float = 1.0  # of the model that it is given
    keeps: float | None = None  # the density of every layer after every step; None where it is an outcome

    def rule(self, **changes: Any) -> regrow.StepRule:
        return regrow.methods.STEP_METHODS[self.name](**{"every": EVERY, "steps": STEPS, **self.settings, **changes})


STEP_METHODS: list[StepMethod] = [
    StepMethod("top-kast", {"density": 0.25, "backward_density": 0.5, "penalty": 0.02}, keeps=0.25),
    StepMethod("sr-ste", {"penalty": 0.02}, keeps=0.5),
    StepMethod("soft-threshold", {"initial": -3.0, "decay": 0.05}),
    StepMethod("deep-r", {"drift": 0.05, "noise": 0.05}, density=0.25, keeps=0.25),
]

# For each backend of `sparsify` the storage that it means, as the summary names it.
STORAGES = {storage.backend: str(storage) for storage in Storage}


class Attention(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **settings)

    def forward(self, x: Tensor) -> Tensor:
        key, value = x[..., : self.attention.kdim], x[..., : self.attention.vdim]
        return self.attention(x, key, value, need_weights=False)[0]


class Conv1D(nn.Module):
    """A linear layer with a weight (inputs, outputs), as `transformers.pytorch_utils.Conv1D` is: known by its name."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf) / nx**0.5)
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.reshape(-1, self.nx), self.weight).view(*x.shape[:-1], self.nf)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **settings: Any) -> None:
        super().__init__()
        self.core = kind(6, 8, batch_first=True, **settings)
        self.head = nn.LazyLinear(3)
        self(torch.zeros(1, 2, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.core(x)[0])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(8, 8), nn.Linear(8, 8)
        self.decode.weight = self.encode.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x).tanh())


class TiedToEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.hidden = nn.Embedding(10, 8), nn.Linear(8, 8)
        self.decode = nn.Linear(8, 10, bias=False)
        self.decode.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.hidden(self.embed(x)).tanh())


@dataclass(frozen=True)
class Model:
    """A row of MODELS: how to build it, the shape of one input, and the weights that become sparse."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    weights: tuple[str, ...]
    vocabulary: int = 0
    sparse: bool = False  # whether sparse storage can hold all of these weights

    def inputs(self, seed: int, batch: int = 4) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        if self.vocabulary:
            return torch.randint(self.vocabulary, (batch, *self.shape), generator=generator)
        return torch.randn(batch, *self.shape, generator=generator)


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 5))


def _conv(kind: type[nn.Module], *, groups: int = 1) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(kind(4, 8, 3, padding=1), nn.ReLU(), kind(8, 4, 3, padding=1, groups=groups))


MODELS = [
    Model("mlp", _mlp, (8,), ("0.weight", "3.weight"), sparse=True),
    Model(
        "inputs-first",
        lambda: nn.Sequential(Conv1D(12, 8), nn.ReLU(), Conv1D(5, 12)),
        (3, 8),
        ("0.weight", "2.weight"),
        sparse=True,
    ),
    Model("conv1d", _conv(nn.Conv1d), (4, 5), ("0.weight", "2.weight"), sparse=True),
    Model("conv2d", _conv(nn.Conv2d), (4, 4, 3), ("0.weight", "2.weight"), sparse=True),
    Model("conv3d", _conv(nn.Conv3d), (4, 3, 3, 2), ("0.weight", "2.weight")),
    Model("grouped", _conv(nn.Conv2d, groups=4), (4, 4, 3), ("0.weight", "2.weight"), sparse=True),
    Model("transposed1d", _conv(nn.ConvTranspose1d), (4, 5), ("0.weight", "2.weight")),
    Model("transposed2d", _conv(nn.ConvTranspose2d), (4, 4, 3), ("0.weight", "2.weight")),
    Model("transposed3d", _conv(nn.ConvTranspose3d), (4, 3, 3, 2), ("0.weight", "2.weight")),
    Model("attention", Attention, (3, 8), ("attention.in_proj_weight", "attention.out_proj.weight")),
    Model(
        "cross-attention",
        lambda: Attention(kdim=6, vdim=4),
        (3, 8),
        (*(f"attention.{part}_proj_weight" for part in "qkv"), "attention.out_proj.weight"),
    ),
    Model(
        "lstm",
        lambda: Recurrent(nn.LSTM, proj_size=4),
        (3, 6),
        ("core.weight_ih_l0", "core.weight_hh_l0", "core.weight_hr_l0", "head.weight"),
    ),
    Model(
        "gru",
        lambda: Recurrent(nn.GRU, bidirectional=True),
        (3, 6),
        (*(f"core.weight_{part}_l0{way}" for way in ("", "_reverse") for part in ("ih", "hh")), "head.weight"),
    ),
    Model("tied", Tied, (8,), ("encode.weight",)),
    Model("tied-to-embedding", TiedToEmbedding, (3,), ("hidden.weight",), vocabulary=10),
]


@dataclass(frozen=True)
class Optimization:
    """A row of OPTIMIZERS: the class, its settings, and whether it keeps momentum with them."""

    name: str
    kind: type[Optimizer]
    settings: dict[str, Any]
    keeps_momentum: bool = True

    def build(self, parameters: Iterable[Any]) -> Optimizer:
        return self.kind(parameters, **self.settings)


_NESTEROV = {"lr": 0.1, "momentum": 0.9, "nesterov": True}
_ADAM = {"lr": 0.01, "weight_decay": 0.01}

OPTIMIZERS = [
    Optimization("sgd", torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.01}, keeps_momentum=False),
    Optimization("sgd-momentum", torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    Optimization("sgd-nesterov", torch.optim.SGD, {**_NESTEROV, "weight_decay": 0.01}),
    Optimization("sgd-nesterov-foreach", torch.optim.SGD, {**_NESTEROV, "foreach": True}),
    Optimization("sgd-nesterov-fused", torch.optim.SGD, {**_NESTEROV, "fused": True}),
    Optimization("adam", torch.optim.Adam, {**_ADAM, "amsgrad": True}),
    Optimization("adam-fused", torch.optim.Adam, {**_ADAM, "fused": True}),
    Optimization("adamw-foreach", torch.optim.AdamW, {**_ADAM, "foreach": True}),
    Optimization("nadam", torch.optim.NAdam, _ADAM),
    Optimization("radam", torch.optim.RAdam, _ADAM),
    Optimization("adamax", torch.optim.Adamax, _ADAM),
    Optimization("rmsprop-momentum", torch.optim.RMSprop, {**_ADAM, "momentum": 0.9}),
    Optimization("rmsprop", torch.optim.RMSprop, _ADAM, keeps_momentum=False),
    Optimization("adagrad", torch.optim.Adagrad, _ADAM, keeps_momentum=False),
    Optimization("adadelta", torch.optim.Adadelta, {"weight_decay": 0.01}, keeps_momentum=False),
    Optimization("rprop", torch.optim.Rprop, {"lr": 0.01}, keeps_momentum=False),
]

FUSED = [case for case in OPTIMIZERS if case.settings.get("fused")]
STORED = [(m, s) for s in STORAGES for m in MODELS if s == "masked" or m.sparse]


def _fits(method: Method, optimization: Optimization) -> bool:
    return optimization.keeps_momentum or not method.needs_momentum


def _in_turn(number: int) -> Method:
    """Return the method that an optimizer meets whatever the others do."""
    fitting = [method for method in METHODS[1:4] if _fits(method, OPTIMIZERS[number])]
    return fitting[number % len(fitting)]


# What an update makes of an optimizer's state hangs on the method only by what it resets. So every method meets two
# optimizers, and every optimizer one method; all else is slow.
_ENOUGH = ("sgd-nesterov", "adamw-foreach")
COMPATIBLE = [
    pytest.param(m, o, marks=() if o.name in _ENOUGH or m is _in_turn(number) else pytest.mark.slow)
    for m in METHODS
    for number, o in enumerate(OPTIMIZERS)
    if _fits(m, o)
]


def method(name: str) -> Method:
    return next(row for row in METHODS if row.name == name)


def model(name: str) -> Model:
    return next(row for row in MODELS if row.name == name)


def optimization(name: str) -> Optimization:
    return next(row for row in OPTIMIZERS if row.name == name)


def _name(row: Any) -> str:
    return row if isinstance(row, str) else row.name


each_method = pytest.mark.parametrize("method", METHODS, ids=_name)
each_step_method = pytest.mark.parametrize("method", STEP_METHODS, ids=_name)
each_method_with_reference = pytest.mark.parametrize(
    "method", [row for row in METHODS if row.name in reference.UPDATES], ids=_name
)
each_block = pytest.mark.parametrize("block", [(4, 1), (2, 2)], ids=str)
each_model = pytest.mark.parametrize("model", MODELS, ids=_name)
each_storage = pytest.mark.parametrize("storage", STORAGES)
each_stored = pytest.mark.parametrize(("model", "storage"), STORED, ids=_name)
each_fused = pytest.mark.parametrize("optimization", FUSED, ids=_name)
each_compatible = pytest.mark.parametrize(("method", "optimization"), COMPATIBLE, ids=_name)


class Run:
    """A sparse model in training: the few lines of an ordinary loop, on inputs that the step number decides."""

    def __init__(
        self,
        model: Model,
        recipe: regrow.Recipe,
        optimization: Optimization,
        *,
        storage: str = "masked",
        density: float | None = None,
        block: tuple[int, int] = (1, 1),
        seed: int = 0,
        prepare: Callable[[nn.Module], nn.Module] = lambda module: module,
        **settings: Any,
    ) -> None:
        torch.manual_seed(seed)
        if density is None:
            density = 0.3 if recipe.density is None else recipe.density(0)
        self.case = model
        self.model = prepare(regrow.sparsify(model.build(), density, block=block, backend=storage, seed=seed))
        self.optimizer = optimization.build(self.model.parameters())
        self.topology = regrow.TopologyUpdater(self.model, self.optimizer, recipe, seed=seed, **settings)

    def loss(self, seed: int) -> Tensor:
        inputs = self.case.inputs(seed)
        if inputs.is_floating_point():
            inputs = inputs.to(next(self.model.parameters()).dtype)
        return (self.model(inputs) - 1).square().mean()

    def step(self, seed: int) -> None:
        self.optimizer.zero_grad()
        self.loss(seed).backward()
        self.optimizer.step()

    def train(self, seeds: Iterable[int]) -> Run:
        for seed in seeds:
            self.step(seed)
        return self

    def state(self) -> dict[str, Any]:
        """Everything a checkpoint holds."""
        parts = {"model": self.model, "optimizer": self.optimizer, "topology": self.topology}
        return {name: part.state_dict() for name, part in parts.items()}


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a dense copy of every sparse weight as the model holds it, nothing corrected."""
    held = {**regrow.dense_state_dict(model), **dict(model.named_parameters())}
    return {name: held[name].detach().clone() for name in regrow.masks(model)}


def state_of(optimizer: Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """Return a copy of every tensor of the parameter's optimizer state that has its shape."""
    state = optimizer.state.get(parameter, {})
    return {name: t.clone() for name, t in state.items() if isinstance(t, Tensor) and t.shape == parameter.shape}


def assert_same(left: Any, right: Any) -> None:
    """Assert that two nested states are equal to the bit."""
    torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)
