"""Each method that acts in every step beside its plain form, and what its card says."""

import inspect
from copy import deepcopy

import pytest
import torch
from torch import nn

import regrow
import step_reference
from cases import EVERY, STEP_METHODS, STEPS, each_step_method, model, optimization
from regrow.core.step_rule import StepLayer, largest
from regrow.methods.sr_ste import largest_of_groups

OPTIMIZERS = [optimization(name) for name in ("sgd", "sgd-nesterov", "adam", "adamw-foreach")]
MODELS = [model(name) for name in ("mlp", "conv2d", "transposed2d")]
each_optimizer = pytest.mark.parametrize("optimization", OPTIMIZERS, ids=lambda row: row.name)
each_model = pytest.mark.parametrize("model", MODELS, ids=lambda row: row.name)


def row(name):
    return next(method for method in STEP_METHODS if method.name == name)


def loss(outputs):
    return (outputs - 1).square().mean()


def pair(method, model, optimization, **changes):
    """The library's model, optimizer and updater, and a dense model with its own optimizer that starts the same."""
    torch.manual_seed(0)
    sparse = model.build().double()
    dense = deepcopy(sparse)
    regrow.sparsify(sparse, method.density, backend="masked")
    optimizer = optimization.build(sparse.parameters())
    topology = regrow.StepUpdater(sparse, optimizer, method.rule(**changes))
    return (sparse, optimizer, topology), (dense, optimization.build(dense.parameters()))


def step(model, optimizer, inputs):
    optimizer.zero_grad()
    loss(model(inputs)).backward()
    optimizer.step()


def plain(method, dense, sparse, topology, model, **changes):
    """The method's plain form on the dense model."""
    weights = {name: dense.get_parameter(name) for name in model.weights}
    settings = {**method.settings, **changes}
    if method.name == "top-kast":
        return step_reference.TopKast(weights, every=EVERY, **settings)
    if method.name == "sr-ste":
        rule = step_reference.SrSte(weights, **settings)
        rule.dimension = 0 if model.name.startswith("transposed") else 1
        return rule
    if method.name == "soft-threshold":
        return step_reference.SoftThreshold(weights, **settings)
    masks, positive = regrow.masks(sparse), topology.state_dict()["numbers"]
    signs = {name: 2 * positive[name]["positive"].double() - 1 for name in weights}
    with torch.no_grad():
        for name, weight in weights.items():
            weight.mul_(masks[name])
    return step_reference.DeepR(weights, masks, signs, torch.Generator(), **settings)


@each_step_method
@each_model
@each_optimizer
def test_a_training_is_that_of_the_plain_form(method, model, optimization):
    (sparse, optimizer, topology), (dense, own) = pair(method, model, optimization)
    rule = plain(method, dense, sparse, topology, model)
    for number in getattr(rule, "numbers", {}).values():
        own.param_groups[0]["params"].append(number)
    for seed in range(STEPS):
        inputs = model.inputs(seed).double()
        state = topology.state_dict()["generator"].clone()
        step(sparse, optimizer, inputs)
        masks = regrow.masks(sparse)
        if method.name == "deep-r":
            rule.generator.set_state(state)

            def drawn(name, active, count, masks=masks):
                new = masks[name].view(-1) & ~active.view(-1)
                assert int(new.sum()) == count
                return new

            rule.drawn = drawn
        step_reference.train_step(dense, rule, own, seed + 1, inputs, loss)
        for name in model.weights:
            assert torch.equal(masks[name], rule.masks()[name]), (seed, name)
            expected = rule.effective(name).detach()
            torch.testing.assert_close(sparse.get_parameter(name).detach(), expected, rtol=1e-9, atol=1e-12)
    for key, number in getattr(rule, "numbers", {}).items():
        found = topology.state_dict()["learned"][key]["threshold"]
        torch.testing.assert_close(found, number.detach(), rtol=1e-9, atol=0)


@each_step_method
def test_a_method_is_registered_under_its_name_and_has_a_card(method):
    factory = regrow.methods.STEP_METHODS[method.name]
    assert factory is getattr(regrow, method.name.replace("-", "_"))
    card = inspect.getdoc(factory)
    parts = ("What it does", "When to use it", "Settings", "Watch for", "Cost and information", "Credit")
    assert [part for part in parts if f"**{part}.**" not in card] == []
    assert {"every", "steps"} <= set(inspect.signature(factory).parameters)


