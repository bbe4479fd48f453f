"""Weights that are computed from other parameters (weight norm, spectral norm, pruning) are never sparse in silence."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import regrow
from cases import each_storage


def old_weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(layer)


MAKERS = {
    "weight_norm": (old_weight_norm, nn.utils.remove_weight_norm, "remove_weight_norm"),
    "spectral_norm": (nn.utils.spectral_norm, nn.utils.remove_spectral_norm, "remove_spectral_norm"),
    "prune": (
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        lambda layer: prune.remove(layer, "weight"),
        r"prune\.remove",
    ),
    **{
        f"parametrizations.{make.__name__}": (
            make,
            lambda layer: parametrize.remove_parametrizations(layer, "weight"),
            "remove_parametrizations",
        )
        for make in (parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal)
    },
}
each_maker = pytest.mark.parametrize(("make", "end", "mend"), MAKERS.values(), ids=MAKERS.keys())


def network():
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))


@each_maker
@each_storage
def test_a_computed_weight_is_refused_with_the_mend(make, end, mend, storage):
    model = network()
    make(model[2])
    with pytest.raises(ValueError, match=f"'2.weight' cannot be sparse, .*{mend}.* or name it in keep_dense"):
        regrow.sparsify(model, 0.3, backend=storage)
    for selector in ("2.weight", "last", nn.Linear):
        kept = [selector] if selector != nn.Linear else ["2"]
        other = network()
        make(other[2])
        assert list(regrow.masks(regrow.sparsify(other, 0.3, backend=storage, keep_dense=kept))) == ["0.weight"]
    end(model[2])
    assert list(regrow.masks(regrow.sparsify(model, 0.3, backend=storage))) == ["0.weight", "2.weight"]


@each_maker
def test_a_masked_weight_that_is_computed_later_raises_wherever_it_is_used(make, end, mend):
    model = regrow.sparsify(network(), 0.3, backend="masked")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regrow.TopologyUpdater(model, optimizer, regrow.set(every=2, steps=8))
    make(model[0])
    uses = [
        lambda: regrow.summary(model),
        lambda: regrow.dense_state_dict(model),
        lambda: regrow.TopologyUpdater(model, torch.optim.SGD(model.parameters(), lr=0.1), regrow.static()),
        optimizer.step,
    ]
    for use in uses:
        with pytest.raises(RuntimeError, match=r"'0.weight' is sparse, .* remove them, or keep this weight dense"):
            use()


@each_maker
def test_a_sparsely_stored_weight_cannot_be_computed(make, end, mend):
    model = regrow.sparsify(network(), 0.3, backend="cpu")
    with pytest.raises((KeyError, TypeError, ValueError)):
        make(model[0])
