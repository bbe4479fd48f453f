"""Linear layers that keep their weight as (inputs, outputs), as GPT-2's do, beside the same network of nn.Linear."""

import copy
import io
from itertools import pairwise

import pytest
import torch
from torch import nn

import regrow
from cases import Conv1D, assert_same, each_storage
from regrow.convert.rule import choose_by_rule
from regrow.core.positions import absent
from regrow.core.units import Units
from regrow.nn.sparse_inputs_first import SparseInputsFirstLinear
from regrow.storage import sparse_weights

MASK = torch.rand(7, 5, generator=torch.Generator().manual_seed(0)) < 0.4


def as_linear(layer):
    """Return the nn.Linear that computes the same."""
    linear = nn.Linear(layer.nx, layer.nf).to(layer.weight.dtype)
    linear.load_state_dict({"weight": layer.weight.detach().t(), "bias": layer.bias.detach()})
    return linear


def network(*sizes, linear=False):
    torch.manual_seed(0)
    layers = [Conv1D(outputs, inputs) for inputs, outputs in pairwise(sizes)]
    return nn.Sequential(*(as_linear(layer) if linear else layer for layer in layers))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["reference", "kernels"])
@pytest.mark.parametrize("shape", [(6, 7), (7,), (2, 3, 7)], ids=str)
def test_outputs_and_gradients_are_those_of_the_ordinary_layer(dtype, shape):
    dense = network(7, 5).to(dtype)
    sparse = regrow.sparsify(copy.deepcopy(dense), masks={"0.weight": MASK}, backend="cpu")
    assert type(sparse[0]) is SparseInputsFirstLinear
    dense.load_state_dict(regrow.dense_state_dict(sparse))
    inputs = [torch.randn(shape, dtype=dtype, requires_grad=True)]
    inputs.append(inputs[0].detach().clone().requires_grad_())
    outputs = [layer(x) for layer, x in zip((dense, sparse), inputs, strict=True)]
    torch.testing.assert_close(outputs[1], outputs[0])
    seen = torch.randn_like(outputs[0])
    for output in outputs:
        output.backward(seen)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    torch.testing.assert_close(sparse[0].bias.grad, dense[0].bias.grad)
    (weight,) = sparse_weights(sparse).values()
    torch.testing.assert_close(weight.existing(weight.weight.grad), dense[0].weight.grad[MASK])
    assert torch.equal(sparse[0].weight, dense[0].weight)


@pytest.mark.parametrize("share", [0.4, 1.0])
def test_absent_weights_are_known_by_their_place_in_the_ordinary_weight(share):
    dense = network(7, 5)
    sparse = regrow.sparsify(copy.deepcopy(dense), masks={"0.weight": MASK}, backend="cpu")
    dense.load_state_dict(regrow.dense_state_dict(sparse))
    x = torch.randn(6, 7)
    dense(x).square().sum().backward()
    expected = dense[0].weight.grad.flatten()
    (weight,) = sparse_weights(sparse).values()
    others = absent(weight.index(), weight.numel)
    others = others[: round(share * len(others))]
    state = weight.cover(None if share == 1 else others, {"numbers": weight.weight.detach().clone()})
    sparse(x).square().sum().backward()
    for positions in (others, weight.index()):
        torch.testing.assert_close(weight.at(weight.weight.grad, positions), expected[positions])
    if share == 1:
        torch.testing.assert_close(weight.everywhere(weight.weight.grad), expected)
    weight.put(state["numbers"], others[:3], torch.tensor([1.0, 2.0, 3.0]))
    assert weight.at(state["numbers"], others[:3]).tolist() == [1, 2, 3]
    back = weight.uncover(state)["numbers"]
    assert torch.equal(weight.existing(back), dense[0].weight.detach()[MASK])


