"""Positions at which weights are used, as modules are called, beside those counted by hand."""

import copy
import pickle

import pytest
import torch
from test_summary import POSITIONS
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.checkpoint import checkpoint

import regrow
from cases import each_storage, each_stored
from regrow.convert.uses import Uses
from regrow.storage import sparse_weights


def counting(network, *, storage="masked", **settings):
    network = regrow.sparsify(network, 0.5, backend=storage)
    return network, Uses(network, sparse_weights(network), **settings)


@each_stored
def test_every_kind_of_layer_is_counted_in_training(model, storage):
    network, uses = counting(model.build(), storage=storage, training_only=True)
    assert uses.costs() is None
    for seed in range(3):
        network(model.inputs(seed, batch=2 + seed)).sum().backward()
    assert list(uses.costs().values()) == POSITIONS[model.name]
    assert uses.samples == 9


def multiply_adds(layer, x):
    """Count multiply-adds of a sample by what its output is, for an input and a kernel of ones and no padding."""
    with torch.no_grad():
        ones = copy.deepcopy(layer)
        ones.weight.fill_(1)
        return float(ones(torch.ones_like(x)).sum()) / len(x)


@each_storage
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 6, 3, bias=False), (3, 4, 9, 8)),
        (nn.Conv2d(4, 6, 3, stride=(2, 3), bias=False), (3, 4, 9, 11)),
        (nn.Conv2d(4, 6, (3, 2), dilation=(2, 1), bias=False), (3, 4, 9, 8)),
        (nn.Conv2d(4, 6, 3, groups=2, bias=False), (3, 4, 9, 8)),
        (nn.Conv1d(4, 6, 3, stride=2, bias=False), (3, 4, 9)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=0, bias=False), (3, 4, 5, 4)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, output_padding=1, bias=False), (3, 4, 5, 4)),
        (nn.ConvTranspose1d(4, 6, 3, dilation=2, bias=False), (3, 4, 5)),
        (nn.Linear(5, 6, bias=False), (3, 5)),
        (nn.Linear(5, 6, bias=False), (3, 7, 2, 5)),
    ],
    ids=str,
)
def test_the_cost_is_that_of_the_products_of_a_dense_layer(layer, shape, storage):
    x = torch.randn(shape)
    expected = multiply_adds(layer, x)
    numel = layer.weight.numel()
    if storage == "cpu" and isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d):
        pytest.skip("sparse storage has no transposed convolutions")
    network, uses = counting(copy.deepcopy(nn.Sequential(layer)), storage=storage)
    network(x)
    assert uses.costs()["0.weight"] * numel == expected


def test_the_parts_of_attention_are_each_used_at_their_own_positions():
    class Cross(nn.Module):
        def __init__(self, **settings):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **settings)

        def forward(self, x, y):
            return self.attention(key=y, value=y, query=x, need_weights=False)[0]

    x, y = torch.randn(2, 3, 8), torch.randn(2, 6, 8)
    network, uses = counting(Cross())
    network(x, y)
    assert uses.costs() == {"attention.in_proj_weight": 5, "attention.out_proj.weight": 3}
    network, uses = counting(Cross(kdim=8, vdim=7))
    network.attention(x, y, y[..., :7])
    assert list(uses.positions().values()) == [6, 12, 12, 6]


def test_packed_sequences_count_their_own_steps():
    network, uses = counting(nn.LSTM(4, 5))
    network(pack_sequence([torch.randn(3, 4), torch.randn(1, 4)]))
    assert set(uses.positions().values()) == {4}


class Twice(nn.Module):
    """A convolution that is called twice on planes of two sizes, one that is called once, and a layer for nothing."""

    def __init__(self):
        super().__init__()
        self.shared, self.once = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.idle = nn.Linear(4, 4)

    def forward(self, x):
        x = self.shared(x)
        return self.once(self.shared(x[..., ::2, ::2]))


@each_storage
def test_several_sizes_make_a_mean_over_samples_and_a_layer_used_twice_a_sum(storage):
    network, uses = counting(Twice(), storage=storage)
    network(torch.randn(3, 4, 8, 8))
    assert uses.costs() == {"shared.weight": 64 + 16, "once.weight": 16, "idle.weight": 1}
    network(torch.randn(1, 4, 4, 4))
    assert uses.costs() == {"shared.weight": (3 * 80 + 20) / 4, "once.weight": (3 * 16 + 4) / 4, "idle.weight": 1}
    assert uses.positions()["idle.weight"] == 0


def test_arguments_may_come_by_name():
    network, uses = counting(nn.Sequential(nn.Conv1d(4, 4, 3)))
    uses.close()
    inner = network[0]
    uses = Uses(inner, sparse_weights(inner))
    inner(input=torch.randn(3, 4, 8))
    assert uses.costs() == {"weight": 6}


def test_embeddings_cost_nothing():
    network = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 8))
    network = regrow.sparsify(network, 0.5, include=[nn.Embedding], backend="masked")
    uses = Uses(network, sparse_weights(network))
    network(torch.tensor([[1, 2, 3]]))
    assert uses.costs() == {"0.weight": 0, "1.weight": 3}


def test_parts_that_are_called_alone_stand_to_each_other_as_their_costs():
    network, uses = counting(nn.ModuleDict({"early": nn.Conv2d(4, 4, 3), "late": nn.Linear(4, 4)}))
    network["late"](network["early"](torch.randn(5, 4, 8, 8)).mean((2, 3)))
    costs = uses.costs()
    assert costs["early.weight"] == 36 * costs["late.weight"]


def test_only_training_counts_where_that_is_asked_for():
    network, uses = counting(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), training_only=True)
    x = torch.randn(3, 4)
    network.eval()
    with torch.no_grad():
        network(x)
    assert uses.samples == 0
    network(x)  # trained in evaluation mode
    network.train()
    with torch.no_grad():  # as checkpointing runs it first
        network(x)
    assert (uses.samples, uses.costs()) == (6, {"0.weight": 1, "1.weight": 1})


@pytest.mark.parametrize("reentrant", [True, False])
def test_what_checkpointing_computes_again_is_not_counted_again(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.last(checkpoint(self.first, x, use_reentrant=reentrant))

    network, uses = counting(Checkpointed(), training_only=True)
    network(torch.randn(3, 5, 4, requires_grad=True)).sum().backward()
    assert uses.costs() == {"first.weight": 5, "last.weight": 5}


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))], ids=["deepcopy", "pickle"]
)
@each_storage
def test_copies_count_nothing(copied, storage):
    network, uses = counting(nn.Sequential(nn.Linear(4, 4)), storage=storage)
    other = copied(network)
    assert torch.equal(other(torch.ones(3, 4)), network(torch.ones(3, 4)))
    assert uses.samples == 3


def test_what_was_counted_is_saved_and_closing_ends_it():
    network, uses = counting(Twice())
    network(torch.randn(3, 4, 8, 8))
    _, other = counting(Twice())
    other.load_state_dict(uses.state_dict())
    assert (other.costs(), other.samples) == (uses.costs(), 3)
    uses.close()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
