"""`weight` of a sparse layer: reads as the dense weight, is no part of the module's state, and cannot be written."""

import copy
import pickle

import pytest
import torch
from torch import nn

import regrow
from cases import Run, assert_same, method, model, optimization


def layer(kind="linear"):
    dense = {
        "linear": lambda: nn.Linear(6, 4),
        "conv1d": lambda: nn.Conv1d(4, 2, 3),
        "conv2d": lambda: nn.Conv2d(4, 6, 3),
    }
    return regrow.sparsify(nn.Sequential(dense[kind]()), 0.5, backend="cpu")[0]


@pytest.mark.parametrize("kind", ["linear", "conv1d", "conv2d"])
def test_it_reads_as_the_dense_weight(kind):
    sparse = layer(kind)
    assert torch.equal(sparse.weight, sparse.to_dense().weight)
    assert sparse.weight.shape == sparse.shape
    assert type(sparse.weight * 2) is torch.Tensor
    assert torch.equal(sparse.weight.abs().max(), sparse.values.abs().max())


def test_it_reads_active_weights_alone_while_growth_gathers():
    run = Run(model("mlp"), method("sparse-momentum").recipe(), optimization("sgd-momentum"), storage="cpu").train(
        range(3)
    )
    assert run.model[0].covered is not None
    assert torch.equal(run.model[0].weight, regrow.dense_state_dict(run.model)["0.weight"])


def test_gradients_flow_to_the_values():
    sparse = layer()
    sparse.weight.square().sum().backward()
    torch.testing.assert_close(sparse.values.grad, 2 * sparse.values.detach())


def test_it_is_no_part_of_the_state():
    sparse = layer()
    assert set(sparse.state_dict()) == {"values", "index", "bias"}
    assert {name for name, _ in sparse.named_parameters()} == {"values", "bias"}
    for other in (copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse))):
        assert_same(other.state_dict(), sparse.state_dict())
        assert torch.equal(other.weight, sparse.weight)


def in_place(weight):
    weight += 1


def through_an_index(weight):
    weight[0] = 1


def by_data(weight):
    weight.data = torch.zeros(4, 6)


def frozen(weight):
    weight.requires_grad = False


WRITES = {
    "init": nn.init.kaiming_uniform_,
    "init.zeros_": nn.init.zeros_,
    "zero_": torch.Tensor.zero_,
    "copy_": lambda weight: weight.copy_(torch.zeros(4, 6)),
    "of .data": lambda weight: weight.data.normal_(),
    "of detach()": lambda weight: weight.detach().mul_(2),
    "of a view": lambda weight: weight.view(-1)[2:].fill_(0),
    "of a row": lambda weight: next(iter(weight)).fill_(0),
    "foreach": lambda weight: torch._foreach_mul_([weight], 2.0),
    "out": lambda weight: torch.add(torch.ones(4, 6), 1, out=weight),
    "+=": in_place,
    "[]": through_an_index,
    "data": by_data,
    "requires_grad": frozen,
    "requires_grad_": lambda weight: weight.requires_grad_(False),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_a_write_that_would_be_lost_raises(write):
    with torch.no_grad(), pytest.raises(RuntimeError, match="a write into it would be lost: load other weights with"):
        write(layer().weight)
    other = torch.zeros(4, 6)
    other.copy_(layer().weight).add_(layer().weight)
    layer().weight.clone().zero_()


@pytest.mark.parametrize(
    "weight", [torch.zeros(4, 6), nn.Parameter(torch.zeros(4, 6)), None], ids=["tensor", "parameter", "none"]
)
def test_another_weight_is_refused_with_the_mend(weight):
    sparse = layer()
    with pytest.raises(AttributeError, match=r"layer\.load_state_dict"):
        sparse.weight = weight
    with pytest.raises(AttributeError, match=r"layer\.load_state_dict"):
        sparse.register_parameter("weight", weight)
    sparse.load_state_dict({"weight": torch.ones(4, 6)}, strict=False)
    assert torch.equal(sparse.values, torch.ones(12))
