"""Masked storage whose parameters `fully_shard` splits over processes."""

import dataclasses
import math

import pytest
import torch
from together import MODELS, OPTIMIZERS, SOURCES, STEPS, course
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import regrow


def sharded(rank, size, *, method, growth, optimizer, model="mlp", limit=math.inf):
    """Return the norm of the gradients, positions and weights of each step of a split model, clipped at a limit."""
    build, shape = MODELS[model]
    torch.manual_seed(0)
    recipe = regrow.methods.METHODS[method](every=2, steps=STEPS)
    if SOURCES[growth] is not None:
        recipe = dataclasses.replace(recipe, growth=SOURCES[growth])
    network = regrow.sparsify(build(), 0.3, backend="masked", seed=0).double()
    mesh = init_device_mesh("cpu", (size,))
    for layer in network:
        if isinstance(layer, torch.nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(network, mesh=mesh)
    own_optimizer = OPTIMIZERS[optimizer](network.parameters())
    regrow.TopologyUpdater(network, own_optimizer, recipe)
    states = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(8, *shape, generator=generator, dtype=torch.float64)[rank::size]
        own_optimizer.zero_grad()
        (network(inputs) - 1).square().mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), limit).full_tensor().item()
        own_optimizer.step()
        positions = {name: mask.nonzero().tolist() for name, mask in regrow.masks(network).items()}
        weights = {name: number.tolist() for name, number in regrow.dense_state_dict(network).items()}
        states.append((norm, positions, weights))
    return states


CASES = [
    ("sparse-momentum", "default", "sgd"),
    ("sparse-momentum", "window", "adam"),
    ("rigl", "default", "sgd"),
    ("set", "default", "sgd"),
]


@pytest.mark.parametrize(("method", "growth", "optimizer"), CASES)
def test_a_split_model_is_as_one_that_is_not(pair, method, growth, optimizer):
    settings = {"method": method, "growth": growth, "optimizer": optimizer}
    first, second = pair(sharded, **settings)
    assert first == second
    one = course(0, 1, storage="masked", **settings)
    for (_, ours, our_weights), (theirs, their_weights) in zip(first, one, strict=True):
        assert ours == theirs
        for name, weights in their_weights.items():
            torch.testing.assert_close(torch.tensor(our_weights[name]), torch.tensor(weights), rtol=1e-9, atol=1e-12)
    assert first[0][1] != first[-1][1]


def refused(rank, size, backend):
    density, kind, made = 0.3, regrow.TopologyUpdater, regrow.static()
    if backend == "masked":
        density, kind, made = 1.0, regrow.StepUpdater, regrow.sr_ste(keep=2, of=4)
    network = regrow.sparsify(MODELS["mlp"][0](), density, backend=backend)
    fully_shard(network, mesh=init_device_mesh("cpu", (size,)))
    optimizer = OPTIMIZERS["sgd"](network.parameters())
    try:
        kind(network, optimizer, made)
    except ValueError as error:
        return str(error)
    return None


def test_what_cannot_be_split_is_refused(pair):
    for message in pair(refused, "cpu"):
        assert "stored sparsely and split over processes" in message
    for message in pair(refused, "masked"):
        assert "a rule of every step works on whole tensors" in message
