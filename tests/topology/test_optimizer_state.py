import pytest
import torch
from torch import nn

import regrow
from cases import OPTIMIZERS, Run, method, model, optimization
from regrow.topology.optimizer_state import keeps_momentum, momentum

ADAM_LIKE = [row for row in OPTIMIZERS if row.name in ("adam", "adam-fused", "adamw-foreach", "radam")]


def read(optimizer, weight):
    group = next(group for group in optimizer.param_groups if any(p is weight for p in group["params"]))
    return momentum(optimizer, weight, group)


@pytest.mark.parametrize("optimization", ADAM_LIKE, ids=lambda row: row.name)
def test_adam_s_momentum_is_both_averages_corrected_as_the_formula_says(optimization):
    weight = nn.Parameter(torch.randn(4, 3, dtype=torch.float64))
    optimizer = optimization.kind([weight], lr=0.01, betas=(0.8, 0.95), eps=1e-3)
    first, second = torch.zeros(4, 3).double(), torch.zeros(4, 3).double()
    for step in range(1, 6):
        grad = torch.randn(4, 3, dtype=torch.float64)
        weight.grad = grad.clone()
        optimizer.step()
        first, second = 0.8 * first + 0.2 * grad, 0.95 * second + 0.05 * grad**2
        expected = first / (1 - 0.8**step) / ((second / (1 - 0.95**step)).sqrt() + 1e-3)
        torch.testing.assert_close(read(optimizer, weight), expected, rtol=1e-12, atol=1e-12)


def test_each_group_is_corrected_with_its_own_betas():
    weights = [nn.Parameter(torch.ones(1)) for _ in range(2)]
    settings = [{"betas": (0.5, 0.5)}, {"betas": (0.9, 0.99)}]
    optimizer = torch.optim.Adam([{"params": w, **own} for w, own in zip(weights, settings, strict=True)], eps=0.0)
    for weight in weights:
        weight.grad = torch.full((1,), 3.0)
    optimizer.step()
    for weight in weights:  # after one step both averages are the gradient and its square: 3 / sqrt(9)
        assert read(optimizer, weight).item() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("name", ["sgd-momentum", "rmsprop-momentum"])
def test_the_momentum_buffer_is_read_as_it_is(name):
    weight = nn.Parameter(torch.randn(4, 3))
    optimizer = optimization(name).build([weight])
    for _ in range(3):
        weight.grad = torch.randn(4, 3)
        optimizer.step()
    assert torch.equal(read(optimizer, weight), optimizer.state[weight]["momentum_buffer"])


def test_an_average_without_a_variance_is_read_as_it_is():
    weight = nn.Parameter(torch.randn(4, 3))
    optimizer = torch.optim.Adamax([weight])
    weight.grad = torch.randn(4, 3)
    optimizer.step()
    assert torch.equal(read(optimizer, weight), optimizer.state[weight]["exp_avg"])


@pytest.mark.parametrize("optimization", OPTIMIZERS, ids=lambda row: row.name)
def test_reading_changes_nothing_and_a_weight_not_stepped_yet_has_none(optimization):
    weight = nn.Parameter(torch.randn(4, 3))
    optimizer = optimization.build([weight])
    assert keeps_momentum(optimizer.param_groups[0]) is optimization.keeps_momentum
    if not optimization.keeps_momentum:
        return
    assert not read(optimizer, weight).any()
    weight.grad = torch.randn(4, 3)
    optimizer.step()
    state = {name: torch.as_tensor(value).clone() for name, value in optimizer.state[weight].items()}
    first = read(optimizer, weight).clone()
    assert first.any()
    assert torch.equal(read(optimizer, weight), first)
    assert all(torch.equal(torch.as_tensor(optimizer.state[weight][name]), value) for name, value in state.items())


@pytest.mark.parametrize("name", ["sgd-nesterov", "adam"])
def test_growth_reads_the_momentum_of_absent_weights(name):
    """What is grown is what the optimizer's own state says, over the whole dense weight."""
    seen = []
    recipe = method("sparse-momentum").recipe()
    run = Run(model("mlp"), recipe, optimization(name), on_update=lambda step, changes: seen.append(changes))
    masks = regrow.masks(run.model)
    run.train(range(3))
    for layer, change in seen[0].items():
        score = read(run.optimizer, run.model.get_parameter(layer)).abs().flatten()
        absent = ~masks[layer].flatten()
        absent[change.drop] = True
        others = absent.clone()
        others[change.grow] = False
        assert score[change.grow].min() >= score[others].max()