def test_every_method_is_in_the_table():
    assert [method.name for method in STEP_METHODS] == list(regrow.methods.STEP_METHODS)


# Top-KAST


def test_the_two_sets_are_the_largest_and_the_next():
    weight = torch.tensor([[3.0, -4.0, 1.0, 0.5], [-3.0, 0.25, 2.0, 0.1]])
    trained, network = largest(weight, (5, 2))
    assert network.tolist() == [[True, True, False, False], [False] * 4]  # 3 and -3 tie: the earlier
    assert trained.tolist() == [[True, True, True, False], [True, False, True, False]]


def test_top_kast_leaves_what_is_outside_of_both_sets_alone():
    method = row("top-kast")
    (sparse, optimizer, topology), _ = pair(method, MODELS[0], optimization("adamw-foreach"), every=100)
    start = deepcopy(topology.state_dict())
    for seed in range(STEPS):
        step(sparse, optimizer, MODELS[0].inputs(seed).double())
    end = topology.state_dict()
    for name in MODELS[0].weights:
        trained, network = start["trained"][name], regrow.masks(sparse)[name]
        assert bool((trained | ~network).all())
        assert int(trained.sum()) == 2 * int(network.sum())
        assert torch.equal(end["dense"][name][~trained], start["dense"][name][~trained])
        assert not torch.equal(end["dense"][name][trained & ~network], start["dense"][name][trained & ~network])
        assert not optimizer.state[sparse.get_parameter(name)]["exp_avg"][~trained].any()


def test_a_weight_of_top_kast_comes_back_with_its_value():
    model = nn.Sequential(nn.Linear(4, 1, bias=False))
    model[0].weight.data = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    regrow.sparsify(model, 1.0, backend="masked")
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    regrow.StepUpdater(model, optimizer, regrow.top_kast(every=1, density=0.25, backward_density=0.5, penalty=0.0))
    seen = [model[0].weight.tolist()]
    for gradient in ([[3.5, 9.0, 0.0, 0.0]], [[0.0, 0.0, 0.0, 0.0]], [[0.0, 0.0, 8.0, 8.0]]):
        model[0].weight.grad = torch.tensor(gradient)
        optimizer.step()
        seen.append(model[0].weight.tolist())
    # 4 and 3 are trained: they become 0.5 and -6; then -6 and 2 are, and 2 - 8 = -6 ties with it
    assert seen == [[[4.0, 0.0, 0.0, 0.0]], [[0.0, -6.0, 0.0, 0.0]], [[0.0, -6.0, 0.0, 0.0]], [[0.0, -6.0, 0.0, 0.0]]]
    model[0].weight.grad = torch.tensor([[0.0, -6.0, 0.0, 0.0]])
    optimizer.step()
    assert model[0].weight.tolist() == [[0.0, 0.0, -6.0, 0.0]]


def test_top_kast_may_cease_to_explore():
    (sparse, optimizer, topology), _ = pair(row("top-kast"), MODELS[0], OPTIMIZERS[1], explore=0.5)
    for seed in range(STEPS):
        step(sparse, optimizer, MODELS[0].inputs(seed).double())
        for name, mask in regrow.masks(sparse).items():
            more = 1 if seed + 1 >= STEPS // 2 else 2
            assert int(topology.state_dict()["trained"][name].sum()) == more * int(mask.sum())


def test_top_kast_spreads_its_sets_as_asked_for():
    model = regrow.sparsify(nn.Sequential(nn.Linear(40, 80), nn.Linear(80, 4)), 1.0, backend="masked")
    rule = regrow.top_kast(density=0.1, backward_density=0.3, distribution="erdos-renyi")
    topology = regrow.StepUpdater(model, torch.optim.SGD(model.parameters(), lr=0.1), rule)
    shapes = {"0.weight": (80, 40), "1.weight": (4, 80)}
    trained = {name: int(mask.sum()) for name, mask in topology.state_dict()["trained"].items()}
    assert {n: int(m.sum()) for n, m in regrow.masks(model).items()} == regrow.distribution.erdos_renyi(shapes, 0.1)
    assert trained == regrow.distribution.erdos_renyi(shapes, 0.3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"density": 0.5, "every": 0}, "every 0 steps"),
        ({"density": 0.0}, "density 0 and"),
        ({"density": 0.5, "backward_density": 0.4}, "density 0.5 and backward_density 0.4"),
        ({"density": 0.5, "explore": 0.5}, "explore=0.5"),
    ],
)
def test_settings_of_top_kast_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        regrow.top_kast(**settings)


