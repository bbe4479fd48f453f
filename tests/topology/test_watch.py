"""Weights that something other than the updater's optimizer changes: it works, warns or raises, and is never silent."""

import gc
import warnings

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

import regrow
from cases import Run, assert_same, each_storage, method, model, optimization

MOMENTUM = {"lr": 0.1, "momentum": 0.9}
STEPS = 9


class SAM(Optimizer):
    """Sharpness-aware minimization as in its usual implementation: a wrapper whose base optimizer is stepped."""

    def __init__(self, parameters, base, rho=0.5, **settings):
        super().__init__(parameters, {"rho": rho, **settings})
        self.base_optimizer = base(self.param_groups, **settings)
        self.param_groups = self.base_optimizer.param_groups

    def _each(self):
        return [p for group in self.param_groups for p in group["params"] if p.grad is not None]

    @torch.no_grad()
    def first_step(self):
        norm = torch.stack([p.grad.norm() for p in self._each()]).norm()
        for parameter in self._each():
            self.state[parameter]["old_p"] = parameter.data.clone()
            parameter.add_(parameter.grad * self.param_groups[0]["rho"] / norm)
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for parameter in self._each():
            parameter.data = self.state[parameter]["old_p"]
        self.base_optimizer.step()
        self.zero_grad()

    @torch.no_grad()
    def step(self, closure):
        closure = torch.enable_grad()(closure)
        self.first_step()
        loss = closure()
        self.second_step()
        return loss


