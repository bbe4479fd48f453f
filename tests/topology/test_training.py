"""Whole short trainings against the reference trainer, which knows nothing of the library or of autograd."""

import numpy as np
import pytest
import torch
from torch import nn

import reference
import regrow
from cases import METHODS, STORAGES, method, weights

SGD = [
    {"lr": 0.2, "momentum": 0.0, "nesterov": False, "weight_decay": 0.01},
    {"lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0},
    {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
]
COMPARED = [
    (m, s) for m in METHODS if m.name in reference.UPDATES for s in SGD if s["momentum"] or not m.needs_momentum
]
EVERY, STEPS, SEED = 3, 18, 5


# For each block the units of the two layers, of 12 outputs by 9 inputs and of 4 by 12.
BLOCKS = {(1, 1): ((1, 1), (1, 1)), (4, 1): ((4, 1), (4, 1)), (3, 2): ((3, 1), (2, 2)), (2, 3): ((2, 3), (2, 3))}


@pytest.mark.pairs
@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(("method", "settings"), COMPARED, ids=lambda v: getattr(v, "name", None))
def test_a_whole_training_equals_the_reference(method, settings, storage, block):
    if not method.keeps_number and len({rows * columns for rows, columns in BLOCKS[block]}) > 1:
        pytest.skip("the reference meets a density in units of one size")
    recipe = method.factory(every=EVERY, steps=STEPS)
    density = 0.4 if method.keeps_number else recipe.density(0)
    model = nn.Sequential(nn.Linear(9, 12, bias=False), nn.Tanh(), nn.Linear(12, 4, bias=False)).double()
    regrow.sparsify(model, density, block=block, backend=storage)
    by_hand = reference.Trainer(
        weights=[w.numpy() for w in weights(model).values()],
        masks=[mask.numpy() for mask in regrow.masks(model).values()],
        units=BLOCKS[block],
        **settings,
    )
    drawn = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.SGD(model.parameters(), **settings)
    regrow.TopologyUpdater(model, optimizer, recipe, seed=SEED)

    data = torch.Generator().manual_seed(1)
    until = round(reference.UNTIL.get(method.name, 1) * STEPS)
    numel = sum(mask.numel() for mask in regrow.masks(model).values())
    due = None
    for step in range(1, STEPS + 1):
        x, target = (torch.randn(16, n, generator=data, dtype=torch.float64) for n in (9, 4))
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), target).backward()
        optimizer.step()

        replaced = due is not None and method.name in reference.REPLACES
        by_hand.step(x.numpy(), target.numpy(), moves_weights=not replaced)
        if due is not None:
            rate = reference.RATES[method.name](due, STEPS)
            target = None
            if method.name in reference.DENSITIES:
                target = round(reference.DENSITIES[method.name](due, STEPS, EVERY) * numel)
            noise = lambda n: torch.rand(n, generator=drawn, dtype=torch.float64).numpy()  # noqa: E731
            by_hand.update(method.name, rate, noise, target, progress=due / STEPS)
        due = step if step % EVERY == 0 and step < until else None

        for ours, mask, theirs, their_mask in zip(
            weights(model).values(), regrow.masks(model).values(), by_hand.weights, by_hand.masks, strict=True
        ):
            assert np.array_equal(mask.numpy(), their_mask)
            np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-10, atol=1e-13)


def test_dense_training_is_left_as_it_was():
    """At density 1 a sparse training is the dense one, to the bit."""
    dense, sparse = (nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)) for _ in range(2))
    sparse.load_state_dict(dense.state_dict())
    regrow.sparsify(sparse, density=1.0)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (dense, sparse)]
    regrow.TopologyUpdater(sparse, optimizers[1], method("static").recipe())
    for _ in range(5):
        x = torch.randn(4, 8)
        for model, optimizer in zip((dense, sparse), optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    for name, value in regrow.dense_state_dict(sparse).items():
        assert torch.equal(value, dense.state_dict()[name])
