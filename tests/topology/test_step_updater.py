"""Methods that act in every step: what all of them promise, over models and optimizers."""

from copy import deepcopy

import pytest
import torch
from torch import nn

import regrow
from cases import STEP_METHODS as STEP_ROWS
from cases import STEPS, assert_same, each_step_method, model, optimization

MODELS = [model(name) for name in ("mlp", "conv2d", "transposed2d", "attention", "tied")]
OPTIMIZERS = [
    optimization(name)
    for name in (
        "sgd",
        "sgd-nesterov",
        "sgd-nesterov-foreach",
        "sgd-nesterov-fused",
        "adam",
        "adamw-foreach",
        "rmsprop",
    )
]
each_model = pytest.mark.parametrize("model", MODELS, ids=lambda row: row.name)
each_optimizer = pytest.mark.parametrize("optimization", OPTIMIZERS, ids=lambda row: row.name)
SGD = optimization("sgd-nesterov")


class Run:
    """A model in training by a rule: the lines of an ordinary loop."""

    def __init__(self, model, method, optimization, *, seed=0, prepare=lambda module: module, changes=None, **settings):
        torch.manual_seed(seed)
        self.case = model
        self.model = regrow.sparsify(prepare(model.build()), method.density, backend="masked", seed=seed)
        self.optimizer = optimization.build(self.model.parameters())
        rule = method.rule(**(changes or {}))
        self.topology = regrow.StepUpdater(self.model, self.optimizer, rule, seed=seed, **settings)

    def loss(self, seed):
        return (self.model(self.case.inputs(seed)) - 1).square().mean()

    def step(self, seed):
        self.optimizer.zero_grad()
        self.loss(seed).backward()
        self.optimizer.step()

    def train(self, seeds):
        for seed in seeds:
            self.step(seed)
        return self

    def state(self):
        parts = {"model": self.model, "optimizer": self.optimizer, "topology": self.topology}
        return deepcopy({name: part.state_dict() for name, part in parts.items()})

    def load(self, state):
        for name, part in state.items():
            getattr(self, name).load_state_dict(part)
        return self


def assert_sparse(model):
    """The model holds the network alone: zero outside of its masks."""
    for name, mask in regrow.masks(model).items():
        assert not model.get_parameter(name)[~mask].any(), name


@each_step_method
@each_model
@each_optimizer
def test_counts_hold_after_every_step(method, model, optimization):
    run = Run(model, method, optimization)
    before = regrow.masks(run.model)
    assert tuple(before) == model.weights
    for seed in range(STEPS):
        run.step(seed)
        assert_sparse(run.model)
        if method.keeps is not None:
            for name, mask in regrow.masks(run.model).items():
                assert int(mask.sum()) == int(before[name].sum()) == round(method.keeps * mask.numel())
        assert all(parameter.isfinite().all() for parameter in run.model.parameters())
    assert run.topology.step == STEPS
    if model.name == "mlp":  # where steps are long enough, it has moved weights
        after = regrow.masks(run.model)
        assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.pairs
@each_step_method
@each_model
@each_optimizer
@pytest.mark.parametrize("stop", [0, 3])
def test_a_run_that_goes_on_is_the_run_that_was_not_stopped(method, model, optimization, stop):
    whole = Run(model, method, optimization).train(range(STEPS))
    stopped = Run(model, method, optimization).train(range(stop))
    again = Run(model, method, optimization, seed=7).load(stopped.state()).train(range(stop, STEPS))
    assert_same(again.state(), whole.state())


@each_step_method
def test_equal_seeds_give_equal_runs(method):
    runs = [Run(MODELS[0], method, SGD).train(range(4)).state() for _ in range(2)]
    assert_same(*runs)


@each_step_method
def test_the_sparse_network_is_what_is_left_at_the_end(method):
    run = Run(MODELS[1], method, SGD).train(range(STEPS))
    summary, inputs = regrow.summary(run.model), MODELS[1].inputs(0)
    masks, outputs = regrow.masks(run.model), run.model(inputs).detach()
    assert summary.nonzeros == sum(int(mask.sum()) for mask in masks.values())
    assert not any(layer.nonzero_absent for layer in summary.layers)
    plain = MODELS[1].build()
    plain.load_state_dict(regrow.dense_state_dict(run.model))
    with pytest.raises(ValueError, match="a StepUpdater still keeps the topology of"):
        regrow.densify(run.model)
    run.topology.remove()
    dense = regrow.densify(run.model)
    for each in (plain, dense):
        assert torch.equal(each(inputs), outputs)
        for name, mask in masks.items():
            assert not each.get_parameter(name)[~mask].any()


