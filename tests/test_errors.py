"""Every bad input gives one line that names the cause and the mend."""

import dataclasses
import re
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, RMSprop

import regrow
from cases import METHODS, Run, method, model, optimization
from regrow import sparsify

MOMENTUM = {"lr": 0.1, "momentum": 0.9}


def network():
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))


def sparse(**settings):
    return sparsify(network(), 0.3, **settings)


def updater(model=None, optimizer=SGD, name="sparse-momentum", **settings):
    model = sparse() if model is None else model
    return regrow.TopologyUpdater(model, optimizer(model.parameters(), **settings), method(name).recipe())


class Adafactor(torch.optim.Optimizer):
    """The groups of the one in `transformers`."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 1e-3, "beta1": None})


def twice():
    return sparsify(sparse(), 0.3)


def masks_without(name, **others):
    return {**{key: mask for key, mask in regrow.masks(sparse()).items() if key != name}, **others}


def weight_missing():
    model = sparse()
    regrow.TopologyUpdater(model, SGD(model[0].parameters(), **MOMENTUM), method("set").recipe())


def optimizer_of_another_model():
    regrow.TopologyUpdater(sparse(), SGD(sparse().parameters(), **MOMENTUM), method("set").recipe())


def one_group_without_momentum():
    model = sparse()
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "momentum": 0.0}]
    regrow.TopologyUpdater(model, SGD(groups, **MOMENTUM), method("sparse-momentum").recipe())


def second_updater():
    model = sparse()
    optimizer = SGD(model.parameters(), **MOMENTUM)
    for _ in range(2):
        regrow.TopologyUpdater(model, optimizer, method("set").recipe())


def two_masks_of_a_tied_weight():
    tied = model("tied").build()
    mask = torch.ones(8, 8, dtype=torch.bool)
    sparsify(tied, masks={"encode.weight": mask, "decode.weight": mask})


def all_to_the_first(layers, dropped, total):
    first, *others = layers
    return {first: total + 1000, **dict.fromkeys(others, 0), others[-1]: -1000}


def state_of_another_model():
    other = sparsify(nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 4)), 0.3)
    updater(**MOMENTUM).load_state_dict(updater(other, **MOMENTUM).state_dict())


def lazy():
    return sparsify(nn.Sequential(nn.LazyLinear(4)), 0.5)


BAD_DENSITY = {"zero": 0.0, "negative": -0.1, "above one": 1.1, "nan": float("nan"), "infinite": float("inf")}

# name: (what is called, the cause, the mend)
ERRORS = {
    "backend": (lambda: sparse(backend="no such"), "no backend 'no such'", "choose among auto, masked"),
    "distribution": (lambda: sparse(distribution="no such"), "no distribution 'no such'", "erdos-renyi-kernel"),
    **{
        f"density {name}": (partial(lambda d: sparsify(network(), d), value), "outside (0, 1]", "share of weights")
        for name, value in BAD_DENSITY.items()
    },
    "density too small": (lambda: sparsify(network(), 0.015), "too small to leave layer '2.weight'", "take 0.042 or"),
    "density and masks": (lambda: sparsify(network(), 0.3, masks={}), "either", "a density or masks"),
    "neither": (lambda: sparsify(network()), "either", "a density or masks"),
    "keep_dense": (lambda: sparse(keep_dense=["head*"]), "'head*' matches no weight", "there are 0.weight, 2.weight"),
    "keep_dense type": (lambda: sparse(keep_dense=[nn.Conv2d]), "'Conv2d' matches no weight", "there are 0.weight"),
    "include": (lambda: sparse(include=["head*"]), "include: 'head*' matches no weight", "there are 0.weight, 0.bias"),
    "nothing left": (lambda: sparse(keep_dense=["*"]), "no weight of this model", "name others in include"),
    "lazy": (lazy, "not initialised yet", "run one batch"),
    "sparse already": (twice, "sparse already", "call regrow.densify(model) first"),
    "unknown mask": (
        lambda: sparsify(network(), masks=masks_without("", other=torch.ones(2, dtype=torch.bool))),
        "masks are of another model: this one has no parameter 'other'",
        "the model they were taken from",
    ),
    "mask of another shape": (
        lambda: sparsify(
            network(), masks=masks_without("2.weight", **{"2.weight": torch.ones(6, 4, dtype=torch.bool)})
        ),
        "'2.weight' has shape (4, 6) here, but (6, 4)",
        "the model they were taken from",
    ),
    "mask of numbers": (
        lambda: sparsify(network(), masks={"0.weight": torch.full((6, 8), 0.5)}),
        "'0.weight' has dtype torch.float32",
        "bool",
    ),
    "no masks": (lambda: sparsify(network(), masks={}), "at least one weight", "by one of its names"),
    "two masks of a tied weight": (two_masks_of_a_tied_weight, "a shared weight", "by one of its names only"),
    "sgd without momentum": (partial(updater, lr=0.1), "SGD keeps none", "use SGD with momentum, Adam"),
    "adagrad": (partial(updater, optimizer=Adagrad), "Adagrad keeps none", "regrow.set, regrow.rigl"),
    "rmsprop without momentum": (partial(updater, optimizer=RMSprop), "RMSprop keeps none", "use SGD with momentum"),
    "adafactor": (partial(updater, optimizer=Adafactor), "Adafactor keeps none", "use SGD with momentum"),
    "one group without": (one_group_without_momentum, "SGD keeps none", "use SGD with momentum"),
    "weight not in optimizer": (weight_missing, "'2.weight' is sparse but not in the optimizer", "model.parameters()"),
    "other optimizer": (optimizer_of_another_model, "'0.weight' is sparse but not in the optimizer", "after"),
    "dense model": (partial(updater, network(), **MOMENTUM), "no sparse weights", "call regrow.sparsify"),
    "lbfgs": (partial(updater, optimizer=torch.optim.LBFGS), "LBFGS evaluates", "use SGD, Adam"),
    "state of another model": (state_of_another_model, "differ in 0.weight, 2.weight", "the model it was saved with"),
    "second updater": (second_updater, "has a TopologyUpdater for these weights already", "remove() it"),
    "unknown needs": (
        lambda: dataclasses.replace(method("set").recipe(), needs=("hessian",)),
        "unknown information ['hessian']",
        "choose among ('gradient', 'momentum', 'cost')",
    ),
    "not in needs": (
        lambda: step(dataclasses.replace(method("rigl").recipe(), needs=())),
        "hold no gradient",
        'name "gradient" in the recipe\'s `needs`',
    ),
    "fraction": (
        lambda: step(dataclasses.replace(method("rigl").recipe(), fraction=lambda step: 0.75 * step)),
        "fraction to drop at step 2 is 1.5",
        "must lie in [0, 1]",
    ),
    "first fraction": (
        lambda: regrow.set(every=1, steps=2, prune_rate=5),
        "fraction to drop at step 0 is 5",
        "must lie in [0, 1]",
    ),
    "redistribution that loses weights": (
        lambda: step(dataclasses.replace(method("set").recipe(), redistribute=lambda layers, dropped, total: {})),
        "redistribute gave 0 weights to 0 layers",
        "sums to the total",
    ),
    "redistribution beyond the room": (
        lambda: step(dataclasses.replace(method("set").recipe(), redistribute=all_to_the_first)),
        "which can grow 0 to",
        "",
    ),
    "scheduled density": (
        lambda: dataclasses.replace(method("rigl").recipe(), density=lambda step: float("nan")),
        "density at step 0 is nan",
        "must lie in [0, 1]",
    ),
    "score of another shape": (
        lambda: step(dataclasses.replace(method("rigl").recipe(), drop=lambda e: e.weight.sum())),
        "a score of shape ()",
        "give one for each",
    ),
}


def step(recipe, times=3, factor=1.0):
    run = Run(model("mlp"), recipe, optimization("sgd-nesterov"))
    for seed in range(times):
        run.optimizer.zero_grad()
        (run.loss(seed) * factor).backward()
        run.optimizer.step()


@pytest.mark.parametrize(("call", "cause", "mend"), ERRORS.values(), ids=ERRORS.keys())
def test_a_bad_input_names_the_cause_and_the_mend_in_one_line(call, cause, mend):
    one_line = f"^[^\n]*{re.escape(cause)}[^\n]*{re.escape(mend)}[^\n]*$"
    with pytest.raises(ValueError, match=one_line):
        call()


def update_with_nan(method, field):
    """Carry out an update in which one active weight and one candidate have NaN as `field`."""

    def entries(start):
        fields = {name: torch.ones(4) for name in ("weight", "grad", "momentum")}
        fields[field] = torch.tensor([1.0, float("nan"), 1.0, 1.0])
        return regrow.Entries(torch.arange(start, start + 4), **fields)

    recipe = dataclasses.replace(method.recipe(), fraction=lambda step: 0.5, density=None)
    return regrow.update(recipe, {"a": regrow.LayerState(entries(0), entries(4), 8, (8,))}, 1, torch.Generator())


def reads(method, field):
    return {"weight": True, "grad": method.needs_gradient, "momentum": method.needs_momentum}[field]


CASES = [(method, field) for method in METHODS for field in ("weight", "grad", "momentum")]
READ, UNREAD = [case for case in CASES if reads(*case)], [case for case in CASES if not reads(*case)]


@pytest.mark.parametrize(("method", "field"), READ, ids=lambda v: getattr(v, "name", v))
def test_nan_is_an_error_with_advice_where_it_is_read(method, field):
    with pytest.raises(ValueError, match=r"^[^\n]*diverged; lower the learning rate$"):
        update_with_nan(method, field)


@pytest.mark.parametrize(("method", "field"), UNREAD, ids=lambda v: getattr(v, "name", v))
def test_nan_is_no_error_where_it_is_not_read(method, field):
    change = update_with_nan(method, field)["a"]
    # what is rewired leaves as far as something joins
    assert method.recipe().rewire or len(change.drop) + change.returned * method.keeps_returning == 2


def test_a_training_that_diverged_says_so_at_the_update():
    with pytest.raises(ValueError, match="diverged; lower the learning rate"):
        step(method("sparse-momentum").recipe(), factor=float("nan"))


def test_a_sparsify_that_fails_leaves_the_model_as_it_was():
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="too small"):
        sparsify(model, 0.015)
    assert regrow.masks(model) == {}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.state_dict().keys() == before.keys()


def test_an_updater_that_fails_leaves_no_hooks():
    model = sparse()
    optimizer = Adam([model[0].weight])
    with pytest.raises(ValueError, match="not in the optimizer"):
        regrow.TopologyUpdater(model, optimizer, method("set").recipe())
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
