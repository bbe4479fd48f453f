"""SNIP, GraSP and SynFlow: each beside its definition, and what all of them promise."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import regrow
from cases import MODELS, assert_same, each_model
from regrow.saliency import SALIENCIES, grasp, snip, synflow
from regrow.saliency.network import highest
from regrow.saliency.synflow import synflow_scores

LABELS = torch.arange(12) % 3


def network(**settings):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7, **settings), nn.ReLU(), nn.Linear(7, 3, **settings)).double()


def batch():
    return torch.randn(12, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def plain(first, second, model, x):
    """The network as two lines, with its own biases."""
    return F.relu(x @ first.T + model[0].bias) @ second.T + model[2].bias


def best(scores, count):
    """The `count` highest of a list of tensors, by a stable sort."""
    flat = torch.cat([score.reshape(-1) for score in scores])
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[sorted(range(len(flat)), key=lambda at: (-flat[at].item(), at))[:count]] = True
    parts = torch.split(chosen, [score.numel() for score in scores])
    return [part.view(score.shape) for part, score in zip(parts, scores, strict=True)]


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_snip_is_the_derivative_by_a_factor_on_every_weight(density):
    model, x = network(), batch()
    factors = [torch.ones_like(layer.weight, requires_grad=True) for layer in (model[0], model[2])]
    loss = F.cross_entropy(plain(model[0].weight * factors[0], model[2].weight * factors[1], model, x), LABELS)
    loss.backward()
    scores = [factor.grad.abs() for factor in factors]
    total = sum(score.sum() for score in scores)
    expected = best([score / total for score in scores], round(density * 56))
    assert_same(list(snip(model, density, x, LABELS).values()), expected)


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_grasp_is_the_product_of_the_whole_hessian_and_the_gradient(density):
    model, x = network(), batch()
    sizes = [layer.weight.numel() for layer in (model[0], model[2])]
    flat = torch.cat([layer.weight.detach().reshape(-1) for layer in (model[0], model[2])])

    def loss(vector):
        first, second = torch.split(vector, sizes)
        halves = (slice(0, 6), slice(6, 12))
        outputs = [plain(first.view(7, 5), second.view(3, 7), model, x[half]) / 200 for half in halves]
        return sum(F.cross_entropy(each, LABELS[half]) for each, half in zip(outputs, halves, strict=True))

    gradient = torch.autograd.functional.jacobian(loss, flat)
    product = torch.autograd.functional.hessian(loss, flat) @ gradient
    expected = best(
        [part.view(-1, 5 if part.numel() == 35 else 7) for part in torch.split(flat * product, sizes)],
        round(density * 56),
    )
    assert_same(list(grasp(model, density, x, LABELS).values()), expected)


def test_the_score_of_synflow_is_the_sum_over_paths():
    model = network(bias=False)
    first, second = model[0].weight.detach().abs(), model[2].weight.detach().abs()
    masks = {"0.weight": first > 0.1, "2.weight": second > 0.1}
    left = first * masks["0.weight"], second * masks["2.weight"]
    scores = synflow_scores(model, masks, (5,))
    torch.testing.assert_close(scores["0.weight"], left[0] * left[1].sum(0)[:, None])
    torch.testing.assert_close(scores["2.weight"], left[1] * left[0].sum(1)[None])


def test_the_score_of_synflow_is_conserved():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(6, 4, 3, bias=False), nn.ReLU(), nn.Flatten(),
        nn.Linear(36, 8, bias=False), nn.ReLU(), nn.Linear(8, 5, bias=False),
    )  # fmt: skip
    masks = regrow.masks(regrow.sparsify(deepcopy(model), 0.4, backend="masked"))
    scores = list(synflow_scores(model, masks, (3, 5, 5)).values())
    sums = torch.stack([score.sum() for score in scores])
    torch.testing.assert_close(sums, sums[0].expand_as(sums))  # of every layer
    conv, following, _, last = scores
    torch.testing.assert_close(conv.sum((1, 2, 3)), following.sum((0, 2, 3)))  # of what enters a unit and leaves it
    torch.testing.assert_close(scores[2].sum(1), last.sum(0))


def deep(width=12, layers=14):
    torch.manual_seed(3)
    return nn.Sequential(*(part for _ in range(layers) for part in (nn.Linear(width, width), nn.ReLU())))


def test_synflow_loses_no_layer_where_one_round_does():
    model = deep()
    for layer in list(model)[2:8:2]:  # these would look worthless beside the others
        layer.weight.data.mul_(0.01)
    for layer in list(model)[::2]:
        layer.bias.data.zero_()
    once, often = (synflow(model, 0.012, (12,), rounds=rounds) for rounds in (1, 100))
    assert sum(int(mask.sum()) for mask in often.values()) == round(0.012 * 14 * 144)
    assert all(bool(mask.any()) for mask in often.values())
    assert sum(not mask.any() for mask in once.values()) > 0
    x = torch.ones(1, 12)
    weights = {name: model.get_parameter(name).abs() * mask for name, mask in often.items()}
    assert torch.func.functional_call(model, weights, (x,)).sum() > 0  # a path is left


def test_synflow_computes_in_double_precision():
    model = deep(width=400, layers=34)
    for layer in list(model)[::2]:
        layer.weight.data.mul_(8)  # in single precision the sum of outputs would be infinite
    masks = synflow(model, 0.05, (400,), rounds=3)
    assert sum(int(mask.sum()) for mask in masks.values()) == round(0.05 * 34 * 160_000)


def test_what_synflow_has_removed_does_not_return():
    model = network(bias=False)
    half, quarter = synflow(model, 0.5, (5,), rounds=1), synflow(model, 0.25, (5,), rounds=2)
    assert all(bool((half[name] | ~quarter[name]).all()) for name in half)  # the first of its rounds keeps that half
    again = synflow_scores(model, half, (5,))
    assert_same(quarter, highest(again, 14))


def masks_of(name, model, density, inputs, **settings):
    if name == "synflow":
        return synflow(model, density, tuple(inputs.shape[1:]), rounds=4, **settings)
    return SALIENCIES[name](
        model, density, inputs, torch.zeros(()), loss=lambda y, _: (y - 1).square().mean(), **settings
    )


each_saliency = pytest.mark.parametrize("name", SALIENCIES)


@each_saliency
@each_model
def test_any_model_is_left_as_it_was_and_as_many_weights_are_kept_as_asked_for(name, model):
    if name == "synflow" and model.vocabulary:
        pytest.skip("an input of ones is no input of an embedding")
    dense, inputs = model.build(), model.inputs(0)
    next(dense.parameters()).grad = torch.ones_like(next(dense.parameters()))
    list(dense.modules())[-1].eval()
    modes = [module.training for module in dense.modules()]
    before, grads = deepcopy(dense.state_dict()), [parameter.grad for parameter in dense.parameters()]
    generator = torch.get_rng_state()
    masks = masks_of(name, dense, 0.3, inputs)
    assert_same(dense.state_dict(), before)
    assert all(now is then for now, then in zip((p.grad for p in dense.parameters()), grads, strict=True))
    assert [module.training for module in dense.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)
    assert tuple(masks) == model.weights
    sparse = regrow.sparsify(dense, masks=masks, backend="masked")
    assert_same(regrow.masks(sparse), masks)
    assert regrow.summary(sparse).nonzeros == round(0.3 * sum(mask.numel() for mask in masks.values()))


@each_saliency
def test_what_stays_dense_is_not_counted(name):
    model = MODELS[0].build()
    masks = masks_of(name, model, 0.5, MODELS[0].inputs(0), keep_dense=["last"])
    assert {key: int(mask.sum()) for key, mask in masks.items()} == {"0.weight": 48}


@each_saliency
def test_equal_runs_give_equal_masks(name):
    model = MODELS[2]
    built = model.build()
    assert_same(*(masks_of(name, built, 0.2, model.inputs(0)) for _ in range(2)))


def test_ties_fall_to_the_earlier_layer_and_position():
    scores = {"a": torch.tensor([[1.0, 2.0], [2.0, 0.0]]), "b": torch.tensor([2.0, 3.0])}
    masks = highest(scores, 3)
    assert masks["a"].tolist() == [[False, True], [True, False]]
    assert masks["b"].tolist() == [False, True]


def test_norms_take_the_statistics_of_the_batch_or_their_running_ones():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.ReLU(), nn.Linear(8, 3))
    x = 5 * torch.randn(12, 6) + 2
    for training in (True, False):
        plain = deepcopy(model).eval()
        plain[1].train(training)
        F.cross_entropy(plain(x), LABELS).backward()
        scores = [(layer.weight * layer.weight.grad).abs() for layer in (plain[0], plain[4])]
        assert_same(
            list(snip(model, 0.3, x, LABELS, batch_statistics=training).values()), best(scores, round(0.3 * 72))
        )


@each_saliency
def test_what_cannot_be_is_said(name):
    model, inputs = MODELS[0].build(), MODELS[0].inputs(0)
    with pytest.raises(ValueError, match=r"density 0 is outside \(0, 1\]"):
        masks_of(name, model, 0, inputs)
    with pytest.raises(ValueError, match="keeps none of 156 weights"):
        masks_of(name, model, 1e-4, inputs)
    with pytest.raises(ValueError, match="matches no weight"):
        masks_of(name, model, 0.5, inputs, keep_dense=["head"])
    with pytest.raises(ValueError, match="sparse already"):
        masks_of(name, regrow.sparsify(MODELS[0].build(), 0.5), 0.5, inputs)
    model[0].weight.data[0, 0] = torch.inf
    with pytest.raises(ValueError, match="not finite"):
        masks_of(name, model, 0.5, inputs)
    assert model.training


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="0 rounds"):
        synflow(network(), 0.5, (5,), rounds=0)
    with pytest.raises(ValueError, match="two samples or more"):
        grasp(network(), 0.5, batch()[:1], LABELS[:1])
