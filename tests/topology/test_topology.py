import dataclasses
import math

import pytest
import torch
from torch import nn

import regrow
from cases import (
    EVERY,
    METHODS,
    STEPS,
    Run,
    assert_same,
    each_compatible,
    each_method,
    each_storage,
    each_stored,
    method,
    model,
    optimization,
    state_of,
    weights,
)
from regrow.storage import sparse_weights

MLP, SGD = model("mlp"), optimization("sgd-nesterov")


def everywhere(weight):
    return torch.arange(weight.numel)


def state_at(optimizer, weight, positions):
    """Return every number of the weight's optimizer state at flat positions."""
    return {key: weight.at(tensor, positions) for key, tensor in state_of(optimizer, weight.weight).items()}


@pytest.mark.pairs
@each_stored
@each_compatible
def test_absent_weights_stay_zero_and_the_number_of_weights_stays(method, optimization, model, storage):
    run = Run(model, method.recipe(), optimization, storage=storage)
    nonzeros = sum(int(mask.sum()) for mask in regrow.masks(run.model).values())
    for step in range(1, 7):
        before = regrow.masks(run.model)
        run.step(step)
        masks = regrow.masks(run.model)
        for name, weight in weights(run.model).items():
            assert not weight[~masks[name]].any()
            assert step in method.updates or torch.equal(masks[name], before[name])
            assert not method.keeps_layers or masks[name].sum() == before[name].sum()
        assert not method.keeps_number or sum(int(mask.sum()) for mask in masks.values()) == nonzeros


@each_storage
@each_compatible
def test_grown_weights_start_at_zero_with_the_state_that_the_method_says(method, optimization, storage):
    before, active, updates = {}, {}, []

    def remember(optimizer, args, kwargs):
        before.update({w.name: state_at(optimizer, w, everywhere(w)) for w in sparse_weights(run.model).values()})
        active.update({w.name: w.index() for w in sparse_weights(run.model).values()})

    def check(step, changes):
        updates.append(step)
        for name, weight in sparse_weights(run.model).items():
            grown = changes[name].grow
            assert not weight.at(weight.weight, grown).any()
            state, expected = state_at(run.optimizer, weight, everywhere(weight)), before[name]
            assert state.keys() == expected.keys()
            for key, tensor in state.items():
                if method.resets_state:
                    divides = key in ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "exp_inf", "sum")
                    expected[key][grown] = expected[key][active[name]].mean() if divides else 0
                if method.resets_momentum and len(grown) and key in ("momentum_buffer", "exp_avg"):
                    expected[key].zero_()
                # sparse storage has no numbers of its own for what is absent, so what grew is looked at elsewhere
                seen = weight.index()
                if storage != "masked" and not method.resets_state:
                    seen = seen[~torch.isin(seen, grown)]
                assert torch.equal(tensor[seen], expected[key][seen]), key

    run = Run(MLP, method.recipe(), optimization, storage=storage, on_update=check)
    # Hooks run in the order in which they were registered: this one must see the state before the update.
    run.topology.remove()
    run.optimizer.register_step_post_hook(remember)
    regrow.TopologyUpdater(run.model, run.optimizer, method.recipe(), on_update=check)
    run.train(range(STEPS))
    assert tuple(updates) == method.updates


@each_method
def test_updates_come_exactly_when_and_as_large_as_scheduled(method):
    recipe, updates = method.recipe(), []
    rounded = math.ceil if recipe.rounding == "up" else math.floor

    def check(step, changes):
        updates.append(step)
        for name, change in changes.items():
            left = len(change.drop) + change.returned * recipe.keep_returning
            if recipe.drops is None and recipe.density is None and recipe.rewire is None:
                assert left == rounded(recipe.fraction(step - 1) * nonzeros[name])

    run = Run(MLP, recipe, SGD, on_update=check)
    for step in range(1, STEPS + 1):
        nonzeros = {name: int(mask.sum()) for name, mask in regrow.masks(run.model).items()}
        run.step(step)
        assert run.topology.step == step
    assert tuple(updates) == method.updates


