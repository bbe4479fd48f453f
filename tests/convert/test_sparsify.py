import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import regrow
from cases import MODELS, each_model, each_stored, model, weights
from regrow.core.distribution import DISTRIBUTIONS

DISTRIBUTION_NAMES = pytest.mark.parametrize("distribution", DISTRIBUTIONS)


@each_stored
@DISTRIBUTION_NAMES
def test_the_weights_that_should_be_are_sparse_and_exactly_counted(model, distribution, storage):
    built = model.build()
    shapes = {name: tuple(parameter.shape) for name, parameter in built.named_parameters()}
    sparse = regrow.sparsify(built, 0.3, distribution=distribution, backend=storage)
    assert sparse is built
    masks = regrow.masks(sparse)
    assert tuple(masks) == model.weights
    expected = DISTRIBUTIONS[distribution]({name: shapes[name] for name in model.weights}, 0.3)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == expected
    assert sum(expected.values()) == round(0.3 * sum(mask.numel() for mask in masks.values()))
    for name, mask in masks.items():
        assert mask.dtype == torch.bool
        assert tuple(mask.shape) == shapes[name]
        weight = weights(sparse)[name]
        assert not weight[~mask].any()
        assert weight[mask].all()  # drawn from a continuous distribution: none is zero by chance


@settings(max_examples=30)
@given(density=st.floats(0.02, 1), seed=st.integers(0, 2**40), sizes=st.lists(st.integers(8, 20), min_size=2))
def test_any_density_is_met_exactly(density, seed, sizes):
    network = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes)))
    masks = regrow.masks(regrow.sparsify(network, density, seed=seed))
    assert sum(int(m.sum()) for m in masks.values()) == round(density * sum(m.numel() for m in masks.values()))


@each_model
def test_dense_weights_biases_and_norms_are_left_as_they_were(model):
    torch.manual_seed(3)
    dense = model.build().state_dict()
    torch.manual_seed(3)
    sparse = regrow.dense_state_dict(regrow.sparsify(model.build(), 0.3))
    masks = regrow.masks(regrow.sparsify(model.build(), 0.3))
    assert sparse.keys() == dense.keys()
    tied = {"decode.weight": "encode.weight"} if model.name == "tied" else {}
    for name, value in dense.items():
        mask = masks.get(tied.get(name, name))
        assert torch.equal(sparse[name], value if mask is None else value * mask)


def test_ranks_seeded_differently_draw_the_same_masks_and_leave_the_global_generator_alone():
    drawn = []
    for rank in range(2):
        network = model("conv2d").build()
        torch.manual_seed(100 + rank)
        before = torch.get_rng_state()
        drawn.append(regrow.masks(regrow.sparsify(network, 0.3)))
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])


def test_ranks_seeded_differently_grow_the_same_weights():
    grown = []
    for rank in range(2):
        network = regrow.sparsify(nn.Linear(20, 20), 0.2)
        nn.init.ones_(network.weight)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
        torch.manual_seed(100 + rank)
        regrow.TopologyUpdater(network, optimizer, regrow.set(every=1, steps=3))
        optimizer.step()
        grown.append(regrow.masks(network)["weight"])
    assert torch.equal(*grown)


def test_another_seed_draws_other_masks_and_layers_of_a_shape_differ():
    first, second = (regrow.masks(regrow.sparsify(model("lstm").build(), 0.3, seed=seed)) for seed in (0, 1))
    assert not any(torch.equal(first[name], second[name]) for name in first)
    twins = regrow.masks(regrow.sparsify(nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9)), 0.3))
    assert not torch.equal(twins["0.weight"], twins["1.weight"])


def test_tied_weights_are_masked_once_and_stay_tied():
    tied = regrow.sparsify(model("tied").build(), 0.25)
    assert tied.decode.weight is tied.encode.weight
    assert {name: int(mask.sum()) for name, mask in regrow.masks(tied).items()} == {"encode.weight": 16}


def test_a_weight_tied_to_an_embedding_stays_dense_unless_asked_for():
    build = model("tied-to-embedding").build
    assert list(regrow.masks(regrow.sparsify(build(), 0.3))) == ["hidden.weight"]
    asked = regrow.masks(regrow.sparsify(build(), 0.3, include=[nn.Embedding]))
    assert list(asked) == ["embed.weight", "hidden.weight"]


LAYERS = ("0.weight", "2.weight", "4.weight", "6.weight")