@each_step_method
def test_after_its_end_the_optimizer_is_as_it_was_given(method):
    run = Run(MODELS[0], method, SGD).train(range(2))
    given = [id(parameter) for parameter in run.model.parameters()]
    run.topology.remove()
    assert [id(each) for group in run.optimizer.param_groups for each in group["params"]] == given
    assert {id(each) for each in run.optimizer.state} <= set(given)
    before = [parameter.detach().clone() for parameter in run.model.parameters()]
    run.step(0)
    assert run.topology.step == 2
    assert all(not torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))
    masks = regrow.masks(run.model)
    again = regrow.sparsify(regrow.densify(run.model), masks=masks, backend="masked")
    regrow.TopologyUpdater(again, run.optimizer, regrow.static())


@each_step_method
def test_memory_format_makes_no_difference(method):
    formats = [
        Run(MODELS[1], method, SGD, prepare=lambda module, form=form: module.to(memory_format=form)).train(range(STEPS))
        for form in (torch.contiguous_format, torch.channels_last)
    ]
    assert formats[1].model[0].weight.is_contiguous(memory_format=torch.channels_last)
    for name in MODELS[1].weights:
        plain, other = (run.model.get_parameter(name) for run in formats)
        torch.testing.assert_close(other, plain, rtol=1e-4, atol=1e-6)


@each_step_method
def test_closures_and_accumulated_gradients_make_no_difference(method):
    plain, closed, summed = (Run(MODELS[1], method, SGD) for _ in range(3))
    for seed in range(4):
        plain.step(seed)

        def closure(run=closed, seed=seed):
            run.optimizer.zero_grad()
            loss = run.loss(seed)
            loss.backward()
            return loss

        closed.optimizer.step(closure)
        summed.optimizer.zero_grad()
        for _ in range(2):
            (summed.loss(seed) / 2).backward()
        summed.optimizer.step()
    assert_same(closed.state(), plain.state())
    for name in MODELS[1].weights:
        torch.testing.assert_close(summed.model.get_parameter(name), plain.model.get_parameter(name))


@each_step_method
def test_a_frozen_layer_stays_as_it_is(method):
    run = Run(MODELS[0], method, SGD).train(range(2))
    run.model[0].weight.requires_grad_(False)
    run.optimizer.zero_grad()
    frozen, mask, moving = run.model[0].weight.clone(), regrow.masks(run.model)["0.weight"], run.model[3].weight.clone()
    run.train(range(2, 6))
    assert torch.equal(run.model[0].weight, frozen)
    assert torch.equal(regrow.masks(run.model)["0.weight"], mask)
    assert not torch.equal(run.model[3].weight, moving)
    run.model[0].weight.requires_grad_(True)
    run.train(range(6, 10))
    assert not torch.equal(run.model[0].weight, frozen)
    assert_sparse(run.model)


@each_step_method
def test_a_step_that_is_skipped_for_an_infinity_changes_nothing(method):
    run = Run(MODELS[0], method, optimization("sgd-nesterov-fused")).train(range(3))
    before = run.state()
    run.optimizer.zero_grad()
    run.loss(3).backward()
    run.optimizer.grad_scale, run.optimizer.found_inf = torch.tensor(1.0), torch.tensor(1.0)
    run.optimizer.step()
    del run.optimizer.grad_scale, run.optimizer.found_inf
    after = run.state()
    del before["model"]["1.running_mean"], before["model"]["1.running_var"], before["model"]["1.num_batches_tracked"]
    assert_same({key: after["model"][key] for key in before["model"]}, before["model"])
    assert_same(after["topology"], before["topology"])


@each_step_method
def test_a_scaled_gradient_is_unscaled_first(method):
    plain, scaled = (Run(MODELS[0], method, optimization("sgd-nesterov-fused")) for _ in range(2))
    for seed in range(4):
        plain.step(seed)
        scaled.optimizer.zero_grad()
        (8 * scaled.loss(seed)).backward()
        scaled.optimizer.grad_scale, scaled.optimizer.found_inf = torch.tensor(8.0), torch.tensor(0.0)
        scaled.optimizer.step()
        del scaled.optimizer.grad_scale, scaled.optimizer.found_inf
    for name in MODELS[0].weights:
        torch.testing.assert_close(scaled.model.get_parameter(name), plain.model.get_parameter(name))


@each_step_method
def test_changes_are_told(method):
    found = []
    run = Run(MODELS[0], method, SGD, on_update=lambda step, changes: found.append((step, changes)))
    masks = {name: mask.reshape(-1) for name, mask in regrow.masks(run.model).items()}
    run.train(range(STEPS))
    assert found
    for step, changes in found:
        assert 1 <= step <= STEPS
        for name, change in changes.items():
            assert masks[name][change.drop].all()
            assert not masks[name][change.grow].any()
            masks[name][change.drop], masks[name][change.grow] = False, True
    assert_same(masks, {name: mask.reshape(-1) for name, mask in regrow.masks(run.model).items()})