def test_a_scheduled_density_is_met_after_every_update():
    density = regrow.schedule.cubic(0.5, 0.1, begin=0, until=STEPS)
    recipe = dataclasses.replace(method("sparse-momentum").recipe(), density=density)
    run = Run(MLP, recipe, SGD, density=0.5)
    numel = sum(mask.numel() for mask in regrow.masks(run.model).values())
    for step in range(1, STEPS):
        run.step(step)
        # what is due after a step is carried out by the next
        expected = round(density((step - 1) - (step - 1) % EVERY) * numel)
        assert sum(int(mask.sum()) for mask in regrow.masks(run.model).values()) == expected


@pytest.mark.parametrize("storage", ["masked", "cpu"])
@pytest.mark.parametrize("block", [(1, 1), (4, 1)])
@pytest.mark.parametrize("row", [row for row in METHODS if not row.keeps_number], ids=lambda row: row.name)
def test_a_method_meets_its_density_after_every_update(row, block, storage):
    recipe = row.recipe()
    run = Run(MLP, recipe, SGD, storage=storage, block=block)
    numel, size = sum(mask.numel() for mask in regrow.masks(run.model).values()), block[0]
    density = recipe.density(0)
    for step in range(1, STEPS + 1):
        run.step(step)
        if step in row.updates:
            density = recipe.density(step - 1)
        found = sum(int(mask.sum()) for mask in regrow.masks(run.model).values())
        # the last layer has 5 outputs, so its units are of one weight
        assert found == round(density * numel), (step, size)


@each_method
def test_weight_decay_never_moves_an_absent_weight(method):
    run = Run(MLP, method.recipe(), optimization("sgd-momentum"))
    run.optimizer.param_groups[0].update(weight_decay=0.9)
    for step in range(STEPS):
        run.optimizer.zero_grad()
        (run.loss(step) * 0).backward()  # nothing but the decay moves the weights
        run.optimizer.step()
        for name, mask in regrow.masks(run.model).items():
            assert not weights(run.model)[name][~mask].any()


@each_method
def test_a_gradient_set_to_zero_and_one_set_to_none_give_the_same(method):
    runs = [Run(MLP, method.recipe(), SGD) for _ in range(2)]
    for run, to_none in zip(runs, (True, False), strict=True):
        for step in range(STEPS):
            run.optimizer.zero_grad(set_to_none=to_none)
            run.loss(step).backward()
            run.optimizer.step()
    assert_same(runs[0].state(), runs[1].state())


@each_method
def test_a_step_without_gradients_is_a_step_that_moves_nothing(method):
    run = Run(MLP, method.recipe(), SGD)
    before = weights(run.model)
    nonzeros = {name: int(mask.sum()) for name, mask in regrow.masks(run.model).items()}
    run.optimizer.step()
    assert run.topology.step == 1
    assert_same(weights(run.model), before)
    run.optimizer.step()
    assert sum(int(mask.sum()) for mask in regrow.masks(run.model).values()) == sum(nonzeros.values())


@each_method
def test_accumulated_gradients_are_those_of_the_whole_batch(method):
    """Two halves, each with half the loss, are one batch; the numbers are chosen so that sums are exact."""
    halves, whole = (nn.Linear(6, 4, bias=False).double() for _ in range(2))
    updates = [], []
    for network, changes, parts in ((halves, updates[0], 2), (whole, updates[1], 1)):
        nn.init.ones_(network.weight)
        regrow.sparsify(network, 0.5)
        optimizer = torch.optim.SGD(network.parameters(), lr=2.0**-8, momentum=0.5)
        regrow.TopologyUpdater(
            network, optimizer, method.recipe(), on_update=lambda *change, into=changes: into.append(change)
        )
        for step in range(4):
            batch = torch.randint(-4, 5, (8, 6), generator=torch.Generator().manual_seed(step)).double()
            optimizer.zero_grad()
            for part in batch.chunk(parts):
                network(part).square().sum().backward()
            optimizer.step()
    assert torch.equal(halves.weight, whole.weight)
    assert str(updates[0]) == str(updates[1])