class Accelerated(Optimizer):
    """What `accelerate.optimizer.AcceleratedOptimizer` is: an optimizer that hands all on to the one inside."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def state(self):
        return self.optimizer.state

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)

    def step(self, closure=None):
        self.optimizer.step(closure)


class Lookahead:
    """Slow weights that follow the fast ones every few steps; no Optimizer itself."""

    def __init__(self, optimizer):
        self.fast = optimizer

    def step(self):
        self.fast.step()


def network(storage="masked", density=0.3, name="mlp"):
    torch.manual_seed(0)
    return regrow.sparsify(model(name).build(), density, backend=storage)


def loss(sparse, seed):
    return (sparse(model("mlp").inputs(seed)) - 1).square().mean()


def recipe(growth=None):
    return regrow.set(every=2, steps=20, growth=growth)


def filled(sparse):
    return sum(layer.nonzero_absent for layer in regrow.summary(sparse).layers)


def trained_by_sam(storage, by_closure=False, enforced_by_hand=False):
    sparse = network(storage).double()
    sam = SAM(sparse.parameters(), SGD, **MOMENTUM)
    made = regrow.sparse_momentum(every=2, steps=20, growth=regrow.growth.exact())
    topology = regrow.TopologyUpdater(sparse, sam.base_optimizer if enforced_by_hand else sam, made)
    seen = []
    for seed in range(STEPS):
        x = model("mlp").inputs(seed).double()

        def again(x=x):
            seen.append(regrow.dense_state_dict(sparse)["0.weight"].clone())
            seen.append(sparse(x))
            value = (seen[-1] - 1).square().mean()
            value.backward()
            return value

        again()
        if by_closure:
            sam.step(again)
        else:
            sam.first_step()
            if enforced_by_hand:
                topology.enforce()
            again()
            sam.second_step()
    assert topology.step == STEPS
    assert filled(sparse) == 0
    return sparse, seen


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "settings", [{}, {"by_closure": True}, {"enforced_by_hand": True}], ids=["steps", "closure", "hand"]
)
def test_sam_trains_a_masked_model_as_a_sparsely_stored_one_whose_absent_weights_take_no_part(settings):
    (masked, seen), (stored, other) = trained_by_sam("masked", **settings), trained_by_sam("cpu", **settings)
    torch.testing.assert_close(seen, other)
    assert_same(regrow.masks(masked), regrow.masks(stored))


def test_perturbed_absent_weights_in_a_training_pass_warn_once():
    sparse = network()
    sam = SAM(sparse.parameters(), SGD, **MOMENTUM)
    topology = regrow.TopologyUpdater(sparse, sam.base_optimizer, recipe())

    def train():
        for seed in range(STEPS):
            loss(sparse, seed).backward()
            sam.first_step()
            loss(sparse, seed).backward()
            sam.second_step()

    with pytest.warns(UserWarning, match=r"absent weights of '3.weight' were not zero .* enforce\(\)") as caught:
        train()
    assert len(caught) == 1
    assert topology.step == STEPS


@each_storage
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("wrap", [Accelerated, Lookahead, lambda inner: Accelerated(Lookahead(inner).fast)])
def test_an_updater_hangs_on_the_optimizer_inside_another(wrap, storage):
    sparse = network(storage)
    wrapped = wrap(SGD(sparse.parameters(), **MOMENTUM))
    topology = regrow.TopologyUpdater(sparse, wrapped, method("sparse-momentum").recipe())
    before = regrow.masks(sparse)
    for seed in range(STEPS):
        sparse.zero_grad()
        loss(sparse, seed).backward()
        wrapped.step()
    assert topology.step == STEPS
    assert any(not torch.equal(mask, before[name]) for name, mask in regrow.masks(sparse).items())
    assert filled(sparse) == 0


def test_absent_weights_are_zero_after_the_step_of_an_optimizer_around_another():
    class Noisy(Optimizer):
        def __init__(self, optimizer):
            super().__init__(optimizer.param_groups, {})
            self.optimizer = optimizer

        @torch.no_grad()
        def step(self):
            self.optimizer.step()
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.add_(0.01)

    sparse = network()
    noisy = Noisy(SGD(sparse.parameters(), **MOMENTUM))
    topology = regrow.TopologyUpdater(sparse, noisy, recipe())
    loss(sparse, 0).backward()
    noisy.step()
    assert filled(sparse) == 0
    topology.remove()
    noisy.step()
    assert filled(sparse) > 0


def test_sam_is_as_it_was_after_remove():
    sparse = network()
    sam = SAM(sparse.parameters(), SGD, **MOMENTUM)
    topology = regrow.TopologyUpdater(sparse, sam, recipe())
    assert "first_step" in vars(sam)
    topology.remove()
    assert "first_step" not in vars(sam)


def test_what_has_no_step_hooks_is_refused():
    class Bare:
        param_groups = ()

    with pytest.raises(ValueError, match=r"Bare has no step hooks .* give the torch.optim.Optimizer that steps them"):
        regrow.TopologyUpdater(network(), Bare(), recipe())


@each_storage
@pytest.mark.parametrize("kind", [SGD, torch.optim.AdamW], ids=lambda kind: kind.__name__)
def test_another_optimizer_about_to_step_the_weights_raises_and_changes_nothing(kind, storage):
    sparse = network(storage)
    held = SGD(sparse.parameters(), **MOMENTUM)
    topology = regrow.TopologyUpdater(sparse, held, recipe())
    other = kind(sparse.parameters(), lr=0.1)
    loss(sparse, 0).backward()
    before = {name: value.clone() for name, value in sparse.state_dict().items()}
    with pytest.raises(RuntimeError, match=rf"{kind.__name__} is about to step '0.weight'.* \(SGD\) .* remove\(\)"):
        other.step()
    assert_same(dict(sparse.state_dict()), before)
    topology.remove()
    other.step()


@each_storage
def test_a_new_updater_takes_over_from_one_whose_optimizer_is_not_stepped(storage):
    sparse = network(storage)
    kept = [regrow.TopologyUpdater(sparse, SGD(sparse.parameters(), **MOMENTUM), recipe()) for _ in range(2)]
    for seed in range(3):
        sparse.zero_grad()
        loss(sparse, seed).backward()
        kept[1]._optimizer.step()
    assert [topology.step for topology in kept] == [0, 3]


@pytest.mark.parametrize("growth", [regrow.growth.window(3), regrow.growth.candidates(3, 1)], ids=str)
def test_a_new_updater_ends_the_window_of_one_whose_optimizer_is_not_stepped(growth):
    sparse = network("cpu")

    def train(made, steps):
        optimizer = SGD(sparse.parameters(), **MOMENTUM)
        topology = regrow.TopologyUpdater(sparse, optimizer, made)
        for seed in range(steps):
            sparse.zero_grad()
            loss(sparse, seed).backward()
            optimizer.step()
        return topology

    kept = [train(regrow.sparse_momentum(every=4, steps=20, growth=growth), 3)]
    assert sparse[0].values.numel() > len(sparse[0].index)
    kept.append(train(regrow.set(every=2, steps=20), 9))
    assert sparse[0].values.shape == sparse[0].index.shape
    assert sparse(model("mlp").inputs(0)).isfinite().all()


@pytest.mark.filterwarnings("error")
def test_optimizers_of_other_models_and_of_other_weights_are_left_alone():
    sparse, dense = network(), nn.Linear(3, 2)
    regrow.TopologyUpdater(sparse, SGD([sparse[0].weight, sparse[3].weight], **MOMENTUM), recipe())
    norms = SGD([*sparse[1].parameters(), *dense.parameters()], lr=0.1)
    for seed in range(3):
        loss(sparse, seed).backward()
        norms.step()


def train_by_hand(sparse):
    for seed in range(40):
        loss(sparse, seed).backward()
        for parameter in sparse.parameters():
            parameter.data.add_(parameter.grad, alpha=-0.1)
            parameter.grad = None


@each_storage
def test_weights_that_change_while_the_optimizer_never_steps_warn_once(storage):
    sparse = network(storage)
    regrow.TopologyUpdater(sparse, SGD(sparse.parameters(), **MOMENTUM), recipe())
    with pytest.warns(UserWarning, match="the SGD that .* hangs on has not stepped in 8 backward passes") as caught:
        train_by_hand(sparse)
    assert len(caught) == 1


@each_storage
@pytest.mark.filterwarnings("error")
def test_accumulated_gradients_and_passes_that_change_nothing_do_not_warn(storage):
    sparse = network(storage)
    optimizer = SGD(sparse.parameters(), **MOMENTUM)
    regrow.TopologyUpdater(sparse, optimizer, recipe())
    for _ in range(3):
        for seed in range(40):
            loss(sparse, seed).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_an_updater_out_of_reach_watches_nothing():
    sparse = network()
    regrow.TopologyUpdater(sparse, SGD(sparse.parameters(), **MOMENTUM), recipe())
    gc.collect()
    other = SGD(sparse.parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(20):
            loss(sparse, seed).backward()
            other.step()


class Count(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operations += not str(function).startswith("profiler.")
        return function(*args, **(kwargs or {}))


def test_watching_adds_no_operation_to_a_step():
    def operations(watched):
        run = Run(model("mlp"), regrow.set(every=1000, steps=10_000), optimization("sgd-momentum"))
        if not watched:
            run.topology._watch.close()
        run.train(range(3))
        with Count() as count:
            run.train(range(3, 6))
        return count.operations

    assert operations(watched=True) == operations(watched=False)


def by_dimensions(sparse, decay=0.1):
    wide = [p for p in sparse.parameters() if p.ndim >= 2]
    rest = [p for p in sparse.parameters() if p.ndim < 2]
    return [{"params": wide, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]


def by_names(sparse, decay=0.1):
    named = dict(sparse.named_parameters())
    wide = [p for name, p in named.items() if name.endswith("weight") and p.ndim > 0]
    rest = [p for name, p in named.items() if not name.endswith("weight")]
    return [{"params": wide, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]


@pytest.mark.parametrize("groups", [by_dimensions, by_names])
def test_decay_groups_that_miss_sparsely_stored_weights_warn(groups):
    sparse = network("cpu")
    with pytest.warns(
        UserWarning, match=r"no sparsely stored weight decays \(0.weight, 3.weight\).*regrow.decay_groups"
    ):
        regrow.TopologyUpdater(sparse, SGD(groups(sparse), **MOMENTUM), recipe())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("storage", ["masked", "cpu"])
def test_decay_groups_count_sparse_weights_as_the_dense_ones(storage):
    groups = regrow.decay_groups(network(storage), 0.1)
    assert [sum(p.numel() for p in group["params"]) for group in groups] == [156 if storage == "masked" else 47, 41]
    for build in (lambda m: regrow.decay_groups(m, 0.1), lambda m: m.parameters(), by_dimensions):
        if storage == "masked" or build is not by_dimensions:
            sparse = network(storage)
            regrow.TopologyUpdater(sparse, SGD(build(sparse), **MOMENTUM), recipe())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("storage", ["masked", "cpu"])
def test_two_optimizers_have_an_updater_each(storage):
    torch.manual_seed(0)
    sparse = regrow.sparsify(nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 5)), 0.3, backend=storage)
    first = next(sparse[0].parameters())
    kind = torch.optim.Muon if storage == "masked" else SGD
    optimizers = [
        kind([first], lr=0.02, momentum=0.9),
        torch.optim.AdamW([p for p in sparse.parameters() if p is not first], lr=0.01),
    ]
    made = regrow.sparse_momentum(every=2, steps=20)
    with pytest.raises(
        ValueError, match=r"'2.weight' is sparse but not in the optimizer.* an updater for each, with `weights="
    ):
        regrow.TopologyUpdater(sparse, optimizers[0], made)
    topologies = [
        regrow.TopologyUpdater(sparse, optimizer, made, weights=[name])
        for optimizer, name in zip(optimizers, ["0.*", "2.weight"], strict=True)
    ]
    before = regrow.masks(sparse)
    for seed in range(STEPS):
        sparse.zero_grad()
        loss(sparse, seed).backward()
        for optimizer in optimizers:
            optimizer.step()
    assert [topology.step for topology in topologies] == [STEPS, STEPS]
    assert all(not torch.equal(mask, before[name]) for name, mask in regrow.masks(sparse).items())
    assert filled(sparse) == 0
    for names, cause in ((["head"], "'head' matches no sparse weight; there are 0.weight"), ([], "at least one glob")):
        with pytest.raises(ValueError, match=cause):
            regrow.TopologyUpdater(sparse, optimizers[0], made, weights=names)