# SR-STE


@pytest.mark.parametrize(("keep", "of"), [(2, 4), (1, 4), (1, 2), (3, 8)])
@pytest.mark.parametrize("shape", [(8, 16), (4, 8, 3, 3), (2, 8, 5)])
def test_groups_are_along_the_input_at_one_position_of_the_kernel(keep, of, shape):
    weight = torch.randint(-4, 5, shape).float()  # with ties
    mask = largest_of_groups(weight, keep, of)
    rows = weight.movedim(1, -1).reshape(-1, shape[1])
    for values, kept in zip(rows.tolist(), mask.movedim(1, -1).reshape(-1, shape[1]).tolist(), strict=True):
        for start in range(0, shape[1], of):
            group = values[start : start + of]
            best = sorted(range(of), key=lambda at: (-abs(group[at]), at))[:keep]
            assert [at for at in range(of) if kept[start + at]] == sorted(best)


def test_the_pattern_is_that_of_sparse_tensor_cores():
    conversions = pytest.importorskip("torch.sparse._semi_structured_conversions")
    model = regrow.sparsify(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)), 1.0, backend="masked")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    topology = regrow.StepUpdater(model, optimizer, regrow.sr_ste())
    for _ in range(5):
        step(model, optimizer, torch.randn(8, 64))
    topology.remove()
    for layer in (regrow.densify(model)[0], model[2]):
        weight = layer.weight.detach().half()
        values, meta = conversions.sparse_semi_structured_from_dense_cutlass(weight)
        assert values.shape == (len(weight), 32)
        assert torch.equal(conversions.sparse_semi_structured_to_dense_cutlass(values, meta), weight)


def test_what_sr_ste_cannot_group_is_named():
    model = regrow.sparsify(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)), 1.0, backend="masked")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"'0.weight' has the shape \(8, 3, 3, 3\): 4 does not divide the inputs"):
        regrow.StepUpdater(model, optimizer, regrow.sr_ste())
    with pytest.raises(ValueError, match="5 of 4 is no pattern"):
        regrow.sr_ste(keep=5)


# STR