@pytest.mark.parametrize(
    ("keep_dense", "sparse"),
    [
        ([], LAYERS),
        (["first"], LAYERS[1:]),
        (["last"], LAYERS[:-1]),
        (["first", "last"], LAYERS[1:-1]),
        (["2"], (LAYERS[0], *LAYERS[2:])),
        (["[24].weight"], (LAYERS[0], LAYERS[3])),
        ([nn.Conv1d], LAYERS[2:]),
    ],
    ids=str,
)
def test_selected_weights_stay_dense_and_out_of_the_count(keep_dense, sparse):
    network = nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 4, 3), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 5)
    )
    masks = regrow.masks(regrow.sparsify(network, 0.5, keep_dense=keep_dense))
    assert tuple(masks) == sparse
    assert sum(int(m.sum()) for m in masks.values()) == round(0.5 * sum(m.numel() for m in masks.values()))


def test_norms_and_biases_become_sparse_when_asked_for():
    network = regrow.sparsify(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)), 0.5, include=["*.bias", nn.LayerNorm])
    assert set(regrow.masks(network)) == {"0.weight", "0.bias", "1.weight", "1.bias"}


@each_stored
def test_given_masks_are_taken_as_they_are(model, storage):
    given_masks = regrow.masks(regrow.sparsify(model.build(), 0.3, seed=9))
    taken = regrow.masks(regrow.sparsify(model.build(), masks=given_masks, backend=storage))
    assert taken.keys() == given_masks.keys()
    assert all(torch.equal(taken[name], given_masks[name]) for name in taken)


def test_the_masks_returned_are_copies():
    network = regrow.sparsify(nn.Linear(8, 8), 0.5)
    regrow.masks(network)["weight"].zero_()
    assert int(regrow.masks(network)["weight"].sum()) == 32


@each_stored
def test_the_dense_state_dict_loads_into_the_unsparsified_model_and_computes_the_same(model, storage):
    sparse, plain = regrow.sparsify(model.build(), 0.3, backend=storage).eval(), model.build().eval()
    plain.load_state_dict(regrow.dense_state_dict(sparse))
    inputs = model.inputs(0)
    torch.testing.assert_close(plain(inputs), sparse(inputs))


@each_stored
def test_densify_gives_back_an_ordinary_model(model, storage):
    sparse = regrow.sparsify(model.build(), 0.3, backend=storage).eval()
    before, output = regrow.dense_state_dict(sparse), sparse(model.inputs(0))
    before = {name: value.clone() for name, value in before.items()}
    plain = regrow.densify(sparse)
    assert regrow.masks(plain) == {}
    assert plain.state_dict().keys() == model.build().state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())
    torch.testing.assert_close(plain(model.inputs(0)), output)
    assert tuple(regrow.masks(regrow.sparsify(plain, 0.2))) == model.weights


def test_densify_needs_no_topology_to_have_kept_the_zeros():
    network = regrow.sparsify(nn.Linear(8, 8), 0.5)
    mask = regrow.masks(network)["weight"]
    nn.init.ones_(network.weight)  # as an optimizer without a TopologyUpdater would fill it
    assert torch.equal(regrow.densify(network).weight != 0, mask)


def test_every_model_of_the_table_has_its_own_name():
    assert len({row.name for row in MODELS}) == len(MODELS)


@pytest.mark.parametrize("backend", ["masked", "cpu"])
def test_a_model_whose_topology_is_kept_is_not_densified(backend):
    network = regrow.sparsify(nn.Sequential(nn.Linear(4, 4)), 0.5, backend=backend)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    topology = regrow.TopologyUpdater(network, optimizer, regrow.set(every=2, steps=8))
    with pytest.raises(ValueError, match=r"keeps the topology of '0.weight': call its remove\(\) first"):
        regrow.densify(network)
    assert len(regrow.masks(network)) == 1
    assert regrow.masks(regrow.densify(copy.deepcopy(network))) == {}
    topology.remove()
    assert regrow.masks(regrow.densify(network)) == {}


def test_an_updater_out_of_reach_keeps_nothing():
    network = regrow.sparsify(nn.Sequential(nn.Linear(4, 4)), 0.5, backend="cpu")
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    regrow.TopologyUpdater(network, optimizer, regrow.set(every=2, steps=8))
    del optimizer
    assert regrow.masks(regrow.densify(network)) == {}