@each_method
def test_clipping_goes_together_with_updates(method):
    run = Run(MLP, method.recipe(), SGD)
    for step in range(STEPS):
        run.optimizer.zero_grad()
        (run.loss(step) * 1e6).backward()
        nn.utils.clip_grad_norm_(run.model.parameters(), 0.1)
        run.optimizer.step()
    for name, mask in regrow.masks(run.model).items():
        weight = weights(run.model)[name]
        assert weight.abs().max() < 2
        assert not weight[~mask].any()


@each_method
def test_parameter_groups_may_split_the_model(method):
    """Groups of equal settings change nothing: not the weights, not the masks."""
    together, split = (Run(MLP, method.recipe(), SGD) for _ in range(2))
    split.topology.remove()
    parameters = list(split.model.parameters())
    split.optimizer = SGD.build([{"params": parameters[2:]}, {"params": parameters[:2]}])
    split.topology = regrow.TopologyUpdater(split.model, split.optimizer, method.recipe())
    for run in (together, split):
        run.train(range(STEPS))
    assert_same(split.model.state_dict(), together.model.state_dict())


@each_method
@pytest.mark.parametrize("as_keyword", [False, True])
def test_a_closure_works_and_its_value_is_returned(method, as_keyword):
    plain, closed = (Run(MLP, method.recipe(), SGD) for _ in range(2))
    for step in range(STEPS):
        losses = []

        def closure(step=step, losses=losses):
            closed.optimizer.zero_grad()
            losses.append(closed.loss(step))
            losses[-1].backward()
            return losses[-1]

        plain.step(step)
        value = closed.optimizer.step(closure=closure) if as_keyword else closed.optimizer.step(closure)
        assert [value] == losses
    assert_same(closed.state(), plain.state())


@each_method
def test_an_update_may_be_asked_for_at_any_step(method):
    updates = []
    never = {"update_at": regrow.schedule.never(), "rounding": "up", "keep_returning": False, "density": None}
    recipe = dataclasses.replace(method.recipe(), growth=regrow.growth.exact(), **never)
    run = Run(MLP, recipe, optimization("sgd-momentum"), on_update=lambda *change: updates.append(change)).train([0])
    before = regrow.masks(run.model)
    run.topology.update()
    (step, changes), after = updates[0], regrow.masks(run.model)
    assert (len(updates), step, run.topology.step) == (1, 1, 1)
    for name, change in changes.items():
        expected = before[name].flatten().clone()
        expected[change.drop] = False
        expected[change.grow] = True
        assert torch.equal(after[name].flatten(), expected)
        if recipe.drops is None and recipe.rewire is None:
            assert len(change.drop) == math.ceil(recipe.fraction(1) * int(before[name].sum()))


def test_removed_it_leaves_the_optimizer_alone():
    run = Run(MLP, method("set").recipe(), SGD)
    run.topology.remove()
    run.train(range(3))
    assert run.topology.step == 0
    masks = regrow.masks(run.model)
    assert any(weight[~masks[name]].any() for name, weight in weights(run.model).items())


@pytest.mark.parametrize("row", [row for row in METHODS if row.updates], ids=lambda row: row.name)
def test_frozen_weights_keep_their_topology(row):
    run = Run(MLP, row.recipe(), SGD)
    run.topology.remove()
    run.model[0].weight.requires_grad_(False)
    regrow.TopologyUpdater(run.model, run.optimizer, row.recipe())
    before = regrow.masks(run.model)
    run.train(range(STEPS))
    after = regrow.masks(run.model)
    assert torch.equal(after["0.weight"], before["0.weight"])
    assert not torch.equal(after["3.weight"], before["3.weight"])


@each_method
def test_tied_weights_have_one_mask_and_move_together(method):
    recipe = method.recipe()
    run = Run(model("tied"), recipe, SGD).train(range(STEPS))
    assert list(regrow.masks(run.model)) == ["encode.weight"]
    assert run.model.decode.weight is run.model.encode.weight
    density = 0.3 if recipe.density is None else recipe.density(STEPS)
    assert int(regrow.masks(run.model)["encode.weight"].sum()) == round(density * 64)