@each_step_method
def test_what_a_rule_cannot_work_on_is_said(method):
    def sparse(density=method.density, backend="masked", **settings):
        return regrow.sparsify(
            nn.Sequential(nn.Linear(128, 256), nn.Linear(256, 8)), density, backend=backend, **settings
        )

    def updater(model, optimizer=None, rule=None, **settings):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1) if optimizer is None else optimizer
        return regrow.StepUpdater(model, optimizer, method.rule() if rule is None else rule, **settings)

    with pytest.raises(ValueError, match=r'is stored sparsely.*backend="masked"'):
        updater(sparse(0.05, "cpu"))
    with pytest.raises(ValueError, match="has blocks of weights"):
        updater(sparse(block=(4, 1)))
    with pytest.raises(ValueError, match="no sparse weights"):
        updater(nn.Linear(4, 4))
    if method.density == 1:
        with pytest.raises(ValueError, match=r"but '0.weight' is so already.*density=1.0"):
            updater(sparse(0.5))
    with pytest.raises(TypeError, match=r"give it to regrow\.TopologyUpdater"):
        updater(sparse(), rule=regrow.static())
    model = sparse()
    with pytest.raises(TypeError, match=r"no Recipe.*go to regrow\.StepUpdater"):
        regrow.TopologyUpdater(model, torch.optim.SGD(model.parameters(), lr=0.1), method.rule())
    with pytest.raises(ValueError, match="LBFGS changes weights more than once"):
        updater(model, torch.optim.LBFGS(model.parameters()))
    with pytest.raises(ValueError, match=r"'0.weight' is sparse but not in the optimizer"):
        updater(model, torch.optim.SGD(model[1].parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"'2\.\*' matches no sparse weight"):
        updater(model, weights=["2.*"])
    first = updater(model)
    with pytest.raises(
        ValueError, match="has a StepUpdater for these weights already" if method.density < 1 else "so already"
    ):
        updater(model, first._optimizer)
    with pytest.raises(ValueError, match="has a StepUpdater for these weights already"):
        regrow.TopologyUpdater(model, first._optimizer, regrow.static())
    another = next(row for row in STEP_ROWS if row.name != method.name and row.density == 1)
    other = updater(sparse(1.0), rule=another.rule())
    with pytest.raises(ValueError, match="of another rule"):
        first.load_state_dict(other.state_dict())
    small = regrow.sparsify(nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8)), method.density, backend="masked")
    with pytest.raises(ValueError, match=r"of another model: the sparse weights differ in 0.weight, 1.weight"):
        first.load_state_dict(updater(small).state_dict())
    with pytest.raises(ValueError, match="no state of a StepUpdater"):
        first.load_state_dict({})


@each_step_method
def test_some_weights_alone_can_be_given_to_a_rule(method):
    torch.manual_seed(0)
    model = regrow.sparsify(MODELS[0].build(), method.density, backend="masked")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model[3].weight.detach().clone(), regrow.masks(model)["3.weight"]
    regrow.StepUpdater(model, optimizer, method.rule(), weights=["0.*"])
    (model(MODELS[0].inputs(0)) - 1).square().mean().backward()
    optimizer.step()
    assert torch.equal(regrow.masks(model)["3.weight"], before[1])
    assert regrow.masks(model)["0.weight"].float().mean() < 1 or method.keeps is None


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (regrow.top_kast(every=5, density=0.25, backward_density=0.5), 8),
        (regrow.sr_ste(), None),
        (regrow.soft_threshold(), "nothing"),
    ],
)
def test_what_a_rule_reads_of_absent_weights_is_told(rule, expected):
    model = regrow.sparsify(nn.Linear(8, 4), 1.0, backend="masked")
    topology = regrow.StepUpdater(model, torch.optim.SGD(model.parameters(), lr=0.1), rule)
    assert topology.looks_at() == ({} if expected == "nothing" else {"weight": expected})


def test_what_is_told_follows_the_sets():
    model = regrow.sparsify(nn.Linear(8, 4), 1.0, backend="masked")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rule = regrow.top_kast(every=1, steps=6, density=0.25, backward_density=0.5, explore=0.5)
    topology, seen = regrow.StepUpdater(model, optimizer, rule), []
    for _ in range(6):
        seen.append(topology.looks_at()["weight"])
        model(torch.randn(8, 8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert seen == [8, 8, 8, 0, 0, 0]
