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


def test_the_soft_bound_of_mest_drops_to_the_density_and_grows_to_what_there_may_be():
    """At 90 % as the authors' script: from 85 % to 90 % and back, to 87.5 % after 90 of 160 epochs, 90 % after 120."""
    recipe = regrow.mest(every=5, steps=160, density=0.1, start=0.15)
    found = {due: (recipe.density(due), recipe.fraction(due)) for due in range(161) if recipe.update_at(due)}
    assert list(found) == list(range(5, 121, 5))
    before = 0.15
    for due, (density, fraction) in found.items():
        assert before * (1 - fraction) == pytest.approx(0.1)
        assert density == pytest.approx(0.15 if due < 90 else 0.125 if due < 120 else 0.1)
        before = density
    counts = [sum(layers.values()) for layers in densities(recipe, 160)]
    assert (set(counts[:90]), set(counts[90:120]), set(counts[120:])) == ({225}, {188}, {150})
    with pytest.raises(ValueError, match=r"no way from a density of 0\.05 to 0\.1"):
        regrow.mest(every=5, steps=160, density=0.1, start=0.05)
    with pytest.raises(ValueError, match="an update in the last quarter"):
        regrow.mest(every=80, steps=160, density=0.1, start=0.2)


def test_acdc_takes_turns_and_ends_sparse():
    counts = [sum(layers.values()) for layers in densities(regrow.acdc(every=5, steps=100, density=0.1), 100)]
    sparse = [number for number, count in enumerate(counts) if count == 150]
    phases = [range(begin, begin + 5) for begin in range(10, 75, 10)]
    assert sparse == [number for phase in (*phases, range(85, 100)) for number in phase]
    assert {count for number, count in enumerate(counts) if number not in sparse} == {1500}
    with pytest.raises(ValueError, match="comes too late"):
        regrow.acdc(every=50, steps=50)
    with pytest.raises(ValueError, match="density is 0"):
        regrow.acdc(every=5, steps=100, density=0.0)


@pytest.mark.parametrize("storage", ["masked", "cpu"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_momentum_starts_anew_where_acdc_goes_dense_and_nowhere_else(storage, kind):
    settings = {"lr": 0.01, **({"momentum": 0.9} if kind is torch.optim.SGD else {})}
    torch.manual_seed(0)
    model = regrow.sparsify(nn.Sequential(nn.Linear(20, 12, bias=False)), 1.0, backend=storage)
    optimizer = kind(model.parameters(), **settings)
    regrow.TopologyUpdater(model, optimizer, regrow.acdc(every=4, steps=40, density=0.2))
    for step in range(1, 41):
        optimizer.zero_grad()
        model(torch.randn(8, 20)).square().mean().backward()
        optimizer.step()
        state = optimizer.state[next(model.parameters())]
        averages = state["momentum_buffer"] if kind is torch.optim.SGD else state["exp_avg"]
        # dense phases begin after 8, 16 and 24; an update comes a step later
        assert bool(averages.any()) is (step not in (9, 17, 25)), step
        if kind is torch.optim.AdamW and step == 9:
            assert (state["exp_avg_sq"] > 0).all()


def test_acdc_says_that_candidates_are_too_few():
    model = regrow.sparsify(nn.Sequential(nn.Linear(20, 12)), 1.0, backend="cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    growth = regrow.growth.candidates(1, per_nonzero=1)
    regrow.TopologyUpdater(model, optimizer, regrow.acdc(every=2, steps=20, density=0.1, growth=growth))
    for step in range(1, 6):
        model(torch.randn(4, 20)).sum().backward()
        if step < 5:  # an update is due after the fourth
            optimizer.step()
    with pytest.raises(ValueError, match="asks for 216 weights to grow, but there are 24 to choose from"):
        optimizer.step()