def test_a_soft_threshold_that_nothing_decays_follows_the_loss():
    """One weight of 1 under a threshold t = sigmoid(s): the network has 1 - t, and d(1 - t)/ds = -t (1 - t)."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False))
    model[0].weight.data.fill_(1.0)
    regrow.sparsify(model, 1.0, backend="masked")
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    topology = regrow.StepUpdater(model, optimizer, regrow.soft_threshold(initial=0.0))
    assert model[0].weight.item() == 0.5
    model[0].weight.grad = torch.tensor([[0.25]])
    optimizer.step()
    number = topology.state_dict()["learned"]["0.weight"]["threshold"]
    assert number.item() == pytest.approx(0.25 * 0.25)
    assert model[0].weight.item() == pytest.approx(0.75 - number.sigmoid().item())


def test_weight_decay_draws_the_threshold_up_and_the_network_thin():
    torch.manual_seed(0)
    model = regrow.sparsify(nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 4)), 1.0, backend="masked")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.05)
    topology = regrow.StepUpdater(model, optimizer, regrow.soft_threshold(initial=-8.0, decay=0.2))
    before = regrow.summary(model).density
    for _ in range(60):
        step(model, optimizer, torch.randn(16, 32))
    assert before > 0.98
    assert regrow.summary(model).density < 0.6
    assert all(-8 < each["threshold"] < 0 for each in topology.state_dict()["learned"].values())


# DeepR


def rewired(weights, *, gradient=None, **settings):
    """One layer, with as many absent weights as present ones, after a step of SGD at learning rate 1."""
    present = torch.tensor([weights])
    model = nn.Sequential(nn.Linear(2 * len(weights), 1, bias=False))
    model[0].weight.data = torch.cat((present, torch.zeros_like(present)), dim=1)
    regrow.sparsify(
        model, masks={"0.weight": torch.tensor([[True] * len(weights) + [False] * len(weights)])}, backend="masked"
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    regrow.StepUpdater(model, optimizer, regrow.deep_r(**{"drift": 0.0, "noise": 0.0, **settings}))
    model[0].weight.grad = torch.zeros_like(model[0].weight)
    if gradient is not None:
        model[0].weight.grad[0, : len(gradient)] = torch.tensor(gradient)
    optimizer.step()
    return model[0].weight[0].tolist(), regrow.masks(model)["0.weight"][0].tolist()


def test_a_weight_that_changes_its_sign_goes_and_another_comes_at_zero():
    values, mask = rewired([1.0, -1.0, 2.0, -2.0], gradient=[1.5, -0.5, 0.5, -2.5])
    assert [values[at] for at in (1, 2)] == [-0.5, 1.5]
    assert [value for at, value in enumerate(values) if at not in (1, 2)] == [0.0] * 6
    assert mask[1]
    assert mask[2]
    assert sum(mask) == 4


def test_drift_goes_towards_zero_and_not_beyond():
    values, mask = rewired([1.0, -1.0, 0.25, -0.5], drift=0.5)
    assert values[:4] == [0.5, -0.5, 0.0, 0.0]  # the third has gone, the last has come to zero
    assert mask[3]
    assert sum(mask) == 4


def test_the_noise_has_the_deviation_that_was_asked_for():
    values, _ = rewired([8.0] * 4000, noise=0.5)
    moved = torch.tensor(values[:4000]) - 8
    assert moved.std().item() == pytest.approx(0.5, rel=0.05)
    assert abs(moved.mean().item()) < 0.03


def test_signs_stay_for_good():
    (sparse, optimizer, topology), _ = pair(row("deep-r"), MODELS[0], OPTIMIZERS[1])
    positive = {name: part["positive"].clone() for name, part in topology.state_dict()["numbers"].items()}
    for seed in range(30):
        step(sparse, optimizer, MODELS[0].inputs(seed).double())
        for name, signs in positive.items():
            weight = sparse.get_parameter(name).detach()
            assert not (weight[signs] < 0).any()
            assert not (weight[~signs] > 0).any()
            assert torch.equal(topology.state_dict()["numbers"][name]["positive"], signs)


def test_what_is_drawn_is_uniform_over_all_that_is_absent():
    layer = StepLayer("weight", 1, torch.zeros(1, 8), torch.zeros(1, 8, dtype=torch.bool))
    layer.trained = layer.mask.clone()
    rule, generator, counts = regrow.deep_r(noise=0.0), torch.Generator().manual_seed(0), torch.zeros(8)
    for _ in range(2000):
        layer.weight.zero_()[0, 0] = -1.0  # on the wrong side
        layer.mask.zero_()[0, 0] = True
        layer.numbers["positive"] = torch.ones(1, 8, dtype=torch.bool)
        rule.after_step({"weight": layer}, 1, generator)
        counts += layer.mask[0]
    assert counts.sum() == 2000
    assert (counts / 2000 - 1 / 8).abs().max() < 0.03


def test_rewiring_keeps_the_number_of_each_layer_or_of_the_network():
    for scope in ("layer", "network"):
        (sparse, optimizer, _), _ = pair(row("deep-r"), MODELS[0], OPTIMIZERS[0], scope=scope, drift=0.5)
        before = [int(mask.sum()) for mask in regrow.masks(sparse).values()]
        for seed in range(5):
            step(sparse, optimizer, MODELS[0].inputs(seed).double())
        after = [int(mask.sum()) for mask in regrow.masks(sparse).values()]
        assert sum(after) == sum(before)
        assert (after == before) is (scope == "layer")
    with pytest.raises(ValueError, match="no scope 'all'"):
        regrow.deep_r(scope="all")


def test_drift_and_noise_may_be_schedules():
    rule = regrow.deep_r(drift=regrow.schedule.linear(1.0, 10), noise=0.5)
    assert (rule.drift(5), rule.noise(5)) == (0.5, 0.5)
