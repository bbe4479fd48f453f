"""Networks drawn at random, trained in masked and in sparse storage: float64 on both sides, so nothing hides."""

import copy
import dataclasses
import random

import pytest
import torch
from torch import Tensor, nn

import regrow
from cases import assert_same

METHODS = [regrow.methods.METHODS[name] for name in ("static", "set", "rigl", "sparse-momentum")]
GROWTHS = [regrow.growth.exact(), regrow.growth.window(2), regrow.growth.candidates(2, 2)]


class Residual(nn.Module):
    """Adds a branch to its input."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def activation(draw: random.Random) -> nn.Module:
    return draw.choice([nn.ReLU, nn.Tanh, nn.GELU, nn.LeakyReLU])()


def convolutional(draw: random.Random) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a network on planes, and the shape of its input."""
    channels, layers = draw.choice([3, 4, 6]), []
    first = channels
    for _ in range(draw.randint(1, 3)):
        groups = draw.choice([each for each in (1, 1, 2, 3) if channels % each == 0])
        after = groups * draw.choice([2, 3, 5])
        kernel, dilation, norm = draw.choice([1, 2, 3]), draw.choice([1, 1, 2]), draw.random() < 0.6
        layers.append(
            nn.Conv2d(
                channels,
                after,
                kernel,
                stride=draw.choice([1, 1, 2]),
                padding=(dilation * (kernel - 1) + 1) // 2 + draw.choice([0, 1]),
                dilation=dilation,
                groups=groups,
                # A bias before a norm has no gradient but rounding, which Adam would blow up.
                bias=not norm,
            )
        )
        if norm:
            layers.append(nn.BatchNorm2d(after))
        layers.append(activation(draw))
        if draw.random() < 0.4:
            layers.append(Residual(nn.Sequential(nn.Conv2d(after, after, 3, padding=1), activation(draw))))
        channels = after
    layers += [draw.choice([nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d])(1), nn.Flatten(), nn.Linear(channels, 4)]
    return nn.Sequential(*layers), (first, draw.choice([5, 8, 9]), draw.choice([4, 7, 8]))


def of_lines(draw: random.Random) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a network of one-dimensional convolutions, and the shape of its input."""
    between = draw.choice([3, 5, 8])
    network = nn.Sequential(
        nn.Conv1d(4, between, draw.choice([1, 2, 3, 4]), padding=draw.choice(["same", "valid"])),
        activation(draw),
        nn.Conv1d(between, 6, 2, stride=draw.choice([1, 2])),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )
    return network, (4, draw.choice([7, 9, 12]))


def of_features(draw: random.Random) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a network of linear layers, and the shape of its input."""
    sides = [draw.choice([3, 5, 8, 12]) for _ in range(draw.randint(2, 4))]
    layers: list[nn.Module] = []
    for one, other in zip(sides, [*sides[1:], 4], strict=True):
        layers += [nn.Linear(one, other, bias=draw.random() < 0.7), activation(draw)]
    return nn.Sequential(*layers), (sides[0],)


def leaves_each_layer_a_unit(network: nn.Module, density: float, block: tuple[int, int]) -> bool:
    try:
        regrow.sparsify(copy.deepcopy(network), density, block=block, backend="masked")
    except ValueError as error:
        if "too small to leave layer" not in str(error):
            raise
        return False
    return True


def check(seed: int) -> None:
    """Train both for some steps, and compare topology, weights and outputs."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    build = draw.choice([convolutional, convolutional, of_lines, of_features])
    network, shape = build(draw)
    density, block = draw.choice([0.2, 0.5, 0.8]), draw.choice([(1, 1), (1, 1), (2, 1)])
    if density == 0.2 and not leaves_each_layer_a_unit(network, density, block):
        density = 0.8
    recipe = dataclasses.replace(draw.choice(METHODS)(every=2, steps=10), growth=draw.choice(GROWTHS))
    make, batch, freezes = draw.choice(["sgd", "adam"]), draw.choice([2, 3, 5]), draw.random() < 0.3
    trained = []
    for backend in ("masked", "cpu"):
        model = regrow.sparsify(copy.deepcopy(network).double(), density, block=block, backend=backend, seed=seed)
        if make == "sgd":
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
        else:
            # With the usual eps the normalised momentum of one gradient is 1 for every weight, and rounding chooses.
            optimizer = torch.optim.Adam(model.parameters(), lr=0.01, eps=1e-3)
        regrow.TopologyUpdater(model, optimizer, recipe, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        for step in range(8):
            if freezes and step in (3, 5):
                optimizer.zero_grad()
                for parameter in next(iter(model.children())).parameters():
                    parameter.requires_grad_(step == 5)
            optimizer.zero_grad()
            x = torch.randn((batch, *shape), generator=generator, dtype=torch.float64)
            (model(x) - 1).square().mean().backward()
            optimizer.step()
        trained.append((model, model(x).detach()))
    (masked, expected), (sparse, output) = trained
    assert_same(regrow.masks(sparse), regrow.masks(masked))
    torch.testing.assert_close(regrow.dense_state_dict(sparse), regrow.dense_state_dict(masked), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(output, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_random_networks_train_the_same_in_both_storages(seed: int) -> None:
    check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(20))
def test_many_random_networks_train_the_same_in_both_storages(part: int) -> None:
    for seed in range(100 + 50 * part, 150 + 50 * part):
        check(seed)