@each_storage
def test_the_ordinary_layer_comes_back(storage):
    plain = network(7, 5)
    sparse = regrow.sparsify(copy.deepcopy(plain), masks={"0.weight": MASK}, backend=storage)
    assert torch.equal(regrow.masks(sparse)["0.weight"], MASK)
    assert sorted(regrow.dense_state_dict(sparse)) == ["0.bias", "0.weight"]
    before = torch.get_rng_state()
    back = regrow.densify(sparse)
    assert torch.equal(torch.get_rng_state(), before)
    assert type(back[0]) is Conv1D
    assert (back[0].nf, back[0].nx) == (5, 7)
    assert torch.equal(back[0].weight, plain[0].weight * MASK)
    assert torch.equal(back[0].bias, plain[0].bias)
    assert list(back.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("source", ["masked", "cpu", "dense"])
@pytest.mark.parametrize("target", ["masked", "cpu"])
def test_a_state_of_any_form_loads_into_both_storages(source, target):
    of = regrow.sparsify(network(7, 5), masks={"0.weight": MASK}, backend="cpu" if source == "dense" else source)
    file = io.BytesIO()
    torch.save(regrow.dense_state_dict(of) if source == "dense" else of.state_dict(), file)
    file.seek(0)
    other = MASK if source == "dense" else MASK.roll(1, 0)
    into = regrow.sparsify(network(7, 5), masks={"0.weight": other}, backend=target)
    nn.init.ones_(next(into.parameters()))
    assert str(into.load_state_dict(torch.load(file, weights_only=True))) == "<All keys matched successfully>"
    assert_same(regrow.masks(into), regrow.masks(of))
    assert_same(dict(regrow.dense_state_dict(into)), dict(regrow.dense_state_dict(of)))


@pytest.mark.parametrize("growth", [None, regrow.growth.candidates(2, 3)], ids=["window", "candidates"])
@pytest.mark.parametrize("block", [(1, 1), (4, 1)], ids=str)
def test_both_storages_end_with_the_same_masks_and_weights(growth, block):
    ends = []
    for storage in ("masked", "cpu"):
        model = regrow.sparsify(network(16, 24, 8), 0.3, block=block, backend=storage)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        regrow.TopologyUpdater(model, optimizer, regrow.sparse_momentum(every=3, steps=12, growth=growth))
        for step in range(12):
            optimizer.zero_grad()
            x = torch.randn(8, 16, generator=torch.Generator().manual_seed(step))
            (model(x) - 1).square().mean().backward()
            optimizer.step()
        ends.append((regrow.masks(model), regrow.dense_state_dict(model)))
    assert_same(ends[1][0], ends[0][0])
    torch.testing.assert_close(ends[1][1], ends[0][1], rtol=1e-4, atol=1e-5)


def test_units_are_blocks_of_outputs_that_share_an_input():
    sparse = regrow.sparsify(network(16, 24), 0.25, block=(4, 1), backend="cpu")
    assert sparse[0].unit == sparse[0].pattern.unit == (4, 1)
    mask = regrow.masks(sparse)["0.weight"]
    assert torch.equal(mask, mask[:, ::4].repeat_interleave(4, 1))
    assert regrow.summary(sparse).layers[0].unit == (1, 4)


@pytest.mark.parametrize("sizes", [(256, 128), (128, 16), (1024, 4096)], ids=str)
@pytest.mark.parametrize("block", [(1, 1), (4, 1)], ids=str)
def test_the_rule_takes_them_for_linear_layers(sizes, block):
    from regrow.convert.eligible import eligible

    reasons = []
    for linear in (False, True):
        with torch.device("meta"):
            model = network(*sizes) if not linear else nn.Sequential(nn.Linear(*sizes))
        model = model.to_empty(device="cpu")
        (slot,) = eligible(model)
        numel = slot.weight.numel()
        positions = (torch.arange(numel) % 10 == 0).view(slot.weight.shape)
        units = Units(tuple(slot.weight.shape), block if linear else block[::-1])
        reasons.append(choose_by_rule(model, [slot], {slot.name: positions}, {slot.name: units}))
    assert reasons[0] == reasons[1]


def test_the_summary_counts_a_multiply_add_for_each_weight_and_vector():
    sparse = regrow.sparsify(network(7, 5), masks={"0.weight": MASK}, backend="cpu")
    (layer,) = regrow.summary(sparse, torch.zeros(2, 3, 7)).layers
    assert layer.shape == (7, 5)
    assert layer.flops == 2 * 3 * int(MASK.sum())


def test_n_of_m_lie_along_the_inputs():
    model = regrow.sparsify(network(8, 6), 1.0, backend="masked")
    regrow.StepUpdater(model, torch.optim.SGD(model.parameters(), lr=0.1), regrow.sr_ste(keep=2, of=4))
    kept = regrow.masks(model)["0.weight"].view(2, 4, 6).sum(1)
    assert torch.equal(kept, torch.full((2, 6), 2))


def test_a_module_of_that_name_without_such_a_weight_is_left_alone():
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

    Other.__name__ = "Conv1D"
    model = nn.Sequential(Other(), nn.Linear(4, 4))
    assert list(regrow.masks(regrow.sparsify(model, 0.5))) == ["1.weight"]


def test_a_subclass_is_masked_for_it_may_use_its_weight_in_other_ways():
    class Gated(Conv1D):
        def forward(self, x):
            return super().forward(x) * self.weight.sum()

    model = regrow.sparsify(nn.Sequential(Gated(64, 512)), 0.05)
    assert type(model[0]) is Gated
    with pytest.raises(ValueError, match=r"Gated\.weight has none"):
        regrow.sparsify(nn.Sequential(Gated(64, 512)), 0.05, backend="cpu")
