"""Known answers: the densities of methods that go from many weights to few, and what each update of them does."""

import pytest
import torch
from torch import nn

import regrow


def zhu_and_gupta(initial, final, step, begin, end):
    """Return the sparsity of their equation 1, as it is printed."""
    return final + (initial - final) * (1 - (step - begin) / (end - begin)) ** 3


def densities(recipe, steps, model=None):
    """Return the number of weights after each step of a training on random gradients."""
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(40, 30, bias=False), nn.Linear(30, 10, bias=False))
    regrow.sparsify(model, recipe.density(0), distribution=recipe.distribution, backend="masked")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    regrow.TopologyUpdater(model, optimizer, recipe)
    counts = []
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        counts.append({name: int(mask.sum()) for name, mask in regrow.masks(model).items()})
    return counts


def test_gmp_follows_the_cubic_from_dense_to_the_density():
    recipe = regrow.gmp(every=10, steps=200, density=0.05)
    counts = [sum(layers.values()) for layers in densities(recipe, 200)]
    assert set(counts[:60]) == {1500}  # from a quarter on; the first update beyond it is carried out by step 61
    for due in range(60, 151, 10):
        assert counts[due] == round(1500 * (1 - zhu_and_gupta(0.0, 0.95, due, 50, 150))), due
    assert set(counts[150:]) == {75}


def test_gmp_keeps_all_layers_at_one_density():
    for layers in densities(regrow.gmp(every=10, steps=200, density=0.05), 200):
        assert layers["0.weight"] / 1200 == pytest.approx(layers["1.weight"] / 300, abs=0.02)


def test_what_gmp_drops_never_returns_and_it_drops_the_smallest():
    model = nn.Sequential(nn.Linear(20, 20, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(1.0, 401).view(20, 20))
    recipe = regrow.gmp(every=2, steps=40, density=0.1)
    regrow.sparsify(model, recipe.density(0), backend="masked")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    regrow.TopologyUpdater(model, optimizer, recipe)
    for _ in range(40):
        model[0].weight.grad = torch.ones(20, 20)
        optimizer.step()
    assert regrow.masks(model)["0.weight"].flatten().nonzero().flatten().tolist() == list(range(360, 400))


def test_granet_follows_the_cubic_from_half_of_the_weights():
    recipe = regrow.granet(every=10, steps=200, density=0.1)
    counts = [sum(layers.values()) for layers in densities(recipe, 200)]
    assert set(counts[:10]) == {750}
    for due in range(10, 131, 10):
        assert counts[due] == round(1500 * (1 - zhu_and_gupta(0.5, 0.9, due, 0, 130))), due
    assert set(counts[130:]) == {150}


def test_granet_prunes_over_all_layers_and_regrows_in_each():
    """Of two layers one has weights a hundred times as large: pruning takes the others', regrowth moves none."""
    generator = torch.Generator().manual_seed(0)

    def layer(scale):
        index = torch.arange(200)
        weight, grad = scale * torch.randn(100, generator=generator), torch.randn(200, generator=generator)
        parts = index[:100], index[100:]
        return regrow.LayerState(
            regrow.Entries(parts[0], weight, grad[:100]),
            regrow.Entries(parts[1], torch.zeros(100), grad[100:]),
            200,
            (10, 20),
        )

    layers = {"large": layer(100.0), "small": layer(1.0)}
    recipe = regrow.granet(every=10, steps=1000, density=0.1)
    due = 100
    surplus = 200 - round(recipe.density(due) * 400)
    change = regrow.update(recipe, layers, due, torch.Generator())
    after = {name: 100 - len(change[name].drop) + len(change[name].grow) for name in layers}
    assert sum(after.values()) == 200 - surplus
    assert after["small"] <= 100 - surplus + 3  # but for the smallest of the large layer
    assert after["large"] >= 97
    assert all(len(each.grow) > 10 for each in change.values())


@pytest.mark.parametrize("factory", [regrow.gmp, regrow.granet])
def test_a_training_that_is_too_short_and_a_density_that_would_rise_are_errors(factory):
    with pytest.raises(ValueError, match="comes too late in a training of 10"):
        factory(every=10, steps=10)
    with pytest.raises(ValueError, match=r"cannot fall from 0.05 to 0.2"):
        factory(every=10, steps=100, density=0.2, start=0.05)
    with pytest.raises(ValueError, match="0 <= begin < end <= 1"):
        factory(every=10, steps=100, end=1.5)
