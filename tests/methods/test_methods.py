"""What the card of each method says, and that its row in the table of cases is true."""

import pytest

import reference
import regrow
from cases import EVERY, METHODS, STEPS, each_method, each_method_with_reference

FACTORIES = list(regrow.methods.METHODS.values())


@each_method
def test_the_row_of_the_table_says_what_the_recipe_does(method):
    recipe = method.recipe()
    assert ("momentum" in recipe.needs) is method.needs_momentum
    assert ("gradient" in recipe.needs) is method.needs_gradient
    assert (recipe.density is None) is method.keeps_number
    assert set(recipe.needs_of_absent) <= set(recipe.needs)
    assert recipe.reset_state == ("all" if method.resets_momentum else "warm" if method.resets_state else "keep")
    assert recipe.keep_returning is method.keeps_returning
    assert tuple(step for step in range(2 * STEPS) if recipe.update_at(step)) == method.due
    assert tuple(step for step in range(2 * STEPS) if recipe.updates_in(step)) == method.updates


@each_method_with_reference
def test_the_prune_rate_is_the_published_one(method):
    steps = 1000
    rate = method.factory(every=10, steps=steps).fraction
    for step in range(0, 750, 10):
        assert rate(step) == pytest.approx(reference.RATES[method.name](step, steps), abs=1e-15)


@each_method
def test_nothing_grows_that_would_not_be_trained(method):
    recipe = method.recipe()
    assert not recipe.update_at(0)
    assert not any(recipe.update_at(step) for step in range(STEPS, 3 * STEPS))


@pytest.mark.parametrize("factory", [regrow.set, regrow.rigl, regrow.sparse_momentum])
def test_the_first_prune_rate_can_be_set(factory):
    recipe = factory(every=EVERY, steps=STEPS, prune_rate=0.2)
    assert recipe.fraction(0) == pytest.approx(0.2)


@each_method
def test_every_factory_takes_where_growth_comes_from(method):
    assert (method.recipe().growth is None) is (method.name != "gse")
    growth = regrow.growth.window(7)
    assert method.factory(every=EVERY, steps=STEPS, growth=growth).growth is growth


def test_each_method_has_the_distribution_that_it_was_published_with():
    found = {row.name: row.recipe().distribution for row in METHODS}
    assert found == {
        "static": "uniform", "set": "erdos-renyi", "rigl": "erdos-renyi-kernel", "sparse-momentum": "uniform",
        "dsr": "uniform", "gmp": "uniform", "granet": "erdos-renyi-kernel", "itop": "erdos-renyi-kernel",
        "mest": "uniform", "acdc": "uniform", "srigl": "erdos-renyi-kernel",
        "chts": "uniform", "gse": "erdos-renyi",
    }  # fmt: skip


def test_sparse_momentum_anneals_to_half_a_percent():
    assert regrow.sparse_momentum(every=10, steps=100).fraction(100) == pytest.approx(0.005)


def test_rigl_stops_after_three_quarters_of_the_training():
    recipe = regrow.rigl(every=100, steps=1000)
    assert [step for step in range(1001) if recipe.update_at(step)] == [100, 200, 300, 400, 500, 600, 700]


def test_every_method_is_registered_exported_and_in_the_table():
    names = [row.name for row in METHODS]
    assert names == list(regrow.methods.METHODS) == [factory.__name__.replace("_", "-") for factory in FACTORIES]
    exported = {getattr(regrow.methods, name) for name in regrow.methods.__all__}
    assert exported == {*FACTORIES, *regrow.methods.STEP_METHODS.values()}
    assert all(getattr(regrow, factory.__name__) is factory for factory in FACTORIES)
    assert reference.UPDATES.keys() == reference.RATES.keys() <= set(names)
