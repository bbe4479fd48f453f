"""Sparse momentum's update beside the rules of the authors' code, written down as a loop over plain numbers."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import regrow
from regrow import Entries, LayerState
from regrow.redistribute import by_mean
from regrow.score import momentum


def regrown(shares, removed, zeros, nonzeros_dropped):
    """Return what each layer regrows before it is made whole.

    `ceil(share * total)`, cut at .99 of the room. The excess is handed to all layers in equal parts, again and again
    until next to nothing is left of it.
    """
    total = sum(nonzeros_dropped)
    room = [z + d for z, d in zip(zeros, nonzeros_dropped, strict=True)]
    counts = [math.ceil(share / sum(shares) * total) for share in shares]
    extra, left = 0.0, math.inf
    for _ in range(10_000):
        left = 0.0
        for i, most in enumerate(room):
            counts[i] += extra
            if counts[i] > 0.99 * most:
                left += counts[i] - 0.99 * most
                counts[i] = 0.99 * most
        extra = left / len(counts)
        if left < 1e-9:
            return counts
    return None  # there is no room for all of it


@st.composite
def networks(draw):
    """Draw layers: their sizes, densities and mean momenta, some of them nearly full."""
    seed, layers = draw(st.integers(0, 2**32)), {}
    generator = torch.Generator().manual_seed(seed)
    for number in range(draw(st.integers(2, 6))):
        numel = draw(st.integers(20, 2000))
        density = draw(st.sampled_from([0.02, 0.1, 0.3, 0.85, 0.95, 1.0]))
        scale = draw(st.sampled_from([0.01, 0.3, 1.0, 10.0]))
        order = torch.randperm(numel, generator=generator)
        active = order[: max(1, round(density * numel))].sort().values
        absent = order[len(active) :].sort().values
        both = [
            Entries(index, torch.randn(len(index), generator=generator).double(), momentum=values)
            for index in (active, absent)
            for values in [scale * torch.randn(len(index), generator=generator).double()]
        ]
        layers[f"{number}"] = LayerState(both[0], both[1], numel, (numel,))
    return layers


@given(layers=networks(), rate=st.sampled_from([0.5, 0.3, 0.05]))
def test_the_update_follows_the_authors_rules(layers, rate):
    recipe = dataclasses.replace(
        regrow.sparse_momentum(every=1, steps=9), fraction=regrow.schedule.constant(rate), keep_returning=False
    )
    changes = regrow.update(recipe, layers, 1, torch.Generator())

    means = [float(layer.active.momentum.abs().mean()) for layer in layers.values()]
    dropped = []
    for layer, mean in zip(layers.values(), means, strict=True):
        sparsity = 1 - len(layer.active) / layer.numel
        nearly_full = sparsity < 0.2 and mean / sum(means) > 1 / len(means)
        dropped.append(math.ceil((min(sparsity, rate) if nearly_full else rate) * len(layer.active)))
    assert [len(change.drop) for change in changes.values()] == dropped
    expected = regrown(means, dropped, [len(layer.candidates) for layer in layers.values()], dropped)
    counts = [len(change.grow) for change in changes.values()]
    assert sum(counts) == sum(dropped)
    if expected is None:
        return
    # Rounded up, theirs are together up to a weight a layer too many, and what is cut shares in that.
    for count, theirs, mean in zip(counts, expected, means, strict=True):
        assert abs(count - theirs) <= len(layers) + 1
        assert count >= 1 or not mean or sum(dropped) < len(layers) or theirs < 1


def test_a_weight_that_is_dropped_and_grown_stays_and_a_layer_that_is_empty_comes_back():
    def layer(active, numel, scale):
        index = torch.arange(numel)
        values = torch.full((numel,), scale)
        return LayerState(
            Entries(index[:active], index[:active] + 1.0, momentum=values[:active]),
            Entries(index[active:], torch.zeros(numel - active), momentum=values[active:]),
            numel,
            (numel,),
        )

    recipe = regrow.sparse_momentum(every=1, steps=9)
    changes = regrow.update(recipe, {"empty": layer(0, 50, 1.0), "other": layer(40, 400, 1.0)}, 1, torch.Generator())
    assert len(changes["empty"].grow) == 1
    assert changes["other"].returned == 19  # all are alike, so the lowest positions are dropped, and grown again
    assert len(changes["other"].drop) - len(changes["other"].grow) == 1
    paper = dataclasses.replace(recipe, redistribute=by_mean(momentum), rates=None)
    changes = regrow.update(paper, {"empty": layer(0, 50, 1.0), "other": layer(40, 400, 1.0)}, 1, torch.Generator())
    assert not len(changes["empty"].grow)


@pytest.mark.slow
def test_early_layers_of_a_resnet50_fill_and_late_ones_empty():
    """The densities that the authors' log of ResNet-50 on ImageNet at 10 % ends with, as far as shapes decide them.

    The momentum of a weight grows with the positions it is used at and falls with the depth: here it is taken to be
    the number of positions, which an update a hundred times over turns into densities.
    """
    stages = [(64, 56, 3), (128, 28, 4), (256, 14, 6), (512, 7, 3)]
    shapes, scale, inputs = {"conv1": (64, 3, 7, 7)}, {"conv1": 112.0}, 64
    for number, (planes, side, blocks) in enumerate(stages, start=1):
        for block in range(blocks):
            for conv, shape in (
                ("conv1", (planes, inputs, 1, 1)),
                ("conv2", (planes, planes, 3, 3)),
                ("conv3", (4 * planes, planes, 1, 1)),
            ):
                name = f"layer{number}.{block}.{conv}"
                shapes[name], scale[name] = shape, float(side)
            inputs = 4 * planes
    shapes["fc"], scale["fc"] = (1000, 2048), 1.0
    generator = torch.Generator().manual_seed(0)
    numel = {name: math.prod(shape) // 16 for name, shape in shapes.items()}  # a sixteenth of each layer will do
    masks = {name: torch.rand(n, generator=generator) < 0.1 for name, n in numel.items()}
    weight = {name: mask * torch.randn(len(mask), generator=generator) for name, mask in masks.items()}
    moving = {name: scale[name] * torch.randn(n, generator=generator) for name, n in numel.items()}
    recipe = regrow.sparse_momentum(every=1, steps=60)
    for step in range(1, 60):
        layers = {}
        for name, mask in masks.items():
            on, off = mask.nonzero().flatten(), (~mask).nonzero().flatten()
            layers[name] = LayerState(
                Entries(on, weight[name][on], momentum=moving[name][on]),
                Entries(off, torch.zeros(len(off)), momentum=moving[name][off]),
                numel[name],
                (numel[name],),
            )
        for name, change in regrow.update(recipe, layers, step, torch.Generator()).items():
            masks[name][change.drop], masks[name][change.grow] = False, True
            weight[name] = masks[name] * torch.randn(numel[name], generator=generator)
    found = {name: float(mask.double().mean()) for name, mask in masks.items()}
    # The log's ranges, with room for what shapes do not decide.
    for stage, least, most in (("layer1", 0.95, 1), ("layer2", 0.25, 1), ("layer3", 0.05, 0.5), ("layer4", 0.01, 0.15)):
        densities = [value for name, value in found.items() if name.startswith(stage)]
        assert least <= min(densities)
        assert max(densities) <= most
    assert found["fc"] < 0.05
